"""Estimators with one mistake each: what the right one passes, they fail.

Others stand beside what they are twins of: one temperature late (test_annealing, test_sandwich,
test_every_estimator), a dropped constant and another K (test_importance), wrong updates of a stream
(test_streaming), every proposal taken (test_hmc).
"""

import itertools
import math

import pyro
import pytest
import torch
from test_annealing import Exact

import inference
from inference import record
from inference.evidence import smc
from inference.evidence.ais import log_mean
from inference.evidence.smoothing import khat_threshold, pareto_khat
from inference.evidence.space import LatentSpace
from tests.exact_models import agrees, hierarchy_pair, linear_gaussian


class EachItsOwn(Exact):
    """Exact steps at a temperature of each datum's own."""

    def draw(self, beta, num_chains):
        pair = self.pair
        beta = torch.as_tensor(beta, dtype=torch.float64).expand(len(self.x))
        precision = pair.W.T @ (pair.W / pair.psi[:, None])
        A = torch.eye(pair.num_latents).double() + beta[:, None, None] * precision
        V = torch.linalg.inv(A)
        pull = beta[:, None] * ((self.x - pair.mu) / pair.psi) @ pair.W
        mean = torch.einsum("nij,nj->ni", V, pull)
        noise = torch.randn(num_chains, *mean.shape, dtype=torch.float64)
        return mean + torch.einsum("nij,cnj->cni", torch.linalg.cholesky(V), noise)


def test_temperatures_adapted_on_the_weighted_chains():
    """Chains that choose their own next temperature, by their own spread, are biased by 8%.

    The same temperatures with fresh chains are not: a pilot's are frozen before chains are weighed.
    """
    pair = linear_gaussian(seed=2, L=2)
    x = pair.sample(1, seed=1).expand(20_000, -1)
    torch.manual_seed(0)
    walk, truth = EachItsOwn(pair, x), pair.log_px(x)

    def is_unbiased(log_w):
        ratio = (log_mean(log_w) - truth).exp()
        return agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.01)

    beta = torch.zeros(len(x)).double()
    path, adapted, u = [beta], 0.0, walk.draw(beta, 4)
    while bool((beta < 1).any()):
        ratio = walk.chains(u).log_ratio
        after = (beta + 0.5 / ratio.std(0)).clamp(max=1.0)
        adapted = adapted + (after - beta) * ratio
        beta = after
        path.append(beta)
        u = walk.draw(beta, 4)
    frozen, u = 0.0, walk.draw(path[0], 4)
    for before, beta in itertools.pairwise(path):
        frozen = frozen + (beta - before) * walk.chains(u).log_ratio
        u = walk.draw(beta, 4)
    assert is_unbiased(frozen)
    assert not is_unbiased(adapted)


def test_the_pilot_s_chains_are_not_those_that_are_weighed(monkeypatch):
    """AIS draws chains anew once they are tuned: no point of a pilot is weighed."""
    from inference.evidence import tempering

    starts = []
    begin = tempering.Walk.begin

    def spy(walk, data, num_chains):
        chains = begin(walk, data, num_chains)
        starts.append(chains.u)
        return chains

    monkeypatch.setattr(tempering.Walk, "begin", spy)
    pair = linear_gaussian(seed=2, L=2, stretch=0.7)
    estimator = inference.AIS(num_temperatures=5)
    inference.log_marginal(
        pair.model, pair.guide, pair.sample(7), estimator=estimator, progress=False
    )
    pilots, weighed = starts
    assert not bool((pilots == weighed).any())


def test_the_naive_error_of_particles_that_share_ancestors(monkeypatch):
    """As if the last weights were independent: a variance several times too small."""
    pair = linear_gaussian(seed=2, L=2)
    x = pair.sample(1, seed=1).expand(3000, -1)
    torch.manual_seed(0)
    walk, truth = Exact(pair, x), pair.log_px(x)
    betas = (torch.linspace(0, 1, 9, dtype=torch.float64) ** 3).unsqueeze(1).expand(-1, len(x))

    def is_honest(variance):
        """Is the variance, before any is cut off at 0, that of the errors?"""
        told = []

        def kept(*arguments):
            told.append(variance(*arguments))
            return told[-1]

        monkeypatch.setattr(smc, "relative_variance", kept)
        errors = (smc.sequential(walk, (), None, betas, 64, 0.9).value - truth).exp() - 1
        assert agrees(errors.mean(), 0.0, errors.std() / math.sqrt(len(x)), ceiling=0.01)
        return 0.8 < float(errors.square().mean() / told[0].mean()) < 1.25

    def naive(weight, eve, resamplings):
        return (len(weight) * weight.square().sum(0) - 1) / (len(weight) - 1)

    assert is_honest(smc.relative_variance)
    assert not is_honest(naive)


@pytest.mark.parametrize("estimator", [
    inference.Importance(num_samples=500),
    inference.AIS(num_temperatures=20, space="latent"),
    inference.SMC(num_temperatures=10, space="latent"),
    "quadrature",
], ids=str)  # fmt: skip
def test_scaled_log_probs_under_a_subsampled_plate(monkeypatch, estimator):
    """A plate that declares ten times the data scales its sites tenfold; evidence must not."""
    pair = linear_gaussian(seed=1, L=2, stretch=0.8)
    x = pair.sample(100, seed=3)
    truth = pair.log_px(x)

    def scaled(fn):
        def run(x):
            with pyro.plate("data", 10 * len(x), subsample_size=len(x)):
                fn(x)

        return run

    model = scaled(
        lambda x: pyro.sample("x", pair.likelihood(pyro.sample("z", pair.prior())), obs=x)
    )
    guide = scaled(lambda x: pyro.sample("z", pair.q(x)))

    def is_right():
        found = inference.log_marginal(model, guide, x, estimator=estimator, progress=False)
        ratio = (found.value - truth).exp()
        error = ratio.std() / math.sqrt(len(x)) + 1e-6
        return agrees(ratio.mean(), 1.0, error, ceiling=0.05)

    assert is_right()
    monkeypatch.setattr(record, "own_scale", lambda site, pair: site["scale"])
    assert not is_right()


@pytest.mark.parametrize("estimator", [
    inference.AIS(num_temperatures=20, space="latent"), "quadrature",
], ids=str)  # fmt: skip
def test_a_site_that_is_left_out(monkeypatch, estimator):
    """log p without the upper level of a hierarchy."""
    pair = hierarchy_pair(1)
    x = pair.sample(100, 3)
    right = LatentSpace.record

    def is_right():
        found = inference.log_marginal(
            pair.model, pair.guide, x, estimator=estimator, progress=False
        )
        ratio = (found.value - pair.truth(x)).exp()
        error = ratio.std() / math.sqrt(len(x)) + 1e-6
        return agrees(ratio.mean(), 1.0, error, ceiling=0.05)

    def without(self, u, data):
        record, volume = right(self, u, data)
        record.log_p["z2"] = record.log_p["z2"] + 0.5 * math.log(2 * math.pi)
        return record, volume

    assert is_right()
    monkeypatch.setattr(LatentSpace, "record", without)
    assert not is_right()


def test_khat_over_the_whole_batch():
    """One heavy tail among calm data: datum by datum it alone is flagged, in one pot it is lost."""
    generator = torch.Generator().manual_seed(0)
    calm = 0.3 * torch.randn(99, 2000, generator=generator, dtype=torch.float64)
    heavy = torch.rand(1, 2000, generator=generator, dtype=torch.float64).log() * -0.9 - 6
    log_w = torch.cat([calm, heavy])
    threshold = khat_threshold(2000)
    each = pareto_khat(log_w) > threshold
    assert each.tolist() == [False] * 99 + [True]
    pot = pareto_khat(log_w.reshape(1, -1)).expand(100) > threshold
    assert pot.tolist() != each.tolist()
