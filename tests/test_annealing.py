"""AIS and SMC against models whose log p(x) is known, and twins of them that are wrong."""

import itertools
import math
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from inference.evidence import smc
from inference.evidence.ais import anneal
from inference.evidence.hmc import Chains, Moved
from inference.evidence.tempering import Tuned, same_moves, schedule
from tests.exact_models import agrees, linear_gaussian


def poor(seed=1, L=2, dtype=torch.float64, shift=0.7):
    """A linear model with a mean-field guide that is shifted, too."""
    pair = linear_gaussian(seed=seed, L=L, dtype=dtype)
    S = torch.diag(1 / torch.diagonal(pair.A))
    return replace(pair, S=S, delta=shift * S.diagonal().sqrt())


def log_px(pair, x, estimator, seed=0, **options):
    return inference.log_marginal(
        pair.model, pair.guide, x, estimator=estimator, seed=seed, progress=False, **options
    )


STARTS = [
    inference.AIS(num_temperatures=20),
    inference.AIS(num_temperatures=20, space="latent"),
    inference.AIS(num_temperatures=20, start="gaussian"),
    inference.AIS(num_temperatures=60, start="prior"),
    inference.SMC(num_temperatures=10),
    inference.SMC(num_temperatures=25, start="prior"),
]


@pytest.mark.parametrize("estimator", STARTS, ids=str)
def test_unbiased_on_the_weight_scale(estimator):
    pair = poor()
    x = pair.sample(600, seed=5)
    truth = pair.log_px(x)
    found = log_px(pair, x, estimator)
    ratio = (found.value - truth).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.01)
    assert agrees(found.mean, float(truth.mean()), found.mc_std_error, ceiling=0.02)


class Exact:
    """A walk whose steps draw from f_beta itself: the tempered posterior of a linear model."""

    def __init__(self, pair, x):
        self.pair, self.x = pair, x

    def chains(self, u):
        likelihood = self.pair.likelihood(u).log_prob(self.x)
        prior = self.pair.prior().log_prob(u)
        nothing = torch.zeros_like(u)
        return Chains(u, nothing, prior, prior + likelihood, nothing, nothing)

    def draw(self, beta, num_chains):
        pair = self.pair
        eye = torch.eye(pair.num_latents, dtype=torch.float64)
        A = eye + beta * pair.W.T @ (pair.W / pair.psi[:, None])
        m = beta * ((self.x - pair.mu) / pair.psi) @ pair.W @ torch.linalg.inv(A)
        root = torch.linalg.cholesky(torch.linalg.inv(A))
        return m + torch.randn(num_chains, *m.shape, dtype=torch.float64) @ root.T

    def begin(self, data, num_chains):
        return self.chains(self.draw(0.0, num_chains))

    def move(self, chains, beta, tuned, data):
        u = self.draw(float(beta[0]), len(chains.u))
        return Moved(self.chains(u), torch.ones_like(chains.start))


def unbiased(log_w, truth):
    ratio = (log_w - truth).exp().flatten()
    return agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(ratio)), ceiling=0.02)


def test_weights_of_exact_steps():
    """Without MCMC error: the increments alone. One temperature late is wrong."""
    pair = linear_gaussian(seed=2, L=2)
    x = pair.sample(50, seed=1)
    torch.manual_seed(0)
    walk, truth = Exact(pair, x), pair.log_px(x)
    betas = (torch.linspace(0, 1, 41, dtype=torch.float64) ** 4).unsqueeze(1).expand(-1, len(x))
    log_w, _, bound = anneal(walk, (), None, betas, 2000)
    assert unbiased(log_w, truth)
    prior = pair.likelihood(walk.draw(0.0, 20_000)).log_prob(x)
    assert agrees(bound, prior.mean(0), prior.std(0) * (1 / 2000 + 1 / 20_000) ** 0.5)
    late, chains = torch.zeros(2000, len(x), dtype=torch.float64), walk.begin((), 2000)
    for before, beta in itertools.pairwise(betas):
        chains = walk.move(chains, beta, None, ()).chains
        late = late + (beta - before) * chains.log_ratio
    assert not unbiased(late, truth)


def test_smc_of_exact_steps_and_its_error(monkeypatch):
    """The genealogy's variance is that of replications; that of the last weights is too small."""
    pair = linear_gaussian(seed=2, L=2)
    x = pair.sample(1, seed=1).expand(4000, -1)
    torch.manual_seed(0)
    walk, truth = Exact(pair, x), pair.log_px(x)
    betas = (torch.linspace(0, 1, 9, dtype=torch.float64) ** 3).unsqueeze(1).expand(-1, len(x))
    kept = []
    real = smc.relative_variance

    def spy(weight, eve, resamplings):
        kept.append((weight, resamplings, real(weight, eve, resamplings)))
        return kept[-1][-1]

    monkeypatch.setattr(smc, "relative_variance", spy)
    found = smc.sequential(walk, (), None, betas, 32, 0.9)
    ((weight, resamplings, variance),) = kept
    assert float(resamplings.mean()) > 1.5
    ratio = (found.value - truth).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.02)
    assert float(variance.mean()) == pytest.approx(float(ratio.var()), rel=0.1)
    naive = (32 * weight.square().sum(0) - 1) / 31
    assert float(naive.mean()) < 0.5 * float(ratio.var())


def test_resampling_keeps_shares():
    weight = torch.tensor([0.5, 0.2, 0.3, 0.0], dtype=torch.float64).unsqueeze(1)
    torch.manual_seed(0)
    drawn = smc.resampled(weight.expand(-1, 20_000), torch.rand(4, 20_000, dtype=torch.float64))
    counts = torch.stack([(drawn == i).double().sum(0) for i in range(4)])
    error = counts.std(1) / math.sqrt(20_000)
    assert agrees(counts.mean(1), 4 * weight[:, 0], error, ceiling=0.01)
    at = torch.tensor([[0.0], [0.5], [0.6999], [1 - 1e-12]], dtype=torch.float64)
    edges = smc.resampled(weight, at)
    assert edges.flatten().tolist() == [0, 1, 1, 2]


def test_relative_variance_without_resampling_is_that_of_the_mean():
    torch.manual_seed(0)
    w = torch.randn(20, 7, dtype=torch.float64).exp()
    eve = torch.arange(20).unsqueeze(1).expand(20, 7)
    found = smc.relative_variance(w / w.sum(0), eve, torch.zeros(7, dtype=torch.float64))
    assert torch.allclose(found, (w / w.mean(0)).var(0) / 20)


def test_schedules_share_the_length_of_the_path():
    grid = torch.linspace(0, 1, 31, dtype=torch.float64) ** 2
    spread = torch.stack([3 * (1 - grid), torch.zeros_like(grid), torch.ones_like(grid)], 1)
    tuned = Tuned(torch.ones(3), torch.ones(3, 2), grid, spread)
    assert torch.allclose(
        tuned.length, torch.tensor([1.5, 0.0, 1.0], dtype=torch.float64), atol=2e-3
    )
    betas = schedule(tuned, 50)
    assert betas.shape == (51, 3)
    assert bool((betas[0] == 0).all())
    assert bool((betas[-1] == 1).all())
    assert bool((betas.diff(dim=0) > 0).all())
    assert torch.allclose(betas[:, 1], torch.linspace(0, 1, 51, dtype=torch.float64))
    assert torch.allclose(betas[:, 2], torch.linspace(0, 1, 51, dtype=torch.float64))
    # Where log f_1/f_0 spreads, temperatures are close: the first half of the length ends at
    # 1 - sqrt(1/2), and a tenth goes linearly.
    assert float(betas[25, 0]) == pytest.approx(0.9 * 0 + 0.30, abs=0.02)


@pytest.mark.slow
def test_compiled_chains_are_the_eager_ones():
    pair = poor(dtype=torch.float32)
    x = pair.sample(33)
    estimator = inference.AIS(num_temperatures=10, num_chains=4)
    eager, compiled = (log_px(pair, x, estimator, engine=e) for e in ("eager", "compiled"))
    assert (eager.engine, compiled.engine) == ("eager", "compiled")
    assert torch.allclose(eager.value, compiled.value, atol=1e-3)


def test_the_edge_tile_is_like_the_others(monkeypatch):
    """Data that do not fill the last tile: it is filled up, and what is real is reported."""
    from inference import tiles

    pair = poor()
    x = pair.sample(23)
    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 7 * 16 * 5)
    found = log_px(pair, x, inference.AIS(num_temperatures=100))
    assert found.tile == (6, 16)
    truth = pair.log_px(x)
    assert agrees(found.value, truth, found.std_error, ceiling=0.1)


def test_what_chains_cannot_do_is_refused():
    pair = linear_gaussian(seed=1)
    x = pair.sample(12)
    for estimator in ("ais", "smc", "sandwich", "quadrature", "enumerate"):
        with pytest.raises(inference.RequestError, match="precision: 'bfloat16' is for estimator="):
            log_px(pair, x, estimator, precision="bfloat16")

    def own(fn):
        def run(x):
            with pyro.plate("data", len(x), subsample_size=4) as rows:
                fn(x[rows])

        return run

    def model(x):
        pyro.sample("x", pair.likelihood(pyro.sample("z", pair.prior())), obs=x)

    def guide(x):
        pyro.sample("z", pair.q(x))

    for estimator in ("ais", inference.Importance(proposal="defensive")):
        with pytest.raises(inference.PairError, match="plate 'data' draws 4 of its data itself"):
            inference.log_marginal(own(model), own(guide), x, estimator=estimator, progress=False)


def positive_model(x):
    with pyro.plate("data", len(x)):
        rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
        pyro.sample("x", dist.Poisson(rate), obs=x)


def positive_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("rate", dist.LogNormal(((3 + x) / 3.5).log(), 0.6))


@pytest.mark.parametrize("settings", [{}, {"space": "latent"}, {"start": "gaussian"}], ids=str)
def test_chains_on_a_bounded_support(settings):
    """A rate with a Gamma prior and Poisson counts is negative binomial."""
    x = torch.arange(6.0).repeat(60).double()
    truth = torch.distributions.NegativeBinomial(3.0, probs=torch.tensor(1 / 3)).log_prob(x)
    found = inference.log_marginal(
        positive_model, positive_guide, x,
        estimator=inference.AIS(num_temperatures=30, **settings), progress=False,
    )  # fmt: skip
    ratio = (found.value - truth).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.01)


def test_a_guide_that_is_known_at_its_own_draws_only():
    """A planar flow has no inverse: chains move in its noise, or from a Gaussian like its draws."""
    pair = linear_gaussian(seed=1, L=2)
    torch.manual_seed(0)
    planar = dist.transforms.Planar(2)
    with torch.no_grad():
        planar.u.copy_(torch.tensor([0.6, -0.2]))
    planar = planar.double()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(pair.q(x), [planar]))

    x = pair.sample(300, seed=5)
    truth = pair.log_px(x)
    for settings in ({}, {"start": "gaussian"}):
        estimator = inference.AIS(num_temperatures=30, **settings)
        found = inference.log_marginal(pair.model, guide, x, estimator=estimator, progress=False)
        ratio = (found.value - truth).exp()
        assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.02)
    for estimator in (inference.AIS(space="latent"), inference.Sandwich(num_data=30)):
        with pytest.raises(inference.PairError, match=r"no inverse .*use start='gaussian'"):
            inference.log_marginal(pair.model, guide, x, estimator=estimator, progress=False)


def test_an_exact_guide_has_no_error():
    """Equal weights: error 0 up to rounding, of SMC, too, whose variance could come out below 0."""
    pair = linear_gaussian(seed=1, L=2)
    x = pair.sample(100, seed=2)
    for kind in (inference.AIS, inference.SMC):
        found = log_px(pair, x, kind(num_temperatures=5))
        assert not found.flagged.any()
        assert float(found.std_error.max()) < 1e-6
        assert torch.allclose(found.value, pair.log_px(x), atol=1e-6)


def test_a_tie_that_rounding_decides_is_no_other_move():
    """Compiled and eager code round apart: one of some thousand chains is taken in one alone."""
    torch.manual_seed(0)
    u, v = torch.randn(4, 3, 2), torch.randn(4, 3, 2)
    log_ratio, acceptance = torch.randn(4, 3), torch.rand(4, 3) * 0.5 + 0.25
    log_uniform = acceptance.log() + 1.0  # all rejected, by far
    log_uniform[1, 2] = acceptance[1, 2].log() + 1e-5
    moved = [u, v, log_ratio, acceptance]
    other = [part.clone() for part in moved]
    for part in other[:3]:
        part[1, 2] += 1.0
    assert same_moves(moved, other, log_uniform)
    other[0][0, 0] += 1.0  # no tie
    assert not same_moves(moved, other, log_uniform)
    other = [*moved[:3], acceptance.clone()]
    other[3][1, 2] += 0.1  # a tie, but another acceptance
    assert not same_moves(moved, other, log_uniform)


def test_one_chain_in_a_hundred_may_stand_at_a_kink():
    torch.manual_seed(0)
    slope, acceptance = torch.randn(10, 30, 2), torch.rand(10, 30) * 0.5 + 0.25
    log_uniform = acceptance.log() + 1.0
    other = slope.clone()
    other[4, 7:10] += 0.1
    assert same_moves([slope, acceptance], [other, acceptance.clone()], log_uniform)
    other[5, 0, 1] += 0.1
    assert not same_moves([slope, acceptance], [other, acceptance.clone()], log_uniform)
