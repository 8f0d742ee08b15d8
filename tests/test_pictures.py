"""Pictures: each file is whole and shows something, and drawing leaves nothing behind."""

from __future__ import annotations

import importlib
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.app import pictures
from pyro_vae.app.pictures import cells, page
from pyro_vae.app.pictures.curves import _best, _robust_limits
from pyro_vae.app.pictures.latent import _principal
from pyro_vae.errors import RequestError

SMALL = {"name": "mlp", "hidden": (16,)}


def build(shape=(8, 8), latent_dim=2, **options):
    torch.manual_seed(0)
    return pv.VAE(data_shape=shape, latent_dim=latent_dim, encoder=SMALL, decoder=SMALL, **options)


def data(num, *shape, seed=1):
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(seed))


def bits(num, *shape):
    return (data(num, *shape) > 0.5).float()


def rows(num, **columns):
    """A fit's history that starts very low."""
    bound = [-90.0 - 500.0 * math.exp(-2 * i) - 10 / (i + 1) for i in range(num)]
    return [
        {"epoch": i + 1, "train_bound": bound[i], "validation_bound": bound[i] - 2}
        | {"beta": min(1.0, (i + 1) / 5), "learning_rate": 1e-3}
        | {key: value(i) for key, value in columns.items()}
        for i in range(num)
    ]


def pixels(path):
    from matplotlib.image import imread

    with path.open("rb") as file:
        return imread(file)


def shows_something(path):
    image = pixels(path)
    assert image.shape[0] > 60
    assert image.shape[1] > 60
    assert image[..., :3].std() > 0.005
    return image


# One call of every function, on a VAE with two latents and its data.
CALLS = {
    "learning_curves": lambda vae, x, path: pictures.learning_curves(
        rows(12, learning_rate=lambda i: 0.9**i), path
    ),
    "samples": lambda vae, x, path: pictures.samples(vae, path, num=5),
    "reconstructions": lambda vae, x, path: pictures.reconstructions(vae, x, path, num=5),
    "traversals": lambda vae, x, path: pictures.traversals(vae, x, path, steps=5),
    "interpolations": lambda vae, x, path: pictures.interpolations(vae, x, path, pairs=2, steps=4),
    "latent_scatter": lambda vae, x, path: pictures.latent_scatter(
        vae, x, path, labels=torch.arange(len(x)) % 6 - 1
    ),
    "manifold": lambda vae, x, path: pictures.manifold(vae, path, steps=4),
}
VAE_CALLS = [name for name in CALLS if name != "learning_curves"]


@pytest.mark.parametrize("name", CALLS)
def test_picture_is_drawn_again_the_same_and_leaves_nothing_behind(name, tmp_path, monkeypatch):
    import matplotlib

    vae, x = build(), bits(30, 8, 8)
    vae.train()
    vae.guide_module.eval()  # a mixed state must come back as it was
    modes = [module.training for module in vae.modules()]
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # importing it would fail
    settings = {key: matplotlib.rcParams[key] for key in page.STYLE}
    torch.manual_seed(7)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002

    first = CALLS[name](vae, x, tmp_path / "new" / "a.png")
    assert first == tmp_path / "new" / "a.png"
    shows_something(first)

    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002
    assert [module.training for module in vae.modules()] == modes
    assert {key: matplotlib.rcParams[key] for key in page.STYLE} == settings
    torch.manual_seed(8)
    with matplotlib.rc_context({"axes.facecolor": "black", "savefig.bbox": "tight"}):
        second = CALLS[name](vae, x, str(tmp_path / "new" / "b.png"))
    assert first.read_bytes() == second.read_bytes()
    assert sorted(file.name for file in first.parent.iterdir()) == ["a.png", "b.png"]


def test_another_seed_draws_others(tmp_path):
    vae = build()
    first = pictures.samples(vae, tmp_path / "a.png", num=4, seed=0)
    second = pictures.samples(vae, tmp_path / "b.png", num=4, seed=1)
    assert first.read_bytes() != second.read_bytes()


SHAPES = [(1, 8, 6), (3, 8, 6), (2, 5, 4), (150, 140)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_data_shape(shape, tmp_path):
    vae = build(shape, likelihood="gaussian")
    x = data(6, *shape) * 4 - 2
    vae.initialize(x)
    for name in ["samples", "interpolations"]:
        image = shows_something(CALLS[name](vae, x, tmp_path / f"{name}.png"))
        assert image.shape[1] < 3000
        colored = np.ptp(image[..., :3], axis=-1).max() > 0.1
        assert colored == (len(shape) == 3 and shape[0] == 3)


@pytest.mark.parametrize(
    ("prior", "guide", "names"),
    [
        ("gaussian_mixture", "iaf", ["traversals", "manifold"]),
        ({"name": "vamp", "components": 5}, "full_rank", ["samples"]),
    ],
    ids=["mixture", "vamp"],
)
def test_other_priors_and_guides(prior, guide, names, tmp_path):
    vae, x = build(prior=prior, guide=guide), bits(20, 8, 8)
    vae.initialize(x)
    for name in names:
        shows_something(CALLS[name](vae, x, tmp_path / f"{name}.png"))


def test_double_precision_and_integer_data(tmp_path):
    vae = build().double()
    x = bits(6, 8, 8).to(torch.uint8)
    for name in ("traversals", "manifold"):
        shows_something(CALLS[name](vae, x, tmp_path / f"{name}.png"))


def test_draw_all_draws_what_applies(tmp_path, monkeypatch):
    def path_of(*arguments, **options):
        return next(value for value in arguments if isinstance(value, Path))

    for name in CALLS:
        monkeypatch.setattr(pictures, name, path_of)
    vae, x = build(), bits(12, 8, 8)
    names = [tmp_path / f"{name}.png" for name in CALLS]
    assert pictures.draw_all(vae, x, torch.arange(12) % 2, rows(8), tmp_path) == names
    vae = build(latent_dim=5)
    paths = pictures.draw_all(vae, x[:1], None, None, str(tmp_path))
    assert [path.stem for path in paths] == [
        "samples",
        "reconstructions",
        "traversals",
        "latent_scatter",
    ]


# Learning curves -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "history",
    [
        rows(
            6,
            train_bound=lambda i: -math.inf if i == 2 else -5.0,
            validation_bound=lambda i: math.nan,
            learning_rate=lambda i: float(5 - i),
        ),
        [{"epoch": 3, "train_bound": -1.0, "validation_bound": None}],
    ],
    ids=["not finite", "bare"],
)
def test_learning_curves_take_what_a_fit_leaves(history, tmp_path):
    shows_something(pictures.learning_curves(history, tmp_path / "a.png"))


def test_early_epochs_do_not_flatten_the_rest():
    values = np.array([row["train_bound"] for row in rows(50)])
    low, high = _robust_limits(values)
    assert values.min() < -500
    assert -120 < low < values[-30:].min()
    assert high > values.max()


def test_best_epoch_is_that_of_validation_or_of_training_after_warm_up():
    beta = np.array([0.1, 0.5, 1, 1])
    train = np.array([-1.0, -2, -4, -3])
    validation = np.array([-9.0, -5, np.nan, -6])
    curves = {"train_bound": train, "validation_bound": validation}
    assert _best(curves, beta) == ("validation_bound", 1)
    assert _best({"train_bound": train}, beta) == ("train_bound", 3)
    assert _best({"train_bound": train}, beta / 2) == ("train_bound", 0)


# Latents ---------------------------------------------------------------------------------------


@pytest.fixture
def panels(monkeypatch):
    """What goes on pages, caught before it is drawn."""
    caught = []
    for name in ("traversals", "interpolations", "manifold"):
        module = importlib.import_module(f"pyro_vae.app.pictures.{name}")
        monkeypatch.setattr(module, "page", lambda path, title, shown, note: caught.append(shown))
    return caught


@pytest.fixture
def decoded(monkeypatch):
    """The latents that are decoded."""
    seen = []
    monkeypatch.setattr(
        pictures.queries,
        "decoded_means",
        lambda vae, z, y=None: seen.append(z) or torch.rand(len(z), 8, 8),
    )
    return seen


def test_traversals_order_by_activity_and_show_unused_latents_unmoved(tmp_path, panels):
    vae, x = build(latent_dim=12), bits(40, 8, 8)
    with torch.no_grad():
        last = vae.guide_module.encoder.body[-1]
        last.weight[:12] *= torch.linspace(0, 3, 12)[:, None]  # latent 0 is unused: it never moves
        vae.decoder.body[1].weight[:, 0] = 0
    pictures.traversals(vae, x, tmp_path / "a.png")
    variance = vae.latent_mean(x).var(0, correction=0)
    order = variance.argsort(descending=True)[:10].tolist()
    labels = panels[0][0].row_labels
    assert [label.split()[0] for label in labels] == [f"z{d}" for d in order]
    assert 0 not in order
    assert labels[0] == f"z{order[0]}  ({variance[order[0]]:.2f})"

    pictures.traversals(vae, None, tmp_path / "a.png", dims=[0, 5], steps=3, span=2)
    panel = panels[1][0]
    assert panel.row_labels == ["z0", "z5"]
    assert panel.column_labels == ["\N{MINUS SIGN}2", "0", "+2"]
    shown = panel.cells.reshape(2, 3, -1)
    assert (shown[0] == shown[0, 0]).all()
    assert (shown[1, 0] != shown[1, 2]).any()
    assert (shown[0, 1] == shown[1, 1]).all()  # the prior's mean in both rows


def test_traversal_reaches_the_prior_sds_it_names(tmp_path, panels, decoded):
    vae = build()
    pictures.traversals(vae, None, tmp_path / "a.png", dims=[1], steps=3, span=2.5)
    assert decoded[0].tolist() == [[0, -2.5], [0, 0], [0, 2.5]]


def test_manifold_has_normal_quantiles_with_z1_upwards(tmp_path, panels, decoded):
    pictures.manifold(build(), tmp_path / "a.png", steps=2)
    q = torch.distributions.Normal(0.0, 1.0).icdf(torch.tensor(0.75)).item()
    expected = torch.tensor([[-q, q], [q, q], [-q, -q], [q, -q]])
    assert torch.allclose(decoded[0].float(), expected)

    vae = build(prior={"name": "gaussian_mixture", "components": 1})
    with torch.no_grad():
        vae.prior.loc.copy_(torch.tensor([[5.0, -1.0]]))
    pictures.manifold(vae, tmp_path / "a.png", steps=3)
    assert torch.allclose(decoded[1][4].float(), torch.tensor([5.0, -1.0]), atol=0.2)
    half = (decoded[1].amax(0) - decoded[1].amin(0)) / 2
    assert torch.allclose(half.float(), torch.tensor([1.98, 1.98]), atol=0.25)


def test_interpolation_goes_from_one_latent_mean_to_the_other(tmp_path, panels, decoded):
    vae, x = build(latent_dim=3), bits(5, 8, 8)
    pictures.interpolations(vae, x, tmp_path / "a.png", pairs=6, steps=3)
    z, means = decoded[0].reshape(2, 3, 3), vae.latent_mean(x)
    assert torch.allclose(z[:, 0], means[[0, 2]], atol=1e-6)
    assert torch.allclose(z[:, 2], means[[1, 3]], atol=1e-6)
    assert torch.allclose(z[:, 1], (means[[0, 2]] + means[[1, 3]]) / 2, atol=1e-6)
    assert [len(panel.cells) for panel in panels[0]] == [2, 6, 2]


@pytest.mark.parametrize(
    ("latent_dim", "labels"),
    [
        (1, None),
        (2, None),
        (1, np.array(["cat", "dog", "a class with a long name"] * 10)),
        (2, torch.linspace(0, 1, 30)),
        (4, [f"class {i}" for i in range(-12, 18)] + [f"more {i}" for i in range(20)]),
    ],
    ids=["one latent", "no labels", "words", "scale", "others"],
)
def test_latent_scatter_labels(latent_dim, labels, tmp_path):
    vae, x = build(latent_dim=latent_dim), bits(30 if labels is None else len(labels), 8, 8)
    shows_something(pictures.latent_scatter(vae, x, tmp_path / "a.png", labels=labels))


def test_principal_components_are_those_of_the_data():
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, 5)) * [1, 5, 0.1, 3, 0.1] + 2
    shown, prior, shares = _principal(z, z[:7])
    values, vectors = np.linalg.eigh(np.cov(z.T))
    assert np.allclose(shares, values[:-3:-1] / values.sum())
    expected = (z - z.mean(0)) @ vectors[:, :-3:-1]
    assert np.allclose(np.abs(shown), np.abs(expected))
    assert np.allclose(prior, shown[:7])


# Cells -----------------------------------------------------------------------------------------


def test_tile_keeps_cells_apart():
    images = np.arange(3).reshape(3, 1, 1, 1) / 4 * np.ones((3, 2, 3, 3))
    sheet = pictures.tile(images, 2)
    assert sheet.shape == (2 * 2 + page.GAP, 2 * 3 + page.GAP, 3)
    assert sheet[0, :, 0].tolist() == [0, 0, 0, 1, 1, 0.25, 0.25, 0.25]
    assert sheet[-1, :, 2].tolist() == [0.5, 0.5, 0.5, 1, 1, 1, 1, 1]
    assert (sheet[2:4] == 1).all()


def look(shape, support, means, x=None):
    stand_in = SimpleNamespace(
        shapes=SimpleNamespace(data=shape), likelihood=SimpleNamespace(support=support)
    )
    return cells.Look.of(stand_in, means, x)


def test_range_of_a_page():
    wide = torch.linspace(-3, 5, 64).reshape(1, 8, 8)
    unit = data(4, 8, 8)
    assert (look((8, 8), "binary", unit * 0.1).low, look((8, 8), "unit", unit).high) == (0, 1)
    assert (look((8, 8), "real", wide, unit).low, look((8, 8), "real", wide, unit).high) == (0, 1)
    both = look((8, 8), "real", wide)
    assert (both.low, both.high) == (pytest.approx(-3, abs=0.1), pytest.approx(5, abs=0.1))
    flat = look((8, 8), "real", torch.full((2, 8, 8), 7.0))
    assert flat.high > flat.low
    nothing = look((8, 8), "real", torch.full((2, 8, 8), math.nan))
    assert np.isfinite(nothing.cells(torch.full((2, 8, 8), math.nan))).all()


def test_drawings_are_dark_on_paper_and_photographs_are_not_inverted():
    drawing = torch.zeros(2, 8, 8)
    drawing[:, 2:6, 2:6] = 1
    drawn = look((8, 8), "unit", drawing).cells(drawing)
    assert drawn[0, 0, 0, 0] > 0.9 > 0.2 > drawn[0, 32, 32, 0]
    photograph = 0.9 - 0.4 * drawing
    drawn = look((8, 8), "unit", photograph).cells(photograph)
    assert drawn[0, 0, 0, 0] == pytest.approx(0.9, abs=1e-6)
    assert drawn[0, 32, 32, 0] == pytest.approx(0.5, abs=1e-6)


def test_bars_reach_their_values():
    values = torch.tensor([[1.0, -1.0, 0.5, math.nan]])
    look_ = cells.Look(None, -1.0, 1.0, True)
    drawn = look_.cells(values)[0]
    height, width = drawn.shape[:2]
    ink = drawn[..., 0] < 0.5
    heights = [ink[:, i * width // 4 + 3].mean() for i in range(3)]
    assert heights == pytest.approx([0.5, 0.5, 0.25], abs=2.5 / height)
    assert ink[: height // 2, 3].all()
    assert ink[height // 2 :, width // 4 + 3].all()
    assert np.allclose(drawn[0, -4], cells.BAD)


def test_large_pictures_are_averaged_and_small_ones_repeated():
    board = torch.zeros(1, 300, 300)
    board[..., ::3] = 0.9
    drawn = look((300, 300), "unit", board).cells(board)
    assert drawn.shape == (1, 100, 100, 3)
    assert drawn.std() < 1e-3
    assert look((8, 8), "unit", board[:, :8, :8]).cells(board[:, :8, :8]).shape == (1, 64, 64, 3)


# Requests that are wrong -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda v, x, p: pictures.manifold(build(latent_dim=3), p), "traversals"),
        (lambda v, x, p: pictures.manifold(v, p, steps=1), "steps: 1"),
        (lambda v, x, p: pictures.samples(v, p, num=0), "num: 0"),
        (lambda v, x, p: pictures.samples(v, p.with_suffix(".pdf")), "end in .png"),
        (lambda v, x, p: pictures.reconstructions(v, x[:, :7], p), r"8, 8"),
        (lambda v, x, p: pictures.reconstructions(v, x[:0], p), "no data"),
        (lambda v, x, p: pictures.traversals(v, x, p, dims=[0, 2]), r"\[0, 2\].*latents 0 to 1"),
        (lambda v, x, p: pictures.traversals(v, x, p, dims=[]), r"\[\].*latents 0 to 1"),
        (lambda v, x, p: pictures.traversals(v, x, p, span=math.nan), "span: nan"),
        (lambda v, x, p: pictures.interpolations(v, x[:1], p), "at least two data"),
        (lambda v, x, p: pictures.latent_scatter(v, x, p, labels=[1, 2]), "one per datum"),
        (lambda v, x, p: pictures.learning_curves([{"epoch": 1}], p), "no finite bound"),
    ],
)
def test_wrong_requests_are_refused_in_one_sentence(call, says, tmp_path):
    with pytest.raises(RequestError, match=says) as error:
        call(build(), bits(6, 8, 8), tmp_path / "a.png")
    assert len(error.value.problems) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["traversals", "manifold", "interpolations"])
def test_latents_that_cannot_be_moved(name, tmp_path):
    vae, x = build(), bits(6, 8, 8)
    discrete = SimpleNamespace(prior=SimpleNamespace(support="discrete"))
    vae.spec = discrete
    with pytest.raises(RequestError, match=f"{name}: .*discrete"):
        CALLS[name](vae, x, tmp_path / "a.png")


def test_a_vae_that_diverged_is_refused(tmp_path):
    vae = build()
    with torch.no_grad():
        vae.decoder.body[1].bias[0] = math.nan
    for name in VAE_CALLS:
        with pytest.raises(RequestError, match="not finite"):
            CALLS[name](vae, bits(6, 8, 8), tmp_path / "a.png")


def test_a_failed_picture_leaves_the_old_file_and_the_old_state(tmp_path, monkeypatch):
    vae = build()
    path = pictures.samples(vae, tmp_path / "a.png", num=4)
    before, state = path.read_bytes(), torch.get_rng_state()

    def fail(*arguments, **options):
        raise OSError("disk full")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        pictures.samples(vae, path, num=9)
    monkeypatch.setattr(type(vae), "decode", fail)
    with pytest.raises(OSError, match="disk full"):
        pictures.samples(vae, path, num=9)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    assert torch.equal(torch.get_rng_state(), state)
    assert vae.training


def test_matplotlib_is_imported_only_to_draw(monkeypatch):
    for name in list(sys.modules):
        if name.startswith("pyro_vae.app.pictures"):
            monkeypatch.delitem(sys.modules, name)
        elif name.split(".")[0] == "matplotlib":
            monkeypatch.setitem(sys.modules, name, None)  # importing it would fail
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(pv.app, "pictures", pictures)  # what the import below replaces
    again = importlib.import_module("pyro_vae.app.pictures")
    assert again is not pictures
