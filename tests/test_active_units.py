"""Active units against exact covariances, and the naive rule that gets collapsed units wrong."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from tests.exact_models import LinearGaussian


def pair_of(gains, sd=1.0, scale=1.0):
    """q(z_i|x) = N(scale g_i x_i, (scale sd)^2) with x_i ~ N(0, 1): Var_x E = scale^2 g_i^2."""
    gains = torch.tensor(gains)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(gains)), scale).to_event(1))
            pyro.sample("x", dist.Normal(z / scale, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = scale * gains * x
            pyro.sample("z", dist.Normal(loc, scale * sd).to_event(1))

    return model, guide


def data(num_data, units, seed=0):
    """Whitened exactly, so that moments over x have no sampling error."""
    x = torch.randn(num_data, units, generator=torch.Generator().manual_seed(seed)).double()
    x = x - x.mean(0)
    return (x @ torch.linalg.inv(torch.linalg.cholesky(torch.atleast_2d(torch.cov(x.T)))).T).float()


def test_exact_covariance_of_a_linear_gaussian_guide():
    """E_q[z|x] = V W' Psi^-1 (x - mu), so its covariance over x is known, and A^-1 is within."""
    g = torch.Generator().manual_seed(0)
    W = torch.randn(5, 3, generator=g, dtype=torch.float64)
    W[:, 2] *= 0.03  # a weak unit
    pair = LinearGaussian(W, torch.zeros(5).double(), torch.ones(5).double())
    x = pair.sample(4000)
    found = inference.active_units(pair.model, pair.guide, x, num_samples=50)
    between = torch.cov(pair.mean(x).T).diagonal()
    # Two half-means of 25 draws: the covariance's noise is about V/25/sqrt(N) + cross terms.
    assert torch.allclose(found.mean_variance, between, atol=0.02)
    assert torch.allclose(found.total_variance, between + pair.V.diagonal(), rtol=0.03)
    # Law of total variance: an exact posterior aggregates to the prior, variance 1.
    assert torch.allclose(found.total_variance, torch.ones(3).double(), atol=0.1)
    assert found.count == 2
    assert found.num_units == 3


def test_a_collapsed_unit_is_not_active():
    model, guide = pair_of([0.9, 0.5, 0.0, 0.0])
    x = data(2000, 4)
    found = inference.active_units(model, guide, x, num_samples=20)
    assert found.count == found.burda_count == 2
    assert torch.allclose(found.mean_variance, torch.tensor([0.81, 0.25, 0, 0]).double(), atol=0.03)
    assert str(found) == "2 of 4 units active (2 by Burda's rule)"
    # Wrong: the variance of 20-sample means has 1/20 of noise, above the threshold of 0.01.
    torch.manual_seed(0)
    z = inference.log_weights(model, guide, x, num_particles=20).latents["z"]
    naive = z.mean(0).var(0)
    assert int((naive > 0.01).sum()) == 4


def test_a_weak_but_real_unit_is_active():
    model, guide = pair_of([0.2, 0.05])
    found = inference.active_units(model, guide, data(20_000, 2), num_samples=20)
    assert (found.activity > 0.01).tolist() == [True, False]
    assert found.activity.tolist() == pytest.approx([0.04 / 1.04, 0.0025 / 1.0025], abs=0.005)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_scale_does_not_matter(scale):
    x = data(1000, 3)
    one = inference.active_units(*pair_of([0.9, 0.3, 0.0]), x)
    other = inference.active_units(*pair_of([0.9, 0.3, 0.0], scale=scale), x)
    assert torch.allclose(one.activity, other.activity, rtol=1e-4, atol=1e-5)
    assert one.count == other.count == 2
    # Burda's raw rule is meant for N(0, I) priors only.
    assert one.burda_count == 2
    assert scale > 1 or other.burda_count == 0


def test_two_sites_and_inner_shapes_are_joined():
    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", dist.Normal(torch.zeros(1, 2), 1.0).to_event(1))
            with pyro.plate("inner", 3, dim=-1):
                b = pyro.sample("b", dist.Normal(0.0, 1.0))
            loc = a.sum(-1) + b.sum(-1, keepdim=True)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x[:, :1])

    def guide(x):
        with pyro.plate("data", len(x), dim=-2):
            loc = torch.stack([x[:, 0], 0 * x[:, 0]], -1).unsqueeze(-2)
            pyro.sample("a", dist.Normal(loc, 1.0).to_event(1))
            with pyro.plate("inner", 3, dim=-1):
                pyro.sample("b", dist.Normal(x[:, :1] * torch.tensor([0.0, 0.8, 0.0]), 1.0))

    found = inference.active_units(model, guide, data(1500, 1))
    assert (found.activity > 0.01).tolist() == [True, False, False, True, False]


def test_repeats_of_a_pair_that_cannot_take_particles():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.view(len(x), 3), 1.0).to_event(1), obs=x)

    _, guide = pair_of([0.9, 0.0, 0.4])
    found = inference.active_units(model, guide, data(1500, 3))
    expected = torch.tensor([0.81, 0.0, 0.16]).double()
    assert torch.allclose(found.mean_variance, expected, atol=0.03)


def test_small_requests_are_refused():
    model, guide = pair_of([0.9])
    for number in (1, 0, 2.5, None):
        with pytest.raises(inference.RequestError, match=f"num_samples: got {number}; expected"):
            inference.active_units(model, guide, data(10, 1), num_samples=number)
    with pytest.raises(inference.RequestError, match="one datum"):
        inference.active_units(model, guide, torch.zeros(1, 1))
    found = inference.active_units(model, guide, data(2, 1), num_samples=3)
    assert found.num_units == 1
