"""Directions: densities, draws, gradients and KL terms against sums over the sphere."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import kl_divergence
from torch.nn.functional import normalize

from inference.kl import analytic_kl
from pyro_vae import spherical, von_mises_fisher
from pyro_vae.spherical import PowerSpherical, SphericalUniform, log_surface
from pyro_vae.von_mises_fisher import VonMisesFisher, fall_slope, proposed
from tests.exact_models import agrees
from tests.grids import DOUBLE, legendre, whole_sphere

KINDS = [PowerSpherical, VonMisesFisher]


def meridian(dim, kappa=1.0):
    """Points at all heights above e_1, and log of the surface of their rings; finer where p is."""
    reach = min(math.pi, 30 / math.sqrt(kappa + dim))
    # Around the height where a large kappa, or a large dimension, puts the mass.
    middle = math.acos(kappa / (kappa + dim))
    low, high = max(0.0, middle - reach), min(math.pi, middle + reach)
    angles, weights = legendre(low, high, 600)
    z = torch.zeros(600, dim, **DOUBLE)
    z[:, 0], z[:, 1] = angles.cos(), angles.sin()
    log_ring = math.log(2) if dim == 2 else log_surface(dim - 1)
    return z, weights.log() + (dim - 2) * angles.sin().log() + log_ring


def first_axis(dim, kappa, kind, **options):
    loc = torch.zeros(dim, **{**DOUBLE, **options})
    loc[0] = 1
    return kind(loc, torch.as_tensor(kappa, dtype=loc.dtype))


def turned(dim, kappa, kind, seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = normalize(torch.randn(dim, generator=generator, **DOUBLE), dim=-1)
    return kind(loc, torch.tensor(kappa, **DOUBLE))


# Normalizers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kappa", [0.0, 1e-3, 1.0, 30.0])
def test_over_the_whole_sphere(kind, dim, kappa):
    z, surface = whole_sphere(dim)
    p = turned(dim, kappa, kind)
    density = p.log_prob(z).exp()
    # (1 + t)^kappa has a kink at -mu where kappa is small, where the grid is only so fine.
    accuracy = 1e-5 if kind is PowerSpherical and kappa == 1e-3 else 1e-9
    assert float((density * surface).sum()) == pytest.approx(1.0, abs=accuracy)
    mean = ((density * surface).unsqueeze(-1) * z).sum(0)
    torch.testing.assert_close(mean, p.mean, rtol=0, atol=accuracy)
    log_uniform = SphericalUniform(p.loc).log_prob(z)
    assert float((log_uniform.exp() * surface).sum()) == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 3, 10, 50, 200])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 30.0, 1e4])
def test_over_all_heights(kind, dim, kappa):
    z, log_ring = meridian(dim, kappa)
    p = first_axis(dim, kappa, kind)
    log_p = p.log_prob(z)
    mass = (log_p + log_ring).exp()
    # At -mu the circle's power spherical law has a kink, where the sum is only so fine.
    accuracy = 1e-5 if kind is PowerSpherical and dim == 2 else 1e-8
    assert float(mass.sum()) == pytest.approx(1.0, abs=accuracy)
    assert float((mass * z[:, 0]).sum()) == pytest.approx(float(p.mean[0]), abs=accuracy)
    assert float(-(mass * log_p).sum()) == pytest.approx(float(p.entropy()), abs=5 * accuracy)
    # The wrong twin: without the sphere's surface it is off by far more than that.
    twin = mass * math.exp(log_surface(dim))
    assert float(twin.sum()) != pytest.approx(1.0, abs=100 * accuracy)


@pytest.mark.parametrize("kind", KINDS)
def test_by_importance_in_ten_dimensions(kind):
    """E[p / uniform] = 1 over uniform draws, 5 SE; the plane's constant instead is far off."""
    p, uniform = turned(10, 4.0, kind), SphericalUniform(torch.zeros(10, **DOUBLE))
    z = uniform.sample((20_000,))
    ratio = (p.log_prob(z) - uniform.log_prob(z)).exp()
    error = ratio.std() / math.sqrt(len(z))
    assert agrees(ratio.mean(), 1.0, error, ceiling=0.03)
    twin = ratio * math.exp(log_surface(10) - 5 * math.log(2 * math.pi))
    assert not agrees(twin.mean(), 1.0, error)


# Draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 3, 10, 50])
@pytest.mark.parametrize("kappa", [0.5, 20.0, 1e4])
def test_draws_have_the_density(kind, dim, kappa):
    p = turned(dim, kappa, kind)
    z = p.sample((20_000,))
    torch.testing.assert_close(z.norm(dim=-1), torch.ones(len(z), **DOUBLE))
    height = z @ p.loc
    grid, log_ring = meridian(dim, kappa)
    mass = (first_axis(dim, kappa, kind).log_prob(grid) + log_ring).exp()
    scale = 1 / math.sqrt(kappa + dim)  # of heights around their mean, or of falls from 1
    for test in (
        lambda t: t,
        lambda t: t.square(),
        lambda t: torch.tanh((1 - t) / scale**2 / dim),
        lambda t: torch.cos(3 * t / scale),
    ):
        found = test(height)
        exact = (mass * test(grid[:, 0])).sum()
        # Antipodes of a power spherical law are sparse on the grid of the circle.
        error = found.std() / math.sqrt(len(z)) + 1e-6
        assert agrees(found.mean(), exact, error, ceiling=0.02)
    for column in range(min(dim, 3)):
        error = z[:, column].std() / math.sqrt(len(z))
        assert agrees(z[:, column].mean(), p.mean[column], error, ceiling=0.02)


def test_the_envelope_of_the_rejection_sampler():
    """At least the density everywhere, and taken with a probability above 0.65."""
    for dim in (2, 3, 4, 10, 50, 1000):
        low = max(0.0, math.pi / 2 - 20 / math.sqrt(dim))
        angles, weights = legendre(low, math.pi - low, 400)
        y = (1 - angles.cos()) / 2  # sin^(D-2) of the angle is its Beta density
        mass = weights * ((dim - 2) * angles.sin().log()).exp()
        for kappa in (0.0, 1.0, 10.0, 100.0, 1e4, 1e6):
            _, log_accept = proposed(dim, torch.tensor(kappa, **DOUBLE), y)
            assert float(log_accept.max()) <= 1e-6
            rate = float((mass * log_accept.exp()).sum() / mass.sum())
            assert rate > 0.65
    assert 0.35**von_mises_fisher.NUM_PROPOSALS < 3e-15


# Gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [2, 3, 10, 50])
@pytest.mark.parametrize("kappa", [0.2, 5.0, 300.0, 1e4])
def test_slopes_of_the_distribution_function(dim, kappa):
    """d(1 - t)/dkappa at fixed F(t), by autograd through sums on either side of t."""
    p = first_axis(dim, kappa, VonMisesFisher)
    falls = 1 - p.sample((8,))[:, 0]
    k = torch.tensor(kappa, **DOUBLE, requires_grad=True)
    grid, log_rings = meridian(dim, kappa)
    log_all = (k * (grid[:, 0] - 1) + log_rings).logsumexp(0)
    log_ring = math.log(2) if dim == 2 else log_surface(dim - 1)
    for fall in falls:
        top = 2 * float((fall / 2).sqrt().asin())
        bottom = max(0.0, top - 30 / math.sqrt(kappa + dim))
        angles, weights = legendre(bottom, top, 200)
        above = ((dim - 2) * angles.sin().log() + log_ring).exp() * weights
        part = k * (angles.cos() - 1) + above.log()
        (slope,) = torch.autograd.grad((part.logsumexp(0) - log_all).exp(), k, retain_graph=True)
        # F falls with 1 - t: dF = -p(t) dt ring, with t = cos(angle).
        point = torch.zeros(dim, **DOUBLE)
        point[0], point[1] = math.cos(top), math.sin(top)
        density = float(p.log_prob(point).exp()) * math.exp(log_ring) * math.sin(top) ** (dim - 3)
        found = float(fall_slope(dim, k.detach(), fall))
        assert found == pytest.approx(-float(slope) / density, rel=1e-5, abs=1e-12)


def pathwise(kind, dim, kappa, count=40_000):
    """Gradients of E[f(z)] in (h, log kappa), mu = h / |h|: by draws `[count, D + 1]`, and exact.

    f(z) = exp(a'z) / (2 + b'z), nothing symmetric.
    """
    generator = torch.Generator().manual_seed(3)
    a, b, h = (torch.randn(dim, generator=generator, **DOUBLE) for _ in range(3))
    b = normalize(b, dim=-1)

    def f(z):
        return (z @ a).exp() / (2 + z @ b)

    inputs = torch.cat([normalize(h, dim=-1), torch.tensor([math.log(kappa)], **DOUBLE)])

    def law(inputs):
        return kind(normalize(inputs[..., :-1], dim=-1), inputs[..., -1].exp())

    each = inputs.expand(count, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad(f(law(each).rsample()).sum(), each)
    inputs.requires_grad_()
    z, surface = whole_sphere(dim)
    (exact,) = torch.autograd.grad((law(inputs).log_prob(z).exp() * surface * f(z)).sum(), inputs)
    return found, exact


def is_unbiased(found, exact, ceiling=0.02):
    error = found.std(0) / math.sqrt(len(found))
    return agrees(found.mean(0), exact, error, ceiling=ceiling)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("kappa", [0.7, 12.0])
def test_pathwise_gradients(kind, dim, kappa):
    assert is_unbiased(*pathwise(kind, dim, kappa))


@pytest.mark.parametrize("dim", [2, 3])
def test_a_tangent_that_does_not_turn_is_biased(dim, monkeypatch):
    """The wrong twin: v is held still while mu turns."""
    right = spherical._orthogonal
    monkeypatch.setattr(spherical, "_orthogonal", lambda v, loc: right(v, loc.detach()))
    assert not is_unbiased(*pathwise(PowerSpherical, dim, 0.7))


def test_the_path_of_the_accepted_proposal_is_biased(monkeypatch):
    """The wrong twin: the proposal's own derivative, without what acceptance adds."""

    def twin(dim, kappa, fall):
        wide = dim - 1
        b = wide / (2 * kappa + (4 * kappa.square() + wide**2).sqrt())
        y = fall / (2 * b + fall * (1 - b))
        with torch.enable_grad():
            k = kappa.detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(proposed(dim, k, y)[0].sum(), k)
        return slope

    monkeypatch.setattr(von_mises_fisher, "fall_slope", twin)
    assert not is_unbiased(*pathwise(VonMisesFisher, 2, 0.7))


def test_gradients_of_power_spherical_heights():
    """E[z_1] = kappa / (kappa + D - 1) has slope (D - 1) / (kappa + D - 1)^2."""
    for dim, kappa in ((10, 3.0), (50, 1e4)):
        k = torch.full((20_000,), kappa, **DOUBLE, requires_grad=True)
        loc = torch.zeros(dim, **DOUBLE)
        loc[0] = 1
        for kind in KINDS:
            p = kind(loc, k)
            (found,) = torch.autograd.grad(p.rsample()[:, 0].sum(), k)
            (exact,) = torch.autograd.grad(p.mean[0, 0], k)
            error = float(found.std()) / math.sqrt(len(k))
            assert error < 0.05 * float(exact[0])
            # torch's implicit gradient of Beta draws is accurate to 1e-3.
            assert float(found.mean()) == pytest.approx(
                float(exact[0]), abs=5 * error + 1e-3 * float(exact[0])
            )


# KL ------------------------------------------------------------------------------------------


def pairs_of_laws(dim):
    laws = [turned(dim, 3.0, kind, seed) for kind in KINDS for seed in (0, 1)]
    uniform = SphericalUniform(torch.zeros(dim, **DOUBLE))
    known = [uniform, *(p for p in laws if isinstance(p, VonMisesFisher))]
    return [(q, p) for q in (*laws, uniform) for p in known if not q is p is uniform]


def test_kl_over_the_whole_sphere():
    z, surface = whole_sphere(3)
    for q, p in pairs_of_laws(3):
        log_q = q.log_prob(z)
        exact = (log_q.exp() * surface * (log_q - p.log_prob(z))).sum()
        torch.testing.assert_close(kl_divergence(q, p), exact, rtol=0, atol=1e-7)
        assert analytic_kl(q, p) is not None
    same = turned(3, 3.0, VonMisesFisher)
    assert float(kl_divergence(same, same)) == pytest.approx(0, abs=1e-12)


def test_kl_by_draws_in_ten_dimensions():
    for q, p in pairs_of_laws(10):
        z = q.sample((20_000,))
        found = q.log_prob(z) - p.log_prob(z)
        error = found.std() / math.sqrt(len(z))
        assert agrees(found.mean(), kl_divergence(q, p), error + 1e-9, ceiling=0.03)


# Edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [2, 50])
@pytest.mark.parametrize("kappa", [1e-3, 1e4])
def test_extremes_in_float32(kind, dim, kappa):
    h = torch.randn(500, dim, requires_grad=True)
    k = torch.full((500,), kappa, requires_grad=True)
    p = kind(normalize(h, dim=-1), k, validate_args=True)
    z = p.rsample((4,))
    assert z.dtype == torch.float32
    log_p = p.log_prob(z)
    assert bool(log_p.isfinite().all())
    double = kind(normalize(h.detach().double(), dim=-1), k.detach().double())
    exact = double.log_prob(normalize(z.detach().double(), dim=-1))
    torch.testing.assert_close(log_p.detach().double(), exact, rtol=1e-4, atol=5e-3)
    for gradient in torch.autograd.grad((log_p + z.sum(-1)).sum(), [h, k], retain_graph=True):
        assert bool(gradient.isfinite().all())
    # At the mode and at its antipode.
    for ends in (p.loc, -p.loc):
        value = p.log_prob(ends.detach())
        gradients = torch.autograd.grad(value.sum(), [h, k], retain_graph=True)
        assert bool(value.isfinite().all())
        assert all(bool(g.isfinite().all()) for g in gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind):
    loc = normalize(torch.randn(4, 1, 3), dim=-1)
    p = kind(loc, torch.rand(5), validate_args=True)
    assert (p.batch_shape, p.event_shape) == ((4, 5), (3,))
    wide = p.expand([2, 4, 5])
    assert wide.rsample((6,)).shape == (6, 2, 4, 5, 3)
    assert wide.log_prob(wide.sample()).shape == (2, 4, 5)
    assert p.log_prob(loc[0, 0]).shape == p.entropy().shape == p.mean.shape[:-1] == (4, 5)
    assert kl_divergence(p, SphericalUniform(torch.zeros(4, 5, 3))).shape == (4, 5)
    uniform = SphericalUniform(torch.zeros(3), validate_args=True)
    assert uniform.expand([4]).rsample((2,)).shape == (2, 4, 3)
    assert uniform.log_prob(loc).shape == (4, 1)
    for law in (p, uniform):
        with pytest.raises(ValueError, match=r"found invalid values|within the support"):
            law.log_prob(1.01 * loc)
    with pytest.raises(ValueError, match="D >= 2"):
        kind(torch.ones(5, 1), torch.ones(5))


def test_a_known_law():
    """The von Mises density on the circle, by torch."""
    angles = torch.linspace(-3, 3, 50, **DOUBLE)
    p = first_axis(2, 2.5, VonMisesFisher)
    truth = dist.VonMises(torch.zeros((), **DOUBLE), torch.tensor(2.5, **DOUBLE)).log_prob(angles)
    found = p.log_prob(torch.stack([angles.cos(), angles.sin()], -1))
    torch.testing.assert_close(found, truth, rtol=1e-6, atol=1e-6)
