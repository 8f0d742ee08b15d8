"""Latents on the simplex: the logistic-normal law, and what the prior and guides make of it."""

import math

import pytest
import torch
from torch.autograd.functional import jacobian
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import pyro_vae as pv
from inference.kl import analytic_kl
from pyro_vae.logistic_normal import LogisticNormal
from pyro_vae.part import Shapes
from pyro_vae.simplex import LEAST_CONCENTRATION, SMALLEST, Dirichlet
from tests.exact_models import agrees
from tests.grids import DOUBLE, triangle

LAWS = [
    ([0.3, -0.4, 0.1], [0.8, 1.3, 0.6]),
    ([1.0, 0.0, -1.0], [1.5, 1.5, 1.5]),
    ([0.0, 0.0, 0.0], [0.4, 2.0, 0.7]),
]


def law(loc, scale):
    return LogisticNormal(torch.tensor(loc, **DOUBLE), torch.tensor(scale, **DOUBLE))


@pytest.mark.parametrize("parameters", LAWS, ids=str)
def test_densities_integrate_to_one(parameters):
    p = law(*parameters)
    z, area = triangle(reach=30.0)
    log_p = p.log_prob(z)
    assert float((log_p.exp() * area).sum()) == pytest.approx(1.0, abs=1e-9)
    # The wrong twin: three Gaussians of log z, as if z were not held together by its sum.
    twin = (Normal(p.loc, p.scale).log_prob(z.log()) - z.log()).sum(-1)
    assert float((twin.exp() * area).sum()) != pytest.approx(1.0, abs=0.05)


def test_two_entries():
    """On the unit interval: one logit of a Gaussian."""
    p = law([0.7, -0.2], [0.5, 1.2])
    z = (torch.arange(20_000, **DOUBLE) + 0.5) / 20_000
    log_p = p.log_prob(torch.stack([z, 1 - z], -1))
    assert float(log_p.exp().mean()) == pytest.approx(1.0, abs=1e-8)
    scale = torch.tensor(math.hypot(0.5, 1.2), **DOUBLE)
    logit = Normal(torch.tensor(0.9, **DOUBLE), scale).log_prob(z.log() - (1 - z).log())
    torch.testing.assert_close(log_p, logit - z.log() - (1 - z).log(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [3, 8])
def test_against_the_gaussian_of_the_log_ratios(count):
    """By torch's Gaussian with a full covariance, and autograd's volume."""
    p = LogisticNormal(torch.randn(count, **DOUBLE), torch.rand(count, **DOUBLE) + 0.3)

    def ratios(first):
        return first.log() - (1 - first.sum(-1, keepdim=True)).log()

    for z in p.sample((20,)):
        spread = torch.diag(p.scale[:-1].square()) + p.scale[-1].square()
        gaussian = MultivariateNormal(p.loc[:-1] - p.loc[-1], spread)
        volume = torch.linalg.slogdet(jacobian(ratios, z[:-1])).logabsdet
        exact = gaussian.log_prob(ratios(z[:-1])) + volume
        torch.testing.assert_close(p.log_prob(z), exact, rtol=0, atol=1e-8)


@pytest.mark.parametrize("parameters", LAWS, ids=str)
def test_draws_have_the_density(parameters):
    p = law(*parameters)
    z, area = triangle(reach=30.0)
    mass = p.log_prob(z).exp() * area
    drawn = p.sample((40_000,))
    torch.testing.assert_close(drawn.sum(-1), torch.ones(len(drawn), **DOUBLE))
    for test in (lambda z: z[:, 0], lambda z: z[:, 1] * z[:, 2], lambda z: z[:, 2].square()):
        found = test(drawn)
        error = found.std() / math.sqrt(len(found))
        assert agrees(found.mean(), (mass * test(z)).sum(), error, ceiling=0.005)


def test_kl():
    """Against torch's Gaussians, and against draws."""
    q, p = law(*LAWS[0]), law(*LAWS[2])

    def gaussian(law):
        spread = torch.diag(law.scale[:-1].square()) + law.scale[-1].square()
        return MultivariateNormal(law.loc[:-1] - law.loc[-1], spread)

    exact = kl_divergence(gaussian(q), gaussian(p))
    torch.testing.assert_close(kl_divergence(q, p), exact)
    torch.testing.assert_close(analytic_kl(q, p), exact)
    z = q.sample((20_000,))
    found = q.log_prob(z) - p.log_prob(z)
    assert agrees(found.mean(), exact, found.std() / math.sqrt(len(z)), ceiling=0.02)
    shifted = LogisticNormal(q.loc + 3, q.scale)  # the softmax forgets a shift
    assert float(kl_divergence(q, shifted)) == pytest.approx(0.0, abs=1e-12)


def pathwise(make, inputs, count=40_000):
    """Gradients of E[1 / (z_1 + 2 z_2 z_3 + 1/2)] in the inputs, by draws and by the sum."""

    def f(z):
        return 1 / (z[..., 0] + 2 * z[..., 1] * z[..., 2] + 0.5)

    each = inputs.expand(count, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad(f(make(each).rsample()).sum(), each)
    inputs = inputs.clone().requires_grad_()
    z, area = triangle(reach=30.0)
    (exact,) = torch.autograd.grad((make(inputs).log_prob(z).exp() * area * f(z)).sum(), inputs)
    return found, exact


def test_pathwise_gradients():
    def make(inputs):
        return LogisticNormal(inputs[..., :3], inputs[..., 3:].exp())

    found, exact = pathwise(make, torch.tensor([0.3, -0.4, 0.1, -0.2, 0.3, -0.5], **DOUBLE))
    error = found.std(0) / math.sqrt(len(found))
    assert agrees(found.mean(0), exact, error, ceiling=0.01)

    def twin(inputs):  # scales that the draws do not follow
        return LogisticNormal(inputs[..., :3], inputs[..., 3:].detach().exp())

    found, _ = pathwise(twin, torch.tensor([0.3, -0.4, 0.1, -0.2, 0.3, -0.5], **DOUBLE))
    assert not agrees(found.mean(0), exact, error)


def test_gradients_of_the_dirichlet_guide():
    """torch's implicit ones, which are accurate to 1e-3, through the guide's own head."""
    encoder = pv.networks.Linear()
    guide = pv.guides.Dirichlet().build(Shapes(data=(3,), latent=(3,)), encoder).double()
    with torch.no_grad():
        guide.encoder.body[1].weight.copy_(torch.eye(3))

    def make(x):
        return guide.distribution(guide.encode(x))

    found, exact = pathwise(make, torch.tensor([1.2, 0.9, 1.4], **DOUBLE))
    error = found.std(0) / math.sqrt(len(found))
    assert agrees(found.mean(0), exact, error + 1e-3 * exact.abs(), ceiling=0.01)


@pytest.mark.parametrize("scale", [1e-3, 50.0])
def test_extremes_in_float32(scale):
    loc = torch.randn(500, 20, requires_grad=True)
    wide = torch.full((500, 20), scale, requires_grad=True)
    p = LogisticNormal(loc, wide)
    z = p.rsample((4,))
    prior = torch.distributions.Dirichlet(torch.full((20,), 0.11))
    total = p.log_prob(z) + prior.log_prob(z)
    gradients = torch.autograd.grad(total.sum(), [loc, wide])
    assert all(bool(part.isfinite().all()) for part in (total, *gradients))


def test_bounds_of_the_dirichlet_guide():
    """Concentrations end at 0.1 and 1e5, where draws, densities and gradients are finite."""
    guide = pv.guides.Dirichlet().build(Shapes(data=(3,), latent=(6,)), pv.networks.Linear())
    for size, end in ((-100.0, 0.1), (100.0, 1e5)):
        with torch.no_grad():
            guide.encoder.body[1].bias.fill_(size)
        torch.testing.assert_close(guide.encode(torch.zeros(1, 3)), torch.full((1, 6), end))
        concentration = torch.full((5000, 6), end, requires_grad=True)
        q = guide.distribution(concentration)
        z = q.rsample()
        prior = pv.priors.LogisticNormal().build(Shapes(data=(3,), latent=(6,))).distribution()
        total = q.log_prob(z) + prior.log_prob(z)
        (gradient,) = torch.autograd.grad(total.sum(), concentration)
        assert all(bool(part.isfinite().all()) for part in (total, gradient))


def test_a_wild_logistic_normal_guide_holds_few_entries(monkeypatch):
    """What is held costs nothing under the prior: a guide that went there would never stop."""
    vae = pv.VAE(data_shape=(6,), latent_dim=20, prior="logistic_normal", guide="logistic_normal")

    def held():
        torch.manual_seed(0)
        with torch.no_grad():
            wild = 100 * torch.randn(300, 40)
            monkeypatch.setattr(vae.guide_module.encoder, "forward", lambda x: wild)
            z = vae.encode(torch.zeros(300, 6)).sample((20,))
        return float((z <= 1e-30).float().mean())

    assert held() < 1e-3
    monkeypatch.setattr("pyro_vae.guides.logistic_normal.MOST_LOC", 1e3)
    monkeypatch.setattr("pyro_vae.guides.logistic_normal.MOST_LOG_SCALE", 7.0)
    assert held() > 0.1


def test_shapes():
    p = LogisticNormal(torch.randn(4, 1, 3), torch.rand(5, 3) + 0.1, validate_args=True)
    assert (p.batch_shape, p.event_shape) == ((4, 5), (3,))
    wide = p.expand([2, 4, 5])
    assert wide.rsample((6,)).shape == (6, 2, 4, 5, 3)
    assert wide.log_prob(wide.sample()).shape == kl_divergence(wide, p).shape == (2, 4, 5)
    with pytest.raises(ValueError, match=r"within the support"):
        p.log_prob(torch.full((3,), 0.4))
    with pytest.raises(NotImplementedError):
        p.mean  # noqa: B018


# Priors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("concentration", [0.5, 3.0])
def test_priors_begin_at_their_concentration(learned, concentration):
    shapes = Shapes(data=(4,), latent=(5,))
    fields = {"concentration": concentration, "learned": learned}
    dirichlet = pv.priors.Dirichlet(**fields).build(shapes)
    torch.testing.assert_close(
        dirichlet.distribution().concentration, torch.full((5,), concentration)
    )
    normal = pv.priors.LogisticNormal(**fields).build(shapes)
    torch.testing.assert_close(
        normal.distribution().scale.square(), torch.full((5,), 0.8 / concentration)
    )
    for module in (dirichlet, normal):
        assert bool(list(module.parameters())) is learned
        assert torch.isfinite(module.distribution().log_prob(module.distribution().sample()))


def test_laplace_approximation():
    """Of a large concentration it is nearly the Dirichlet: K / (K - 1) of its log-ratios' spread.

    (The diagonal leaves out the correlations of the softmax basis, as in the paper.)
    """
    count, a = 8, 200.0
    shapes = Shapes(data=(4,), latent=(count,))
    normal = pv.priors.LogisticNormal(concentration=a).build(shapes).distribution()
    of_ratios = 2 * float(normal.scale[0]) ** 2
    exact = 2 * float(torch.special.polygamma(1, torch.tensor(a)))
    assert of_ratios == pytest.approx((1 - 1 / count) * exact, rel=0.01)


def test_too_small_a_concentration_is_refused():
    with pytest.raises(pv.SpecError, match=r"concentration: expected a number above 0.1"):
        pv.priors.Dirichlet(concentration=0.02)
    with pytest.raises(pv.SpecError, match="latent_dim 1 is too small for prior 'dirichlet'"):
        pv.VAESpec(prior="dirichlet", guide="dirichlet", latent_dim=1)


def test_entries_below_the_smallest_are_held():
    """At the least concentration: fewer than one in 1,000, and they keep the gradient finite."""
    z = Dirichlet(torch.full((6,), LEAST_CONCENTRATION)).expand([200_000]).sample()
    assert 2e-4 < float((z == SMALLEST).float().mean()) < 1e-3
    assert float(z.min()) == pytest.approx(SMALLEST)
