"""Priors: every density against its draws and against an exact answer."""

import itertools
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy import integrate, special

import inference
import pyro_vae as pv
from pyro_vae.errors import RequestError
from pyro_vae.exponential_integral import log_scaled_e1
from pyro_vae.part import Shapes
from pyro_vae.priors.horseshoe import HorseshoeDistribution

PRIORS = {
    "standard_normal": {},
    "gaussian": {},
    "gaussian, full": {"covariance": "full"},
    "gaussian_mixture": {"components": 3},
    "laplace": {"scale": 0.5},
    "horseshoe": {"scale": 0.7},
    "flow": {"hidden": 6},
    "flow, spline": {"hidden": 6, "steps": "spline"},
    "flow, autoregressive": {"hidden": 6, "kind": "autoregressive"},
    "flow, autoregressive spline": {"hidden": 6, "kind": "autoregressive", "steps": "spline"},
    "vamp": {"components": 4},
    "exemplar": {"components": 4},
}
EACH = pytest.mark.parametrize("name", PRIORS)


def build(name, dim=2):
    vae = pv.VAE(
        data_shape=(4,),
        latent_dim=dim,
        prior={"name": name.split(",")[0], **PRIORS[name]},
        encoder={"name": "mlp", "hidden": [6]},
    ).double()
    vae.initialize(torch.rand(20, 4, dtype=torch.double).round())
    with torch.no_grad():
        for p in vae.prior.parameters():
            p.add_((0.1 if "spline" in name else 0.2) * torch.randn_like(p))
    return vae


def test_every_prior_of_real_latents_is_looked_at():
    real = {name for name, prior in pv.Prior.registry.items() if prior.support == "real"}
    elsewhere = {"hierarchical", "conditional"}  # test_levels.py, test_labels.py
    assert {name.split(",")[0] for name in PRIORS} | elsewhere == real


# Draws -----------------------------------------------------------------------------------------


def check_draws(z, log_p):
    """z drawn, log p scored: the mean of g / p is 1 within 5 standard errors, of at most 0.02.

    g is a Gaussian of all draws near the densest one.
    """
    away = (z - z[log_p.argmax()]).norm(dim=-1)
    near = z[away.topk(len(z) // 5, largest=False).indices]
    w = (dist.MultivariateNormal(near.mean(0), 0.4 * near.T.cov()).log_prob(z) - log_p).exp()
    error = float(w.std() / math.sqrt(len(w)))
    assert error < 0.02
    assert abs(float(w.mean()) - 1) < 5 * error


@EACH
@torch.no_grad()
def test_draws_have_the_density(name):
    p = build(name).prior.distribution()
    z = p.expand([60_000]).sample()
    assert z.shape == (60_000, 2)
    log_p = p.log_prob(z)
    check_draws(z, log_p)
    twins = [log_p + 0.1, p.log_prob(z / 1.1) - 2 * math.log(1.1)]
    if name.startswith("flow"):
        twins.append(p.base_dist.log_prob(z))
    for twin in twins:
        with pytest.raises(AssertionError):
            check_draws(z, twin)


# The horseshoe's tails and pole want a quadrature of one number, below.
@pytest.mark.parametrize("name", [name for name in PRIORS if name != "horseshoe"])
@torch.no_grad()
def test_densities_integrate_to_one(name):
    p = build(name).prior.distribution()
    # Kinks, of splines, rectifiers and the Laplace, are taken to second order in the step alone.
    kinks = "spline" in name or "autoregressive" in name or name == "laplace"
    step, half = (0.01, 800) if name == "laplace" else (0.03, 250) if kinks else (0.04, 300)
    side = (torch.arange(-half, half, dtype=torch.double) + 0.5) * step
    grid = torch.cartesian_prod(side, side).split(20_000)
    total = sum(float(p.log_prob(z).exp().sum()) for z in grid) * step**2
    assert total == pytest.approx(1, abs=1e-4 if kinks else 1e-6)


@EACH
@torch.no_grad()
def test_shapes(name):
    for dim in (2, 5):
        p = build(name, dim).prior.distribution()
        assert (p.batch_shape, p.event_shape) == ((), (dim,))
        wide = p.expand([3, 4])
        z = wide.sample()
        assert z.shape == (3, 4, dim)
        assert len({tuple(row.tolist()) for row in z.reshape(-1, dim)}) == 12
        # A flow's density elsewhere is made anew, so that nothing kept from the draw helps.
        torch.testing.assert_close(p.log_prob(z[1, 2].clone()), wide.log_prob(z)[1, 2])


# Exact answers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("dim", [1, 4])
def test_gaussian_by_hand(covariance, dim):
    prior = pv.priors.Gaussian(covariance=covariance).build(Shapes((4,), (dim,))).double()
    start = prior.distribution()
    torch.testing.assert_close(start.mean, torch.zeros(dim).double())
    torch.testing.assert_close(start.variance, torch.ones(dim).double())
    with torch.no_grad():
        for p in prior.parameters():
            p.copy_(torch.randn_like(p))
    p, z = prior.distribution(), torch.randn(7, dim, dtype=torch.double)
    scale = prior.log_scale.exp() + prior.min_scale
    tril = scale.diag()
    if covariance == "full" and dim > 1:
        place = 0
        for i in range(dim):
            for j in range(i):
                tril[i, j] = prior.below[place] * scale[i]
                place += 1
        assert place == prior.below.numel()
    r = (z - prior.loc).unsqueeze(-1)
    cov = tril @ tril.T
    quadratic = (r.mT @ torch.linalg.inv(cov) @ r).reshape(7)
    expected = -0.5 * (quadratic + torch.logdet(cov) + dim * math.log(2 * math.pi))
    torch.testing.assert_close(p.log_prob(z), expected)
    gradients = torch.autograd.grad(p.log_prob(z).sum(), list(prior.parameters()))
    assert all(g.abs().min() > 0 for g in gradients), "no weight is there for nothing"
    with torch.no_grad():
        prior.log_scale.fill_(-100)
    torch.testing.assert_close(prior.scale, torch.full((dim,), 0.01).double())


def test_laplace_by_hand():
    prior = pv.priors.Laplace(scale=0.3).build(Shapes((4,), (3,)))
    z = torch.randn(7, 3)
    expected = -z.abs().sum(-1) / 0.3 - 3 * math.log(0.6)
    torch.testing.assert_close(prior.distribution().log_prob(z), expected)
    standard = pv.priors.Laplace().build(Shapes((4,), (3,))).distribution()
    torch.testing.assert_close(standard.stddev, torch.ones(3))


@pytest.mark.parametrize("kind", ["coupling", "autoregressive"])
@pytest.mark.parametrize("steps", ["affine", "spline"])
def test_flows_begin_as_a_standard_normal_and_are_a_change_of_variables(kind, steps):
    prior = pv.priors.Flow(kind=kind, steps=steps, hidden=8).build(Shapes((4,), (4,))).double()
    z = torch.randn(6, 4, dtype=torch.double)
    normal = dist.Normal(torch.zeros(4).double(), 1.0).to_event(1)
    torch.testing.assert_close(prior.distribution().log_prob(z), normal.log_prob(z))
    with torch.no_grad():
        for p in prior.parameters():
            p.add_(0.3 * torch.randn_like(p))
    found = prior.distribution().log_prob(z)
    p = prior.distribution()
    [transform] = p.transforms
    for row in range(6):
        u = transform.inv(z[row])
        jacobian = torch.autograd.functional.jacobian(transform.inv, z[row])
        expected = normal.log_prob(u) + torch.linalg.slogdet(jacobian).logabsdet
        torch.testing.assert_close(found[row], expected)
    assert (found - normal.log_prob(z)).abs().max() > 0.1


def test_an_autoregressive_prior_scores_in_one_pass():
    """Its network is asked once a step for a density, once a number for a draw."""
    prior = pv.priors.Flow(kind="autoregressive", depth=2, hidden=8).build(Shapes((4,), (5,)))
    calls = []
    for network in prior.flow.networks:
        network.register_forward_hook(lambda *_: calls.append(1))
    prior.distribution().log_prob(torch.randn(3, 5))
    assert len(calls) == 2
    z = prior.distribution().expand([3]).sample()
    assert (z.shape, len(calls)) == ((3, 5), 2 + 10)


# The horseshoe -----------------------------------------------------------------------------------


def test_the_exponential_integral():
    u = torch.tensor(np.geomspace(1e-300, 1e4, 2001)).requires_grad_()
    found = log_scaled_e1(u)
    plain = u.detach() < 500  # beyond, e^u and E_1 leave the range of floating point
    e1 = torch.tensor(special.exp1(u.detach()[plain].numpy()))
    expected = e1.log() + u.detach()[plain]
    torch.testing.assert_close(found.detach()[plain], expected, rtol=1e-10, atol=1e-10)
    # Abramowitz and Stegun 5.1.51: an asymptotic series, cut after four terms.
    far = u.detach()[~plain]
    series = (1 - 1 / far + 2 / far**2 - 6 / far**3 + 24 / far**4).log() - far.log()
    torch.testing.assert_close(found.detach()[~plain], series, rtol=1e-10, atol=1e-10)
    [slope] = torch.autograd.grad(found.sum(), u)
    exact = 1 - 1 / (u * found.exp())  # d/du e^u E_1(u) = e^u E_1(u) - 1/u
    near = u.detach() < 50
    torch.testing.assert_close(slope[near], exact[near].detach(), rtol=1e-7, atol=1e-7)
    assert torch.isfinite(slope[u.detach() > 1e-290]).all()
    assert torch.isfinite(log_scaled_e1(torch.tensor([1e-38, 1.0, 3e37]))).all()


@pytest.mark.parametrize("scale", [0.3, 1.0])
@pytest.mark.parametrize("z", [1e-6, 0.01, 0.4, 3.0, 50.0])
def test_the_horseshoe_has_its_scales_integrated_out(scale, z):
    def integrand(log_spread):
        spread = math.exp(log_spread)
        half_cauchy = 2 / (math.pi * (1 + spread**2))
        deviation = scale * spread
        normal = math.exp(-0.5 * (z / deviation) ** 2) / (deviation * math.sqrt(2 * math.pi))
        return normal * half_cauchy * spread

    middle = math.log(z / scale)
    parts = [(middle - 5, middle), (middle, middle + 5), (middle + 5, middle + 40)]
    exact = sum(integrate.quad(integrand, *part, epsabs=0, epsrel=1e-11)[0] for part in parts)
    p = HorseshoeDistribution(torch.tensor(scale, dtype=torch.double))
    for sign in (1, -1):
        found = p.log_prob(torch.tensor(sign * z, dtype=torch.double))
        assert float(found) == pytest.approx(math.log(exact), abs=1e-8)


def test_the_horseshoe_integrates_to_one_and_matches_its_draws():
    p = HorseshoeDistribution(torch.tensor(0.7, dtype=torch.double))

    def density(log_z):
        z = math.exp(log_z)
        return 2 * z * float(p.log_prob(torch.tensor(z, dtype=torch.double)).exp())

    ends = [-80, -20, -3, 0, 3, 20, 80]
    parts = [integrate.quad(density, *part)[0] for part in itertools.pairwise(ends)]
    assert sum(parts) == pytest.approx(1, abs=1e-7)
    size = p.sample((200_000,)).abs().log()
    masses = np.cumsum(parts)[:-1]
    for end, mass in zip(ends[1:-1], masses, strict=True):
        share = float((size < end).double().mean())
        assert abs(share - mass) < 5 * math.sqrt(mass * (1 - mass) / 200_000) + 1e-9
    # A normal of the same quartiles has neither the pole nor the tails.
    assert parts[1] > 0.01
    assert parts[4] > 0.01


def test_the_pole_is_finite_in_numbers():
    p = HorseshoeDistribution(torch.ones(3))
    z = torch.tensor([0.0, 1e-30, 1e30], requires_grad=True)
    log_p = p.log_prob(z)
    [slope] = torch.autograd.grad(log_p.sum(), z)
    assert torch.isfinite(log_p).all()
    assert torch.isfinite(slope).all()


# Exemplars ---------------------------------------------------------------------------------------


def exemplar_vae():
    """Eight data that are all exemplars, one of them twice, and a sharp guide."""
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.double)] * 3)[:7]
    x = torch.cat([x, x[:1]])
    vae = pv.VAE(data_shape=(3,), latent_dim=2, prior={"name": "exemplar", "components": 8})
    vae = vae.double().initialize(x)
    assert sorted(vae.prior.exemplars.tolist()) == sorted(x.tolist())
    with torch.no_grad():
        vae.guide_module.encoder.body[-1].bias[2:] = -2
        vae.guide_module.encoder.body[-1].weight[:2] *= 4
    return vae, x


def log_prior(vae, x):
    """The model's own log p(z_n), at draws of the guide."""
    record = inference.log_weights(vae.model, vae.guide, x, num_particles=3)
    return record.latents["z"], record.log_p["z"]


def check_left_out(vae, x):
    """In training, the prior of x_n is the mixture of the posteriors at other data."""
    vae.train()
    z, found = log_prior(vae, x)
    for n, row in enumerate(x):
        others = [e for e in vae.prior.exemplars if not torch.equal(e, row)]
        each = torch.stack([vae.encode(e.unsqueeze(0)).log_prob(z[:, n]) for e in others])
        expected = each.logsumexp(0) - math.log(len(others))
        torch.testing.assert_close(found[:, n], expected)


@torch.no_grad()
def test_training_leaves_out_the_datum(own_store):
    vae, x = exemplar_vae()
    assert [(x == row).all(-1).sum() for row in x] == [2, 1, 1, 1, 1, 1, 1, 2]
    check_left_out(vae, x)


@torch.no_grad()
def test_the_check_sees_a_datum_kept_in(own_store, monkeypatch):
    vae, x = exemplar_vae()
    monkeypatch.setattr(vae.prior, "for_data", lambda x: vae.prior)
    with pytest.raises(AssertionError):
        check_left_out(vae, x)


@torch.no_grad()
def test_evaluation_has_every_exemplar(own_store):
    vae, x = exemplar_vae()
    vae.eval()
    z, found = log_prior(vae, x)
    parameters = vae.guide_module.encode(vae.prior.exemplars)
    each = vae.guide_module.distribution(parameters).log_prob(z.unsqueeze(-2))
    torch.testing.assert_close(found, each.logsumexp(-1) - math.log(8))
    torch.testing.assert_close(vae.prior.distribution().log_prob(z), found)
    # With itself among them a datum's posterior is a part of its own prior.
    assert (found - vae.encode(x).log_prob(z) > -math.log(8) - 1e-9).all()
    vae.train()
    assert log_prior(vae, x)[1].mean() < found.mean() - 1


@torch.no_grad()
def test_data_that_are_no_exemplars_leave_none_out():
    vae, x = exemplar_vae()
    z = torch.randn(4, 2, dtype=torch.double)
    other = x[:4] + 0.5
    found = vae.prior.for_data(other).distribution().log_prob(z)
    torch.testing.assert_close(found, vae.prior.distribution().log_prob(z))
    # Where all equal the datum, they stay: a density of no components is none.
    vae.prior.exemplars.copy_(x[0].expand(8, 3))
    found = vae.prior.for_data(x[:1]).distribution().log_prob(z)
    torch.testing.assert_close(found, vae.prior.distribution().log_prob(z))


def test_data_binarized_anew_are_refused():
    fields = {"data_shape": (3,), "prior": "exemplar"}
    with pytest.raises(RequestError, match="binarize them once"):
        pv.VAE(**fields).initialize(torch.rand(9, 3))
    pv.VAE(**fields, likelihood="gaussian").initialize(torch.rand(9, 3))


def test_exemplars_are_kept_with_the_weights():
    vae, _ = exemplar_vae()
    assert "prior.exemplars" in vae.state_dict()
    assert not [name for name, _ in vae.prior.named_parameters()]
    fresh = pv.VAE.from_spec(vae.spec).double()
    fresh.load_state_dict(vae.state_dict())
    z = torch.randn(4, 2, dtype=torch.double)
    torch.testing.assert_close(
        fresh.prior.distribution().log_prob(z), vae.prior.distribution().log_prob(z)
    )
