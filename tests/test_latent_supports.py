"""VAEs whose latents are directions, proportions or codes, through the whole library."""

import math

import pytest
import torch

import inference
import pyro_vae as pv
from pyro_vae.data.digits import Digits
from pyro_vae.yaml_files import dump_yaml
from tests.exact_models import agrees
from tests.grids import triangle, whole_sphere
from tests.tiers import each

FISHER = {"name": "hyperspherical", "distribution": "von_mises_fisher"}
PAIRS = [
    ("hyperspherical", "power_spherical", 3),
    ("hyperspherical", "von_mises_fisher", 3),
    (FISHER, "power_spherical", 2),
    (FISHER, "von_mises_fisher", 5),
    ("dirichlet", "dirichlet", 4),
    ("dirichlet", "logistic_normal", 4),
    ({"name": "dirichlet", "learned": True}, "dirichlet", 3),
    ("logistic_normal", "logistic_normal", 4),
    ({"name": "logistic_normal", "learned": True}, "dirichlet", 3),
    ("categorical", "categorical", 1),
    ({"name": "categorical", "learned": True}, "categorical", 2),
    ("categorical", "categorical", 5),
    ("relaxed", "relaxed", 2),
    ({"name": "relaxed", "learned": True}, "relaxed", 1),
]


def label(value):
    if isinstance(value, dict):
        return "-".join(map(str, value.values()))
    return str(value)


@pytest.fixture(scope="module")
def digits():
    return Digits().load().train[:200]


def build(prior, guide, latent_dim, **fields):
    torch.manual_seed(0)
    small = pv.networks.MLP(hidden=(32,))
    return pv.VAE(
        data_shape=(8, 8),
        latent_dim=latent_dim,
        prior=prior,
        guide=guide,
        **{"encoder": small, "decoder": small, **fields},
    )


@pytest.mark.parametrize(("prior", "guide", "latent_dim"), PAIRS, ids=label)
def test_every_pair(prior, guide, latent_dim, digits):
    vae = build(prior, guide, latent_dim).initialize(digits)
    shape = vae.shapes.latent
    assert shape == vae.spec.prior.latent_shape(latent_dim)
    again = pv.VAESpec.from_dict(vae.spec.to_dict())
    assert again == vae.spec
    assert "prior" in dump_yaml(again.to_dict())

    before = inference.bound(vae.model, vae.guide, digits, num_samples=20).per_datum
    drawn = shape == (5, 10)  # too many codes to sum over: a score function, which is noisy
    result = inference.fit(
        vae.model, vae.guide, digits, epochs=30, batch_size=200,
        objective=inference.ELBO(num_particles=10 if drawn else 1),
        learning_rate=3e-3 if drawn else 1e-2, engine="eager", progress=False,
    )  # fmt: skip
    assert result.steps == 30
    gain = inference.bound(vae.model, vae.guide, digits, num_samples=20).per_datum - before
    assert float(gain.mean()) > 3 * float(gain.std()) / math.sqrt(len(gain))
    for name, parameter in vae.named_parameters():
        assert bool(parameter.isfinite().all()), name

    with torch.no_grad():
        for rows in (4, 1):
            x = digits[:rows]
            q = vae.encode(x)
            assert (q.batch_shape, q.event_shape) == ((rows,), shape)
            z = q.sample()
            assert bool(vae.prior.distribution().support.check(z).all())
            assert q.log_prob(z).shape == (rows,)
            assert vae.decode(z).log_prob(x).shape == (rows,)
            assert vae.decode(z.expand(3, *z.shape)).log_prob(x).shape == (3, rows)
            assert vae.latent_mean(x).shape == (rows, *shape)
            assert vae.generate(rows).shape == vae.reconstruct(x).shape == (rows, 8, 8)
            with torch.autocast("cpu", torch.bfloat16):
                q = vae.encode(x)
            z = q.sample()
            assert z.dtype == q.log_prob(z).dtype == torch.float32
            assert bool(q.support.check(z).all())
    for rows in (20, 1):
        found = inference.log_marginal(
            vae.model, vae.guide, digits[:rows],
            estimator=inference.Importance(num_samples=200), progress=False,
        )  # fmt: skip
        assert bool(found.value.isfinite().all())
        assert bool((found.std_error > 0).all())


@pytest.mark.parametrize(("prior", "guide", "latent_dim"), each(2, PAIRS, unpack=True), ids=label)
def test_traced_is_eager(prior, guide, latent_dim, digits):
    """`trace` holds the graph against the handlers; codes beyond counting are drawn eagerly."""
    vae = build(prior, guide, latent_dim).initialize(digits)
    if vae.shapes.latent == (5, 10):
        with pytest.raises(inference.Untraceable, match="score function"):
            inference.trace(vae.model, vae.guide, digits)
        return
    traced = inference.trace(vae.model, vae.guide, digits)
    wanted = {
        name.replace("guide_module", "guide").replace(".", "$$$", 1)
        for name, _ in vae.named_parameters()
    }
    assert set(traced.parameters) == wanted
    torch.manual_seed(1)
    one = traced(traced.parameters, digits)
    torch.manual_seed(1)
    two = traced(traced.parameters, digits)
    assert torch.equal(one, two)


# log p(x) against sums over the latents ---------------------------------------------------------

COVERED = [
    ("hyperspherical", "power_spherical", 2),
    pytest.param(FISHER, "von_mises_fisher", 3, marks=pytest.mark.slow),
    pytest.param("hyperspherical", "power_spherical", 3, marks=pytest.mark.slow),
    pytest.param("dirichlet", "dirichlet", 3, marks=pytest.mark.slow),
    pytest.param("logistic_normal", "dirichlet", 3, marks=pytest.mark.slow),
    ("dirichlet", "logistic_normal", 3),
    ({"name": "relaxed", "categories": 3}, {"name": "relaxed", "categories": 3}, 1),
]


def trained(prior, guide, latent_dim, digits):
    vae = build(prior, guide, latent_dim).initialize(digits)
    inference.fit(
        vae.model, vae.guide, digits, epochs=40, batch_size=100, learning_rate=5e-3,
        engine="eager", progress=False,
    )  # fmt: skip
    return vae.double()


@torch.no_grad()
def truth(vae, x):
    """log p(x) = log sum p(z) p(x|z) dz."""
    if vae.spec.prior.support == "sphere":
        z, volume = whole_sphere(vae.shapes.latent_dim, wide=200, high=80)
    else:
        z, volume = triangle(count=160)
        z = z.reshape(-1, *vae.shapes.latent)
    log_prior = vae.prior.distribution().log_prob(z) + volume.log()
    assert float(log_prior.logsumexp(0)) == pytest.approx(0.0, abs=1e-5)
    return torch.stack([
        (log_prior + vae.decode(z).log_prob(datum)).logsumexp(0) for datum in x
    ])  # fmt: skip


@pytest.mark.parametrize(("prior", "guide", "latent_dim"), COVERED, ids=label)
def test_evidence_on_the_weight_scale(prior, guide, latent_dim, digits):
    """E[p-hat / p] = 1 over 40 data, 5 SE, by importance and by chains; relative error below 5%.

    AIS goes through each support's map: the plane of a sphere, stick-breaking of a simplex.
    """
    vae = trained(prior, guide, latent_dim, digits)
    x = digits[:40].double()
    exact = truth(vae, x)
    for estimator in (inference.Importance(num_samples=2000), inference.AIS(num_temperatures=20)):
        found = inference.log_marginal(vae.model, vae.guide, x, estimator=estimator, progress=False)
        ratio = (found.value - exact).exp()
        error = ratio.std() / math.sqrt(len(ratio))
        assert agrees(ratio.mean(), 1.0, error, ceiling=0.05)
    # The wrong twin: a density that is off by the constant of another measure.
    assert not agrees(0.5 * ratio.mean(), 1.0, error)


# Refusals ---------------------------------------------------------------------------------------

REFUSED = [
    (
        {"prior": "hyperspherical", "guide": "mean_field"},
        r"prior 'hyperspherical' has sphere latents and guide 'mean_field' real ones; guides that "
        r"fit: power_spherical, von_mises_fisher$",
    ),
    (
        {"prior": "standard_normal", "guide": "power_spherical"},
        r"prior 'standard_normal' has real latents and guide 'power_spherical' sphere ones",
    ),
    (
        {"prior": "dirichlet", "guide": "relaxed"},
        r"prior 'dirichlet' has simplex latents .* guides that fit: dirichlet, logistic_normal$",
    ),
    (
        {"prior": "categorical", "guide": {"name": "relaxed"}},
        r"prior 'categorical' has one_hot latents .* guides that fit: categorical$",
    ),
    (
        {"prior": {"name": "relaxed", "categories": 4}, "guide": "relaxed", "latent_dim": 2},
        r"a latent of prior 'relaxed' has shape \(2, 4\), and one of guide 'relaxed' \(2, 10\); "
        r"give both the same fields$",
    ),
    (
        {"prior": "hyperspherical", "guide": "power_spherical", "latent_dim": 1},
        r"latent_dim 1 is too small for prior 'hyperspherical', whose sphere latents need 2",
    ),
    ({"prior": "vamp", "guide": "power_spherical"}, r"prior 'vamp' has real latents"),
]


@pytest.mark.parametrize(("fields", "said"), REFUSED, ids=[str(f) for f, _ in REFUSED])
def test_what_does_not_fit_is_refused(fields, said):
    with pytest.raises(pv.SpecError, match=said) as caught:
        pv.VAESpec(**fields)
    assert len(str(caught.value).splitlines()) == 1


def test_an_encoder_without_a_direction():
    """Zero outputs are no direction; a unit vector stands in, with finite gradients."""
    vae = build("hyperspherical", "power_spherical", 4)
    with torch.no_grad():
        for parameter in vae.guide_module.parameters():
            parameter.zero_()
    q = vae.encode(torch.zeros(3, 8, 8))
    torch.testing.assert_close(q.loc, torch.full((3, 4), 0.5))
    q.rsample().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in vae.guide_module.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("prior", "guide", "latent_dim"), [
    ("hyperspherical", "power_spherical", 3), ("hyperspherical", "von_mises_fisher", 3),
    ("dirichlet", "dirichlet", 4), ("logistic_normal", "logistic_normal", 4),
    ("categorical", "categorical", 2), ("relaxed", "relaxed", 2),
], ids=label)  # fmt: skip
def test_compiled_is_eager(prior, guide, latent_dim, digits):
    found = {}
    for engine in ("eager", "compiled"):
        vae = build(prior, guide, latent_dim).initialize(digits)
        result = inference.fit(
            vae.model, vae.guide, digits, epochs=6, batch_size=100, engine=engine, progress=False
        )
        assert result.engine == engine
        found[engine] = [row["train_bound"] for row in result.history]
    assert found["compiled"] == pytest.approx(found["eager"], abs=1e-4)
