"""Simulation-based calibration: exact guides pass at the stated rate, wrong ones are named."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal

import inference
import pyro_vae as pv
from inference.diagnostics.ranks import band, ecdf, holm, rank, uniformity
from pyro_vae.app.pictures.calibration import draw_calibration
from tests.exact_models import linear_gaussian
from tests.small_pairs import line_data


def calibration(pair, x, **options):
    options = {"num_data": 500, "num_draws": 39, **options}
    return inference.calibration(*pair, x, progress=False, **options)


def methods(pair):
    return pair.model, pair.guide


# Ranks and their tests -------------------------------------------------------------------------


def uniform_ranks(num_data, num_units, num_draws, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(num_draws + 1, (num_data, num_units), generator=generator)


def test_false_alarms_of_each_test_come_at_the_stated_rate():
    tests = uniformity(uniform_ranks(400, 4000, 31), 31)
    for name in ("p_chi_square", "p_bias", "p_spread"):
        p = getattr(tests, name)
        for level in (0.01, 0.05, 0.3):
            error = math.sqrt(level * (1 - level) / 4000)
            # Chi-square's distribution is that of many data; 0.01 is what it is off by at most.
            assert abs(float((p < level).double().mean()) - level) < 5 * error + 0.005, name


def test_statistics_are_those_of_their_definitions():
    ranks = torch.tensor([[0, 3], [0, 3], [1, 4], [4, 0]])
    tests = uniformity(ranks, 4)
    normal = torch.distributions.Normal(0.0, 1.0)
    scores = normal.icdf((torch.arange(5).double() + 0.5) / 5)
    bias = scores[ranks].mean(0) / (scores.std(correction=0) / 2)
    assert torch.allclose(tests.bias, bias)
    # Two bins for so few data: ranks 0-2 and 3-4, of which 2.4 and 1.6 are expected.
    expected = torch.tensor([2.4, 1.6])
    chi = [((torch.tensor(c) - expected) ** 2 / expected).sum() for c in ([3.0, 1], [1.0, 3])]
    assert tests.chi_square.tolist() == pytest.approx([float(c) for c in chi])


@pytest.mark.parametrize("num_draws", [9, 99])
@pytest.mark.parametrize("shift", [0.0, 0.5, -1.5, 3.0])
def test_spread_is_not_moved_by_a_shift(num_draws, shift):
    """z-scores under shifts alone are standard normal; the distance from the middle is not."""
    generator = torch.Generator().manual_seed(0)
    true = shift + torch.randn(500, 2000, generator=generator)
    share = torch.special.ndtr(true.double())
    ranks = torch.binomial(torch.full_like(share, num_draws), share, generator=generator).long()
    spread = uniformity(ranks, num_draws).spread
    assert abs(float(spread.mean())) < 0.15
    assert 0.9 < float(spread.std()) < 1.12
    distance = (ranks - num_draws / 2).abs().double()
    expected = (torch.arange(num_draws + 1) - num_draws / 2).abs().double()
    z = (distance.mean(0) - expected.mean()) / expected.std(correction=0) * math.sqrt(500)
    assert (abs(float(z.mean())) > 1) == (shift != 0)


def test_bins_of_unequal_size_are_expected_unequal():
    """33 ranks do not divide into 20 bins; equal expectations would be wrong."""
    ranks = uniform_ranks(20_000, 200, 32)
    p = uniformity(ranks, 32).p_chi_square
    assert 0.01 < float((p < 0.05).double().mean()) < 0.12
    bins = torch.nn.functional.one_hot(torch.arange(33) * 20 // 33)[ranks].sum(0).double()
    equal = ((bins - 1000).square() / 1000).sum(-1)
    assert float((equal > 60).double().mean()) == 1  # chi-square of 19 degrees: p < 1e-5


def test_holm_by_hand_and_by_simulation():
    p = torch.tensor([[0.01, 0.04], [0.03, 0.005]])
    assert holm(p).flatten().tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    torch.manual_seed(0)
    several = torch.stack([holm(p) for p in torch.rand(4000, 30)])
    rate = float((several.amin(1) < 0.05).double().mean())
    assert abs(rate - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 4000)


def test_equal_values_take_places_at_random():
    torch.manual_seed(0)
    ranks = rank(torch.ones(30_000), torch.tensor([0.0, 1, 1, 2]).unsqueeze(1))
    counts = torch.bincount(ranks, minlength=5)
    assert counts[[0, 4]].tolist() == [0, 0]
    assert ((counts[1:4] - 10_000).abs() < 5 * math.sqrt(30_000 * 2 / 9)).all()
    assert rank(torch.tensor(0.5), torch.tensor([0.1, 0.2, 0.9])) == 2


def test_the_band_holds_all_points_at_the_stated_rate():
    """At once; a pointwise band of the same level does not."""
    held = band(200, 39, 0.9)
    curves = ecdf(uniform_ranks(200, 5000, 39, seed=5), 39).numpy()  # [40, 5000]
    tiny = 1e-12
    inside = (curves >= held.low[:, None] - tiny) & (curves <= held.high[:, None] + tiny)
    share = inside.all(0).mean()
    assert 0.9 - 5 * math.sqrt(0.09 / 5000) < share < 0.93
    pointwise = 1.645 * np.sqrt(held.points * (1 - held.points) / 200)
    assert (np.abs(curves) <= pointwise[:, None] + tiny).all(0).mean() < 0.7
    assert curves[-1] == pytest.approx(0)
    assert band(200, 39, 0.9) is held
    assert held.low[:-1] == pytest.approx(-held.high[:-1][::-1])  # as ranks are, if reversed
    wider = band(200, 39, 0.99).high
    assert (wider >= held.high).all()
    assert (wider > held.high).mean() > 0.9


# Exact posteriors ------------------------------------------------------------------------------


def test_an_exact_guide_passes_at_the_stated_rate():
    pair = linear_gaussian(L=2, seed=1)
    x = pair.sample(3)
    runs = [calibration(methods(pair), x, num_data=100, seed=seed) for seed in range(60)]
    alarms = sum(run.num_failed > 0 for run in runs)
    assert alarms <= 9  # 3 are expected; more than 9 has probability 2e-3 at a rate of 0.05
    for name in ("p_bias", "p_spread"):
        p = torch.cat([getattr(run.tests, name) for run in runs])  # 120
        assert abs(float(p.mean()) - 0.5) < 5 * math.sqrt(1 / 12 / 120)
        assert float(p.max()) > 0.9
    ranks = torch.cat([run.ranks for run in runs])  # 6000, all seeds apart
    assert float(uniformity(ranks, 39).p_chi_square.min()) > 1e-4
    assert int(ranks.min()) == 0
    assert int(ranks.max()) == 39


def test_ranks_that_are_off_by_one_are_caught():
    """z* counted among its own draws, or ranks from 1."""
    pair = linear_gaussian(L=2, seed=1)
    found = calibration(methods(pair), pair.sample(3), num_data=4000, num_draws=19)
    assert found.num_failed == 0
    for wrong, num_draws in ((found.ranks + 1, 20), ((found.ranks + 1).clamp_max(19), 19)):
        tests = uniformity(wrong, num_draws)
        p = torch.stack([tests.p_chi_square, tests.p_bias, tests.p_spread])
        assert (holm(p).amin(0) < 0.05).all()


@pytest.mark.parametrize(
    ("options", "verdict"),
    [
        ({"stretch": 0.6}, "too narrow"),
        ({"stretch": 1.7}, "too wide"),
        ({"delta": 0.4}, "too high"),
        ({"delta": -0.4}, "too low"),
        ({"delta": 0.5, "stretch": 0.5}, "too narrow and too high"),
    ],
)
def test_wrong_guides_are_named(options, verdict):
    pair = linear_gaussian(L=2, seed=1, **options)
    found = calibration(methods(pair), pair.sample(3), num_data=1000)
    assert found.verdicts == (verdict, verdict)
    assert found.failed.all()
    assert f"z[0] {verdict}" in str(found)
    assert found.summary()["failed"] == {"z[0]": verdict, "z[1]": verdict}
    # The picture's claim: where a curve lies tells what is wrong.
    curve = found.ecdf()
    left, right = curve[:20].mean(0), curve[20:].mean(0)
    if "high" in verdict or "low" in verdict:
        assert (((left + right) > 0) == ("high" in verdict)).all()
    else:
        assert ((left > 0) == ("narrow" in verdict)).all()
        assert ((right < 0) == ("narrow" in verdict)).all()
    held = found.band()
    assert (curve.numpy() > held.high[:, None]).any() or (curve.numpy() < held.low[:, None]).any()


def test_one_wrong_unit_among_many_is_found_and_the_rest_are_not_blamed():
    size = 20
    scales = torch.ones(size).double() * math.sqrt(0.5)
    scales[7] *= 0.7

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(size).double(), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scales).to_event(1))

    found = calibration((model, guide), torch.zeros(2, size).double(), num_data=1000)
    assert found.failed.nonzero().flatten().tolist() == [7]
    assert found.verdicts[7] == "too narrow"


def test_a_guide_that_ignores_x_is_not_seen():
    """As the documentation says: ranks among draws of the prior are uniform, too."""
    pair = linear_gaussian(L=2, seed=1)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", pair.prior())

    assert calibration((pair.model, guide), pair.sample(3)).num_failed == 0


# Other pairs -----------------------------------------------------------------------------------


def test_covariates_are_kept_and_the_rest_simulated():
    """y = x + z + noise of sd 0.5: z|y ~ N(0.8 (y - x), 0.2)."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x + z, 0.5), obs=y)

    def guide_of(gain):
        def guide(x, y):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(gain * (y - x), 0.2**0.5))

        return guide

    assert calibration((model, guide_of(0.8)), line_data(37)).num_failed == 0
    assert calibration((model, guide_of(0.3)), line_data(37)).verdicts == ("too narrow",)


def test_positive_and_simplex_latents():
    """Gamma-Poisson and Dirichlet-multinomial: both posteriors are exact."""

    def model(n, k):
        with pyro.plate("data", len(n)):
            rate = pyro.sample("rate", dist.Gamma(torch.tensor(2.0), 1.0))
            shares = pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
            pyro.sample("n", dist.Poisson(rate), obs=n)
            pyro.sample("k", dist.Multinomial(10, shares), obs=k)

    def guide(n, k, power=1.0):
        with pyro.plate("data", len(n)):
            pyro.sample("rate", dist.Gamma(2 + n, 2.0))
            pyro.sample("shares", dist.Dirichlet(1 + power * k))

    data = torch.ones(5), torch.tensor([[3.0, 3, 4]]).repeat(5, 1)
    found = calibration((model, guide), data)
    assert found.num_failed == 0
    assert found.units == ("rate", "shares[0]", "shares[1]", "shares[2]")
    wrong = calibration((model, lambda n, k: guide(n, k, 3.0)), data)
    assert wrong.failed.tolist() == [False, True, True, True]
    assert wrong.verdicts[1] == "too narrow"


def discrete():
    """k in 0..2 behind two coins: p(k|x) is known; marked sites of the guide are drawn."""
    heads = torch.tensor([0.2, 0.5, 0.8])
    prior = torch.tensor([0.5, 0.3, 0.2])

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(prior))
            pyro.sample("x", dist.Binomial(2, heads[k]), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            each = dist.Binomial(2, heads).log_prob(x.unsqueeze(-1)) + prior.log()
            pyro.sample("k", dist.Categorical(logits=each))

    return model, guide


def test_discrete_latents_need_their_ties_broken(monkeypatch):
    model, guide = discrete()
    x = torch.tensor([0.0, 1.0, 2.0])
    assert calibration((model, guide), x, num_data=1000).num_failed == 0
    monkeypatch.setattr(
        "inference.diagnostics.calibration.rank", lambda true, draws: (draws < true).sum(0)
    )
    assert calibration((model, guide), x, num_data=1000).num_failed == 1


@pytest.mark.parametrize("folded", [False, True])
def test_inner_plates_several_sites_and_folded_networks(folded):
    """a ~ N(0, 1) and b_1..3 ~ N(a, 1), x_i = b_i + noise: exact Gaussian posteriors, site by site.

    a|x ~ N(m, 1/(1 + 3/2)) with m = sum(x)/2/(2.5), for x_i|a ~ N(a, 2); b_i|a, x_i ~
    N((a + x_i)/2, 1/2).
    """

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(torch.zeros(1, 1), 1.0))
            with pyro.plate("inner", 3, dim=-1):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                loc = b.view(len(x), 3) if folded else b
                pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide_of(scale):
        def guide(x):
            with pyro.plate("data", len(x), dim=-2):
                a = pyro.sample("a", dist.Normal(x.sum(-1, keepdim=True) / 5, 0.4**0.5))
                with pyro.plate("inner", 3, dim=-1):
                    scales = torch.tensor([1.0, scale, 1.0]) * 0.5**0.5
                    pyro.sample("b", dist.Normal((a + x) / 2, scales))

        return guide

    found = calibration((model, guide_of(1.0)), torch.randn(7, 3))
    assert found.num_failed == 0
    assert found.units == ("a", "b[0]", "b[1]", "b[2]")
    wrong = calibration((model, guide_of(0.4)), torch.randn(7, 3))
    assert wrong.failed.tolist() == [False, False, True, False]


def test_ours_and_flows():
    torch.manual_seed(0)
    x = (torch.rand(20, 6) > 0.5).float()
    small = {"name": "mlp", "hidden": (8,)}
    for options in ({"guide": "iaf"}, {"prior": "vamp"}):
        fields = {"data_shape": (6,), "latent_dim": 3, "encoder": small, "decoder": small}
        vae = pv.VAE(**fields, **options).initialize(x)
        found = calibration((vae.model, vae.guide), x, num_data=200)
        assert found.ranks.shape == (200, 3)


# What is left behind, tiles, and refusals ------------------------------------------------------


def test_nothing_is_left_behind_and_seeds_repeat(monkeypatch):
    pair = linear_gaussian(L=2, seed=1)
    x = pair.sample(3)
    state = torch.get_rng_state()
    first, second = calibration(methods(pair), x, seed=1), calibration(methods(pair), x, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.ranks, second.ranks)
    assert not torch.equal(first.ranks, calibration(methods(pair), x, seed=2).ranks)
    assert first.ranks.shape == (500, 2)
    assert set(first.arrays()) >= {"ranks", "p_value", "failed", "p_bias"}
    # Small tiles and blocks: other draws, the same answer.
    monkeypatch.setattr("inference.diagnostics.calibration.SIMULATED_AT_ONCE", 70)
    monkeypatch.setitem(inference.tiles.TILE_NUMBERS, "cpu", 2000)
    assert calibration(methods(pair), x).num_failed == 0
    narrow = linear_gaussian(L=2, seed=1, stretch=0.5)
    assert calibration(methods(narrow), x).num_failed == 2


def test_requests_that_make_no_sense_are_refused():
    pair = linear_gaussian(L=2, seed=1)
    x = pair.sample(30)
    with pytest.raises(inference.RequestError, match=r"num_data: got 5; expected .* at least 50"):
        calibration(methods(pair), x, num_data=5)
    with pytest.raises(inference.RequestError, match="num_draws: got 0"):
        calibration(methods(pair), x, num_draws=0)
    with pytest.raises(inference.PairError, match="no site stands in a plate called 'rows'"):
        calibration(methods(pair), x, plate="rows")

    def hidden(x):
        pair.model(2 * x)

    with pytest.raises(inference.PairError, match="none of the arguments"):
        calibration((hidden, pair.guide), x)

    def broken(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.q(x))
            return z

    found = calibration((pair.model, broken), x)
    assert found.num_failed == 0

    def locals_(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(locals_)
    data = torch.randn(60)
    with pytest.raises(inference.RequestError, match="num_data: got 500; the pair takes 60 data"):
        calibration((locals_, guide), data)
    assert calibration((locals_, guide), data, num_data=60).ranks.shape == (60, 1)


@pytest.mark.parametrize("stretch", [None, 0.5])
def test_picture(stretch, tmp_path):
    pair = linear_gaussian(L=2, seed=1, stretch=stretch)
    found = calibration(methods(pair), pair.sample(3))
    path = draw_calibration(found, tmp_path / "a.png")
    again = draw_calibration(found, str(tmp_path / "b.png"))
    assert path.read_bytes() == again.read_bytes()
    assert len(path.read_bytes()) > 5000
