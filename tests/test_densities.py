"""Every density integrates to one and agrees with its own draws."""

import math

import pytest
import torch

import pyro_vae as pv
from pyro_vae.part import Shapes

LEVELS = torch.arange(256) / 255

# One pixel: a grid or list of values, and the weight of each.
FINE = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
WIDE = torch.linspace(-400, 400, 800_001, dtype=torch.float64)
COUNTS = torch.arange(3000, dtype=torch.float64)


def over(values, weight):
    return values, torch.full_like(values, weight)


UNIT = over(FINE, 1 / len(FINE))
LINE = over(WIDE, float(WIDE[1] - WIDE[0]))
SUMS = {
    "bernoulli": over(torch.tensor([0.0, 1.0]).double(), 1.0),
    "continuous_bernoulli": UNIT,
    "beta": UNIT,
    "logit_normal": UNIT,
    "poisson": over(COUNTS, 1.0),
    "negative_binomial": over(COUNTS, 1.0),
    "zero_inflated": over(COUNTS, 1.0),
    "categorical": over(LEVELS.double(), 1.0),
    "discretized_logistic": over(LEVELS.double(), 1.0),
    "gaussian": LINE,
    "gaussian_covariance": LINE,
    "laplace": LINE,
    "student_t": LINE,
}
VARIANTS = [
    *((name, {}) for name in SUMS),
    ("discretized_logistic", {"components": 3}),
    ("zero_inflated", {"counts": "negative_binomial"}),
    ("gaussian", {"sigma": "predicted"}),
    ("laplace", {"sigma": "per_pixel"}),
    ("student_t", {"degrees": 4.0, "learn_degrees": True}),
    ("gaussian_covariance", {"rank": "full"}),
    ("gaussian_covariance", {"rank": 2, "covariance": "predicted"}),
]


def built(name, fields, data=(1,)):
    torch.manual_seed(0)
    spec = pv.likelihoods.base.Likelihood.resolve({"name": name, **fields})
    shapes = Shapes(data=data, latent=(2,))
    module = spec.build(shapes).double()
    return spec, module


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str)
@pytest.mark.parametrize("size", [0.0, 1.0, 3.0])
def test_one_pixel_integrates_to_one(name, fields, size):
    spec, module = built(name, fields)
    outputs = size * torch.randn(*spec.param_shape((1,)), dtype=torch.float64)
    values, weights = SUMS[name]
    p = module(outputs)
    total = (p.log_prob(values.unsqueeze(-1)).exp() * weights).sum()
    heavy = name == "student_t"  # some mass lies beyond the grid
    assert float(total) == pytest.approx(1.0, abs=1e-4 if heavy else 1e-5)


def test_every_likelihood_is_looked_at():
    joint = {"multinomial"}
    assert {*SUMS, *joint} == set(pv.likelihoods.base.Likelihood.registry)


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str)
def test_draws_have_the_density(name, fields):
    """Mean of a test function by draws, and by the sum."""
    spec, module = built(name, fields)
    outputs = 0.7 * torch.randn(*spec.param_shape((1,)), dtype=torch.float64)
    values, weights = SUMS[name]
    p = module(outputs)
    draws = p.sample((40_000,)).squeeze(-1)
    mass = p.log_prob(values.unsqueeze(-1)).exp() * weights
    for test in (torch.tanh, torch.cos):
        exact = float((mass * test(values)).sum())
        found = test(draws.double())
        error = float(found.std()) / math.sqrt(len(found))
        assert float(found.mean()) == pytest.approx(exact, abs=5 * error + 1e-5)
    if name != "student_t":
        found = float((mass * values).sum())
        about = 0.02 if name == "logit_normal" else 2e-3  # a few points of quadrature
        assert float(p.mean.squeeze()) == pytest.approx(found, abs=about, rel=1e-3)


def test_bags_of_words_sum_to_one():
    _, module = built("multinomial", {}, data=(3,))
    logits = torch.randn(3, dtype=torch.float64)
    bags = [[a, b, 6 - a - b] for a in range(7) for b in range(7 - a)]
    total = module(logits).log_prob(torch.tensor(bags).double()).exp().sum()
    assert float(total) == pytest.approx(1.0, abs=1e-6)
    module.length.fill_(50.0)
    p = module(logits)
    draws = p.sample((4000,))
    assert draws.sum(-1).unique().tolist() == [50.0]
    torch.testing.assert_close(draws.mean(0), p.mean, atol=0.3, rtol=0)


def test_logistics_without_edge_bins_would_not_sum_to_one():
    """The wrong twin: each level takes its own bin only."""
    _, module = built("discretized_logistic", {})
    p = module(torch.tensor([[0.02], [-3.0]]).double()).base_dist
    upper = (LEVELS.double() + 0.5 / 255 - p.loc) * (-p.log_scale).exp()
    lower = (LEVELS.double() - 0.5 / 255 - p.loc) * (-p.log_scale).exp()
    twin = (upper.sigmoid() - lower.sigmoid()).sum()
    assert float(twin) < 0.9


@pytest.mark.parametrize("rank", [2, "full"])
@pytest.mark.parametrize("covariance", ["learned", "predicted"])
def test_covariances_against_torch(rank, covariance):
    spec, module = built("gaussian_covariance", {"rank": rank, "covariance": covariance}, (2, 3))
    outputs = 0.5 * torch.randn(5, *spec.param_shape((2, 3)), dtype=torch.float64)
    p = module(outputs)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    flat = torch.distributions.MultivariateNormal(
        p.flat.mean, covariance_matrix=p.flat.covariance_matrix.expand(5, 6, 6)
    )
    torch.testing.assert_close(p.log_prob(x), flat.log_prob(x.flatten(1)))
    assert p.sample((4,)).shape == (4, 5, 2, 3)
    off = p.flat.covariance_matrix - torch.diag_embed(
        p.flat.covariance_matrix.diagonal(dim1=-2, dim2=-1)
    )
    assert float(off.abs().max()) > 1e-6
