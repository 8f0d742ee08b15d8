"""Latents that masks take out of model and guide, where a density of its own is the start."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import inference
from inference.evidence.unmasked import Unmasked
from tests.exact_models import agrees

SD = 1.49**0.5  # of x = z + 0.7 e


def model(x, keep):
    with pyro.plate("data", len(x)), poutine.mask(mask=keep):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def guide(x, keep):
    with pyro.plate("data", len(x)), poutine.mask(mask=keep):
        pyro.sample("z", dist.Normal(x / 1.49, 0.6))


def wide_model(x, keep):
    """Two numbers a datum, each with its own mask."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0).mask(keep).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.7).mask(keep).to_event(1), obs=x)


def wide_guide(x, keep):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 1.49, 0.6).mask(keep).to_event(1))


PAIRS = {"whole": (model, guide, ()), "in part": (wide_model, wide_guide, (2,))}


@pytest.fixture(params=PAIRS)
def masked(request):
    """A pair, its data, and log p(x) of what is kept."""
    pair_model, pair_guide, shape = PAIRS[request.param]
    generator = torch.Generator().manual_seed(0)
    x = SD * torch.randn(80, *shape, generator=generator, dtype=torch.float64)
    keep = torch.rand(80, *shape, generator=generator) < 0.5
    each = torch.where(keep, dist.Normal(0.0, SD).log_prob(x), 0.0)
    return pair_model, pair_guide, (x, keep), each.reshape(80, -1).sum(1)


def log_px(pair_model, pair_guide, x, estimator):
    return inference.log_marginal(pair_model, pair_guide, x, estimator=estimator, progress=False)


@pytest.mark.parametrize("kind", [inference.AIS, inference.SMC])
def test_chains_from_a_gaussian(masked, kind):
    *pair, data, truth = masked
    found = log_px(*pair, data, kind(start="gaussian", num_temperatures=40))
    ratio = (found.value - truth).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(truth)), ceiling=0.03)


def test_quadrature(masked):
    *pair, data, truth = masked
    assert torch.allclose(log_px(*pair, data, "quadrature").value, truth, atol=1e-6, rtol=0)


def test_sums_over_all_values():
    def discrete(x, keep):
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def its_guide(x, keep):
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            pyro.sample("z", dist.Categorical(torch.ones(len(x), 3)))

    x, keep = torch.randn(12), torch.arange(12) % 3 > 0
    weights = torch.tensor([0.2, 0.3, 0.5]).log()
    each = weights + dist.Normal(torch.arange(3.0), 1.0).log_prob(x.unsqueeze(1))
    truth = torch.where(keep, each.logsumexp(1), 0.0).double()
    found = log_px(discrete, its_guide, (x, keep), "enumerate")
    assert torch.allclose(found.value, truth, atol=1e-6, rtol=0)


def test_masks_are_taken_off_latents_alone():
    x, keep = torch.randn(4, 2), torch.tensor([[True, False]]).expand(4, 2)
    trace = poutine.trace(Unmasked()(wide_model)).get_trace(x, keep)
    trace.compute_log_prob()
    z, seen = (trace.nodes[name] for name in ("z", "x"))
    assert torch.allclose(z["log_prob"], dist.Normal(0.0, 1.0).log_prob(z["value"]).sum(-1))
    own = dist.Normal(z["value"], 0.7).log_prob(x)[:, 0]
    assert torch.allclose(seen["log_prob"], own)
