"""Latents on circles and spheres: chains in a plane, against sums over the sphere."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.autograd.functional import jacobian

import inference
from inference.evidence.stereographic import Stereographic
from tests.exact_models import agrees

NOISE = 0.6


def pair_of(d, away=1.0):
    """A direction z in R^d, seen with noise; the guide knows it roughly."""
    drift = torch.zeros(d).double()
    drift[0], drift[-1] = 0.5, away

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.ProjectedNormal(drift))
            pyro.sample("x", dist.Normal(z, NOISE).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.ProjectedNormal(1.5 * x))

    return model, guide, drift


def truth(d, drift, x, wide=400):
    """The trapezoidal rule around the circle; on the sphere, Gauss and Legendre's in the height."""
    turn = torch.arange(wide, dtype=torch.float64) * 2 * math.pi / wide
    circle = torch.stack([turn.cos(), turn.sin()], -1)
    if d == 2:
        z, log_w = circle, torch.full((wide,), 2 * math.pi / wide, dtype=torch.float64).log()
    else:
        import numpy as np

        heights, weights = (torch.as_tensor(a) for a in np.polynomial.legendre.leggauss(60))
        ring = (1 - heights.square()).sqrt()
        z = torch.cat([
            (ring[:, None, None] * circle), heights[:, None, None].expand(-1, wide, 1)
        ], -1).reshape(-1, 3)  # fmt: skip
        log_w = (weights.log() + math.log(2 * math.pi / wide)).repeat_interleave(wide)
    log_p = dist.ProjectedNormal(drift).log_prob(z)
    assert float((log_p + log_w).logsumexp(0)) == pytest.approx(0.0, abs=1e-9)
    log_px = dist.Normal(z, NOISE).log_prob(x.unsqueeze(1)).sum(-1)
    return (log_p + log_w + log_px).logsumexp(-1)


def test_the_plane_covers_the_sphere():
    """There and back, also next to the pole; log |dz/du| is the surface's."""
    to = Stereographic()
    for d in (2, 3):
        u = torch.randn(50, d - 1, dtype=torch.float64) * 10 ** torch.linspace(-2, 5, 50).unsqueeze(
            1
        )
        z = to(u)
        assert torch.allclose(z.norm(dim=-1), torch.ones(50).double())
        close = (to.inv(z) - u).abs() / (1 + u.norm(dim=-1, keepdim=True))
        assert bool((close < 1e-4).all())
        for point in u[:30]:
            J = jacobian(to, point)
            surface = 0.5 * torch.logdet(J.T @ J)
            assert torch.allclose(to.log_abs_det_jacobian(point, to(point)), surface, atol=1e-6)


ESTIMATORS = {
    "importance": inference.Importance(num_samples=1000),
    "ais": inference.AIS(num_temperatures=20),
    "prior": inference.AIS(num_temperatures=40, start="prior"),
    "smc": inference.SMC(num_temperatures=10),
}
GRID = [
    pytest.param(d, name, marks=() if d == 2 and name == "ais" else pytest.mark.slow)
    for d in (2, 3)
    for name in ESTIMATORS
]


@pytest.mark.parametrize(("d", "name"), GRID)
def test_unbiased_on_the_weight_scale(d, name):
    model, guide, drift = pair_of(d, away=-1.0)
    x = drift / drift.norm() + NOISE * torch.randn(120, d, dtype=torch.float64)
    found = inference.log_marginal(model, guide, x, estimator=ESTIMATORS[name], progress=False)
    ratio = (found.value - truth(d, drift, x)).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.03)


@pytest.mark.slow
def test_at_the_pole_it_is_right_as_well():
    """Where the plane is infinitely far: chains mix poorly there, and say so, but are unbiased."""
    model, guide, drift = pair_of(2, away=2.0)
    x = drift / drift.norm() + NOISE * torch.randn(120, 2, dtype=torch.float64)
    estimator = inference.AIS(num_temperatures=60)
    found = inference.log_marginal(model, guide, x, estimator=estimator, progress=False)
    ratio = (found.value - truth(2, drift, x)).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.03)


def test_with_another_share_of_the_surface_it_is_wrong(monkeypatch):
    right = Stereographic.log_abs_det_jacobian
    monkeypatch.setattr(
        Stereographic, "log_abs_det_jacobian", lambda self, u, z: 2 * right(self, u, z)
    )
    model, guide, drift = pair_of(2, away=-1.0)
    x = drift / drift.norm() + NOISE * torch.randn(120, 2, dtype=torch.float64)
    estimator = inference.AIS(num_temperatures=30, start="gaussian")
    found = inference.log_marginal(model, guide, x, estimator=estimator, progress=False)
    ratio = (found.value - truth(2, drift, x)).exp()
    error = ratio.std() / math.sqrt(len(x))
    assert error < 0.07
    assert not agrees(ratio.mean(), 1.0, error)


def angle_model(x):
    """An angle from VonMises, which torch declares on the whole line; not periodic in x."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.VonMises(torch.tensor(0.5).double(), 2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def angle_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.VonMises(0.3 * x, 1.5))


def angle_truth(x):
    z = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000 * 2 * math.pi - math.pi
    log_p = dist.VonMises(torch.tensor(0.5).double(), 2.0).log_prob(z)
    log_px = dist.Normal(z, 1.0).log_prob(x.unsqueeze(1))
    return (log_p + log_px).logsumexp(1) + math.log(2 * math.pi / 20_000)


@pytest.mark.parametrize("estimator", [
    inference.Importance(num_samples=1000), inference.AIS(num_temperatures=20), "quadrature",
    pytest.param(inference.AIS(num_temperatures=60, start="gaussian"), marks=pytest.mark.slow),
], ids=str)  # fmt: skip
def test_an_angle_is_counted_once(estimator):
    x = 0.5 + 1.2 * torch.randn(120, dtype=torch.float64)
    found = inference.log_marginal(angle_model, angle_guide, x, estimator=estimator, progress=False)
    ratio = (found.value - angle_truth(x)).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)) + 1e-6, ceiling=0.02)


def test_a_guide_that_counts_an_angle_many_times_is_refused():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.3 * x, 1.5))

    x = torch.randn(20, dtype=torch.float64)
    with pytest.raises(inference.PairError, match=r"site 'z': .* VonMises, whose density repeats"):
        inference.log_marginal(angle_model, guide, x, progress=False)
