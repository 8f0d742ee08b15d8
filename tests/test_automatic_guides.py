"""Chains and wider draws from Pyro's automatic guides: their latents follow from other draws."""

import math

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as autoguide
import pytest
import torch

import inference
from tests.exact_models import agrees

JOINT = [
    "AutoNormal",
    "AutoDiagonalNormal",
    "AutoMultivariateNormal",
    "AutoLowRankMultivariateNormal",
]


def log_px(model, guide, x, estimator, **options):
    return inference.log_marginal(model, guide, x, estimator=estimator, progress=False, **options)


def line(x, y):
    """A regression: two weights, and the noise's scale, which is positive."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    s = pyro.sample("s", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        mean = w[..., :1].squeeze(-1) + w[..., 1:].squeeze(-1) * x
        pyro.sample("y", dist.Normal(mean, s), obs=y)


def line_data(num=8):
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, num, generator=generator)
    return x, 0.5 + x + 1.2 * noise


def line_truth(x, y):
    """The weights integrated by a formula, the scale on a grid of its logarithm."""
    x, y = x.double(), y.double()
    X = torch.stack([torch.ones_like(x), x], 1)
    u = torch.linspace(-4, 4, 801, dtype=torch.float64)
    covariance = X @ X.T + u.mul(2).exp()[:, None, None] * torch.eye(len(x)).double()
    of_y = dist.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y)
    return (of_y + dist.Normal(0.0, 0.5).log_prob(u)).logsumexp(0) + math.log(0.01)


def made(kind, model, *data, **options):
    guide = getattr(autoguide, kind)(model, init_loc_fn=autoguide.init_to_median, **options)
    guide(*data)
    return guide


@pytest.mark.parametrize("kind", JOINT)
def test_chains_from_automatic_guides(kind, own_store):
    data = line_data()
    guide = made(kind, line, *data, init_scale=0.4)
    estimator = inference.AIS(num_temperatures=80, num_chains=400)
    found = log_px(line, guide, data, estimator, plate=None)
    assert agrees(found.value, line_truth(*data)[None], found.std_error, ceiling=0.05)


@pytest.mark.parametrize("kind", JOINT)
def test_wider_draws_from_automatic_guides(kind, own_store):
    data = line_data()
    guide = made(kind, line, *data, init_scale=0.4)
    estimator = inference.Importance(num_samples=20_000, proposal="widened", width=2.5)
    found = log_px(line, guide, data, estimator, plate=None)
    assert agrees(found.value, line_truth(*data)[None], found.std_error, ceiling=0.1)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


@pytest.mark.parametrize("estimator", [
    inference.AIS(num_temperatures=40),
    inference.SMC(num_temperatures=20),
    inference.Auto(look=100, chains=inference.AIS(num_temperatures=40)),
    inference.Importance(num_samples=2000, proposal="widened"),
], ids=str)  # fmt: skip
def test_a_guide_of_each_datum_s_own_numbers(estimator, own_store):
    x = 1.2 * torch.randn(60)
    guide = made("AutoNormal", local, x, init_scale=0.6)
    truth = dist.Normal(0.0, 1.49**0.5).log_prob(x)
    found = log_px(local, guide, x, estimator)
    ratio = (found.value - truth).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.03)


def test_the_refusals_that_remain_lead_somewhere(own_store):
    """In the latents an automatic guide has no density: a Gaussian in its place has."""
    x = 1.2 * torch.randn(20)
    guide = made("AutoNormal", local, x, init_scale=0.6)
    for estimator in (inference.AIS(space="latent"), inference.Sandwich(num_data=20)):
        with pytest.raises(inference.PairError, match="use start='gaussian'"):
            log_px(local, guide, x, estimator)
    chains = inference.AIS(start="gaussian", num_temperatures=40)
    found = log_px(local, guide, x, inference.Sandwich(num_data=20, by=chains))
    assert -0.1 < found.gap < 0.3


def laplace(x):
    """A guide whose auxiliary draws are no Gaussian's."""
    with pyro.plate("data", len(x)):
        raw = pyro.sample("raw", dist.Laplace(x / 2, 0.5), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(raw))


def test_refusals_of_other_auxiliary_draws():
    x = torch.randn(20)
    with pytest.raises(inference.PairError, match=r"'raw' .* use start='gaussian'"):
        log_px(local, laplace, x, inference.AIS(space="noise"))
    with pytest.raises(inference.PairError) as caught:
        log_px(local, laplace, x, inference.Importance(proposal="widened"))
    said = str(caught.value)
    assert "site 'raw' of the guide draws from Laplace" in said
    assert "proposal='prior'" in said
    assert "defensive" not in said  # which refuses such guides
    assert "\n" not in said
    truth = dist.Normal(0.0, 1.49**0.5).log_prob(x)
    found = log_px(local, laplace, x, inference.Importance(num_samples=2000, proposal="prior"))
    assert agrees(found.value, truth, found.std_error, ceiling=0.3)


def test_errors_within_handlers_are_one_sentence():
    """Pyro adds the shapes of all sites to what passes through its traces."""
    error = type(inference.PairError("said"))("said\n Trace Shapes:  \n  Param Sites:  ")
    assert str(error) == "said"

    def gamma(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Gamma(2.0 + 0 * x, 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(inference.PairError, match="no width to widen") as caught:
        log_px(model, gamma, torch.ones(6), inference.Importance(proposal="widened"))
    assert "\n" not in str(caught.value)
