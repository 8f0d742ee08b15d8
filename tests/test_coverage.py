"""How often 0.95 intervals cover the exact log p(x), and what flags say, on data drawn afresh.

Linear-Gaussian models whose guide is shifted by some posterior standard deviations and has a scale
of its own. Data are never chosen by what an estimate says of them, but by what is exact.
"""

import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import t

import inference
from inference.evidence import annealed, auto
from inference.evidence.ais import AIS, Weighed, of_chains
from tests.exact_models import linear_gaussian

LOW, HIGH = 0.90, 0.98


def cell(num_latents, shift, scale):
    """A mean-field guide, `shift` posterior sd away in all, `scale` times as wide as the best."""
    pair = linear_gaussian(seed=1, D=num_latents + 5, L=num_latents)
    sd = (1 / torch.diagonal(pair.A)).sqrt()
    S = torch.diag(scale**2 * sd.square())
    return replace(pair, S=S, delta=shift / math.sqrt(num_latents) * sd)


def estimated(pair, x, estimator, seed=5):
    return inference.log_marginal(
        pair.model, pair.guide, x, estimator=estimator, seed=seed, engine="eager", progress=False
    )


def covers(found, truth):
    lower, upper = found.interval()
    return ((truth >= lower) & (truth <= upper)).double()


def far_off(found, truth):
    """Errors beyond 0.3 nat and 4 of those that are reported."""
    error = (found.value - truth).abs()
    return (error > 0.3) & ~(error <= 4 * found.std_error)


def test_chains_cover_where_raw_spreads_would_not():
    """A narrow guide, few temperatures: what looks calm by chance is not taken at its word.

    The twin takes each datum's own spread for its flag and its error.
    """
    pair = cell(2, 0.5, 0.3)
    x = pair.sample(1500, seed=8)
    truth = pair.log_px(x)
    found = estimated(pair, x, inference.AIS(num_temperatures=60))
    calm = ~found.flagged
    assert float(calm.double().mean()) > 0.8
    assert LOW <= float(covers(found, truth)[calm].mean()) <= HIGH


def test_the_twin_with_raw_spreads_fails(monkeypatch):
    from inference.evidence import ais

    monkeypatch.setattr(ais, "moderated", lambda variance, degrees: (variance, degrees))
    pair = cell(2, 0.5, 0.3)
    x = pair.sample(1500, seed=8)
    truth = pair.log_px(x)
    found = estimated(pair, x, inference.AIS(num_temperatures=60))
    calm = found.spread <= 0.6
    half = float(t.ppf(0.975, 15)) * found.std_error
    twin = ((truth - found.value).abs() <= half).double()
    assert float(twin[calm].mean()) < LOW


SCALES = (0.3, 0.6, 1.0, 1.7, 3.0)
CELLS = [(2, s, c) for s in (0.5, 2.0, 5.0) for c in SCALES]
CELLS += [(10, s, c) for s in (0.5, 5.0) for c in (0.3, 1.0, 3.0)]


@pytest.mark.slow
@pytest.mark.parametrize("shape", CELLS, ids=str)
def test_coverage_of_chains(shape):
    """AIS and SMC: wherever enough is unflagged to tell."""
    pair = cell(*shape)
    x = pair.sample(2000, seed=8)
    truth = pair.log_px(x)
    for estimator in (inference.AIS(num_temperatures=150), inference.SMC(num_temperatures=40)):
        found = estimated(pair, x, estimator)
        calm = ~found.flagged
        if int(calm.sum()) >= 400:
            assert LOW <= float(covers(found, truth)[calm].mean()) <= HIGH, estimator.name
        if shape in ((2, 0.5, 1.0), (2, 2.0, 1.0)):
            assert float(calm.double().mean()) > 0.8


SHORT_OF = pytest.mark.xfail(strict=True, reason="0.85: own spreads of 16 chains are noisy")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [pytest.param(inference.AIS, marks=SHORT_OF), inference.SMC])
def test_coverage_of_a_few_poor_data_among_calm_ones(kind):
    """What makes errors of few chains less noisy must not lend the calm data's to the poor ones."""
    pair = cell(2, 0.0, 1.0)
    poor = cell(2, 0.5, 0.5)
    x = pair.sample(4000, seed=8)
    few = torch.arange(len(x)) % 50 == 0  # whichever the seed, chosen by what is exact
    truth = pair.log_px(x)
    covered, calm = [], []
    for seed in range(5):

        def guide(x, few):
            with pyro.plate("data", len(x)):
                loc = pair.mean(x) + few[:, None] * poor.shift
                scale = torch.where(few[:, None], poor.S.diagonal(), pair.S.diagonal()).sqrt()
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

        temperatures = 50 if kind is inference.AIS else 25
        found = inference.log_marginal(
            lambda x, few: pair.model(x),
            guide,
            (x, few),
            estimator=kind(num_temperatures=temperatures),
            seed=seed,
            engine="eager",
            progress=False,
        )
        covered.append(covers(found, truth)[few])
        calm.append(~found.flagged[few])
    covered, calm = torch.cat(covered), torch.cat(calm)
    if int(calm.sum()) >= 100:
        assert float(covered[calm].mean()) >= LOW
    assert float(covered.mean()) >= LOW


@pytest.mark.slow
@pytest.mark.parametrize("kind", [inference.AIS, inference.SMC])
def test_chains_flag_what_is_far_off(kind):
    """Of data far off at least 95% are flagged; of cells with a small spread at most 5%."""
    bad = flagged = 0
    for shape in CELLS:
        pair = cell(*shape)
        x = pair.sample(1000 if kind is inference.AIS else 500, seed=9)
        truth = pair.log_px(x)
        for temperatures in (12, 25, 100) if kind is inference.AIS else (6, 12, 40):
            found = estimated(pair, x, kind(num_temperatures=temperatures))
            off = far_off(found, truth)
            bad, flagged = bad + int(off.sum()), flagged + int((off & found.flagged).sum())
            spread = float(found.spread.square().mean().sqrt())  # data of a cell are alike
            if spread <= 0.4:
                assert float(found.flagged.double().mean()) <= 0.05, shape
    assert bad > 100
    assert flagged >= 0.95 * bad, (flagged, bad)


@pytest.mark.slow
def test_importance_flags_and_coverage():
    """By exact k and exact ESS: good cells cover and are seldom flagged; what is far off is."""
    bad = flagged = good = 0
    for shape in [*CELLS, (2, 0.0, 1.2), (2, 0.3, 1.0), (2, 1.0, 1.2)]:
        pair = cell(*shape)
        x = pair.sample(2000, seed=8)
        truth = pair.log_px(x)
        found = estimated(pair, x, inference.Importance(num_samples=5000))
        if pair.khat() <= 0.3 and pair.ess_share() >= 0.1:
            good += 1
            assert LOW <= float(covers(found, truth).mean()) <= HIGH, shape
            assert float(found.flagged.double().mean()) <= 0.05, shape
        off = far_off(found, truth)
        bad, flagged = bad + int(off.sum()), flagged + int((off & found.flagged).sum())
    assert good >= 4
    assert bad > 100
    assert flagged >= 0.95 * bad


AUTO = [(2, 0.5, 1.0), (2, 0.5, 0.8), (2, 0.0, 0.6), (2, 0.0, 0.4), (5, 0.3, 1.5), (10, 0.5, 1.5)]


def auto_cell(num_latents, shift, scale):
    """With two latents, `scale` times the posterior's own covariance: exact k = 1 - scale^2."""
    pair = cell(num_latents, shift, scale)
    return replace(pair, S=scale**2 * pair.V) if num_latents == 2 else pair


@pytest.mark.slow
def test_coverage_of_auto_and_of_its_twin():
    """Exact k from 0 to 0.9: of all data, and of those that stay with importance where enough do.

    The twin reports the draws that chose.
    """
    twins = []
    for shape in AUTO:
        pair = auto_cell(*shape)
        x = pair.sample(4000, seed=8)
        truth = pair.log_px(x)
        found = estimated(pair, x, inference.Auto())
        covered = covers(found, truth)
        assert LOW <= float(covered.mean()) <= HIGH, shape
        stayed = found.by == 0
        if int(stayed.sum()) < 200:
            continue
        assert LOW <= float(covered[stayed].mean()) <= HIGH, shape
        look = estimated(pair, x, inference.Importance(num_samples=1000), seed=77)
        good = (look.khat <= auto.GOOD_KHAT) & (look.ess >= auto.GOOD_SHARE * 1000)
        twins.append(float(covers(look, truth)[good].mean()))
    assert len(twins) >= 2
    assert min(twins) < 0.8


def funnel(y):
    """m ~ N(0, 1), s ~ HalfNormal(1), e_i ~ N(m, s), y_i ~ N(e_i, 1/2): a guide that leaves out
    small s, and log p(y) by an integral over s."""

    def model(y):
        with pyro.plate("data", len(y)):
            m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            s = pyro.sample("s", dist.HalfNormal(torch.ones((), dtype=torch.float64)))
            loc = m[..., None] + torch.zeros(4, dtype=torch.float64)
            e = pyro.sample("e", dist.Normal(loc, s[..., None]).to_event(1))
            pyro.sample("y", dist.Normal(e, 0.5).to_event(1), obs=y)

    def guide(y):
        mean = y.mean(-1)
        with pyro.plate("data", len(y)):
            pyro.sample("m", dist.Normal(0.8 * mean, 0.4))
            pyro.sample("s", dist.LogNormal(y.std(-1).log().clamp_min(-0.7), 0.3))
            pyro.sample("e", dist.Normal(0.8 * y + 0.15 * mean[:, None], 0.4).to_event(1))

    s = torch.linspace(1e-4, 6, 4001, dtype=torch.float64)
    eye, ones = torch.eye(4, dtype=torch.float64), torch.ones(4, 4, dtype=torch.float64)
    covariance = (s.square() + 0.25)[:, None, None] * eye + ones
    given = dist.MultivariateNormal(torch.zeros(4).double(), covariance).log_prob(y[:, None])
    heights = given + dist.HalfNormal(torch.ones((), dtype=torch.float64)).log_prob(s)
    return model, guide, heights.logsumexp(1) + torch.log(s[1] - s[0])


@pytest.mark.slow
def test_what_flags_do_not_see_and_the_sandwich_does():
    """Chains that begin at a guide without the funnel's neck look calm, and are too low."""
    torch.manual_seed(0)
    m, s = torch.randn(400, 1).double(), torch.randn(400, 1).double().abs()
    y = m + s * torch.randn(400, 4).double() + 0.5 * torch.randn(400, 4).double()
    model, guide, truth = funnel(y)
    own = {"seed": 3, "engine": "eager", "progress": False}
    found = inference.log_marginal(model, guide, y, estimator=inference.AIS(), **own)
    calm = ~found.flagged
    assert float(calm.double().mean()) > 0.8
    assert float(covers(found, truth)[calm].mean()) < 0.8
    bounds = inference.log_marginal(
        model, guide, y, estimator=inference.Sandwich(num_data=400), **own
    )
    assert bounds.gap > max(0.1, 3 * bounds.gap_std_error)
    elsewhere = inference.AIS(start="prior", num_temperatures=400)
    found = inference.log_marginal(model, guide, y, estimator=elsewhere, **own)
    assert float(covers(found, truth)[~found.flagged].mean()) >= LOW


def test_limits_are_those_of_the_documentation():
    assert (annealed.MAX_SPREAD, annealed.MAX_OWN_SPREAD) == (0.65, 0.8)
    assert (auto.GOOD_KHAT, auto.GOOD_SHARE) == (0.3, 0.1)


@pytest.mark.parametrize("spread", [0.8, 1.0])
def test_a_datum_alone_is_flagged_where_its_chains_may_be_calm_by_chance(spread):
    """Nothing moderates the spread of fewer than ten data; the twin takes 0.65 as for many."""
    torch.manual_seed(0)
    log_w = spread * torch.randn(16, 4000, dtype=torch.float64)
    found = of_chains(log_w, torch.ones(4000).double(), torch.zeros(4000).double())
    unflagged = [
        AIS().errors(Weighed(*(part[row : row + 1] for part in found))).calm for row in range(4000)
    ]
    assert float(torch.cat(unflagged).double().mean()) <= 0.06
    twin = found.spread <= annealed.MAX_SPREAD
    assert float(twin.double().mean()) > (0.1 if spread == 0.8 else 0.02)
