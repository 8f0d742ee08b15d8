"""Guides' draws against their densities, their gradients, and where no density is to be had."""

import math

import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import SpecError
from pyro_vae.gaussian_mixture import DiagonalGaussianMixture
from pyro_vae.mixture import Mixture
from pyro_vae.part import Shapes

DIM = 3
GUIDES = {
    "mean_field": {},
    "full_rank": {},
    "low_rank": {"rank": 2},
    "mixture": {},
    "planar": {},
    "radial": {},
    "sylvester": {"reflections": 2},
    "sylvester, few units": {"units": 2},
    "coupling": {"hidden": 6},
    "coupling, spline": {"hidden": 6, "steps": "spline"},
    "iaf": {"hidden": [12], "context": 5},
    "spline": {"hidden": [12], "context": 5},
}
OWN_SAMPLES = ["planar", "radial", "sylvester", "sylvester, few units"]
EACH = pytest.mark.parametrize("name", GUIDES)


def build(name, dim=DIM):
    spec = pv.Guide.resolve({"name": name.split(",")[0], **GUIDES[name]})
    module = spec.build(Shapes((4,), (dim,)), pv.networks.MLP(hidden=(8,))).double()
    with torch.no_grad():
        for key, p in module.named_parameters():
            if "flow" in key:  # some begin as the identity
                p.add_(0.1 * torch.randn_like(p))
        if name in OWN_SAMPLES:  # steps that do something
            module.encoder.body[-1].weight[2 * dim :] *= 3
    return module


def posterior(name, num=1):
    """q(z|x) of a few data, away from where the encoder begins."""
    module = build(name)
    return module.distribution(module.encode(torch.randn(num, 4, dtype=torch.double)))


# E_q[g / q] = 1 ------------------------------------------------------------------------------


def narrow(z, log_q):
    """A known density well inside a cloud of draws, where it is densest."""
    away = (z - z[log_q.argmax()]).norm(dim=-1)
    near = z[away.topk(len(z) // 5, largest=False).indices]
    return dist.MultivariateNormal(near.mean(0), 0.4 * near.T.cov())


def check_weights(z, log_q, g):
    """Draws `[N, L]` of q: the mean of g / q is 1 within 5 standard errors, of at most 0.02."""
    w = (g.log_prob(z) - log_q).exp()
    error = float(w.std() / math.sqrt(len(w)))
    assert error < 0.02
    assert abs(float(w.mean()) - 1) < 5 * error


@EACH
@torch.no_grad()
def test_draws_have_the_density(name):
    q = posterior(name)
    z = q.rsample((60_000,))
    log_q = q.log_prob(z)
    g = narrow(z[:, 0], log_q[:, 0])
    check_weights(z[:, 0], log_q[:, 0], g)
    wrong = {
        "a scale 5% off": log_q + DIM * math.log(1.05),
        "2 pi forgotten": log_q + 0.5 * DIM * math.log(2 * math.pi),
    }
    if name in OWN_SAMPLES or name.startswith(("coupling", "iaf", "spline")):
        base = z
        for transform in reversed(q.transforms):
            base = transform.inv(base)
        wrong["no determinant"] = q.base_dist.log_prob(base)
    for twin in wrong.values():
        with pytest.raises(AssertionError):
            check_weights(z[:, 0], twin[:, 0], g)


@pytest.mark.parametrize("name", OWN_SAMPLES)
def test_own_samples_only(name):
    q = posterior(name, num=4)
    z = q.rsample()
    assert torch.isfinite(q.log_prob(z)).all()
    with pytest.raises(NotImplementedError, match="its density is known at its own draws only"):
        q.log_prob(z.clone())


@EACH
def test_a_datum_is_scored_as_it_is_alone(name):
    """Draws of particles and data at once, and of each datum by itself from the same noise."""
    module = build(name)
    x = torch.randn(5, 4, dtype=torch.double)
    with torch.no_grad():
        q = module.distribution(module.encode(x)).expand([3, 5])
        z = q.rsample()
        log_q = q.log_prob(z)
        for k, n in ((0, 0), (2, 4)):
            alone = module.distribution(module.encode(x[n : n + 1]))
            value = z[k, n : n + 1].clone()
            if name in OWN_SAMPLES:
                value = z
                for transform in reversed(q.transforms):
                    value = transform.inv(value)
                value = value[k, n : n + 1].clone()
                for transform in alone.transforms:
                    value = transform(value)
                torch.testing.assert_close(value, z[k, n : n + 1])
            found = alone.log_prob(value)
            torch.testing.assert_close(found, log_q[k, n : n + 1], rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", GUIDES)
def test_extreme_encoders_keep_finite_densities(name):
    """float32, encoder outputs of a thousand, and of 0 everywhere."""
    module = build(name).float()
    for size in (0.0, 1e3):
        with torch.no_grad():
            for p in module.encoder.parameters():
                p.fill_(0) if size == 0 else p.mul_(size)
        q = module.distribution(module.encode(torch.randn(6, 4)))
        z = q.rsample()
        if size == 0 or name in OWN_SAMPLES:
            assert torch.isfinite(z).all()
            assert torch.isfinite(q.log_prob(z)).all()
            gradients = torch.autograd.grad(
                q.log_prob(z).sum(), list(module.encoder.parameters()), allow_unused=True
            )
            assert all(torch.isfinite(g).all() for g in gradients if g is not None)


def test_low_rank_by_hand():
    module = build("low_rank")
    x = torch.randn(6, 4, dtype=torch.double)
    loc, raw, factor = module.encoder(x).split([DIM, DIM, 2 * DIM], -1)
    f = factor.reshape(6, DIM, 2) * raw.exp().unsqueeze(-1)
    cov = f @ f.mT + torch.diag_embed((2 * raw).exp())
    z = torch.randn(6, DIM, dtype=torch.double)
    expected = torch.distributions.MultivariateNormal(loc, covariance_matrix=cov).log_prob(z)
    torch.testing.assert_close(module.distribution(module.encode(x)).log_prob(z), expected)


# The mixture's gradients -------------------------------------------------------------------------


def mixture_parameters(dim):
    """logits, locations and unequal scales of three overlapping components."""
    logits = torch.tensor([0.3, -0.4, 0.6], dtype=torch.double)
    loc = torch.tensor([[-0.8, 0.5], [0.7, -0.4], [0.1, 1.0]], dtype=torch.double)[:, :dim]
    scale = torch.tensor([[0.9, 0.5], [0.6, 1.1], [1.2, 0.8]], dtype=torch.double)[:, :dim]
    return logits, loc, scale


def hill(z):
    """A test function that is neither even nor separable."""
    first, last = z[..., 0], z[..., -1]
    return torch.tanh(first + 0.5 * last) + 0.3 * first * last + 0.2 * torch.sin(2 * last)


def exact_gradient(dim):
    """d E[h(z)] by autograd through a sum over a grid, whose parameters enter the density alone."""
    leaves = [t.clone().requires_grad_() for t in mixture_parameters(dim)]
    side = torch.linspace(-9, 9, 20_001 if dim == 1 else 401, dtype=torch.double)
    z = torch.cartesian_prod(*[side] * dim).reshape(-1, dim)
    density = DiagonalGaussianMixture(*leaves).log_prob(z).exp()
    step = float(side[1] - side[0]) ** dim
    assert float(density.detach().sum()) * step == pytest.approx(1, abs=1e-9)
    return torch.autograd.grad((density * hill(z)).sum() * step, leaves)


def check_gradient(rsample, dim, num=200_000):
    """Every number of the mean gradient within 5 standard errors, which are at most 0.02."""
    leaves = [t.expand(num, *t.shape).clone().requires_grad_() for t in mixture_parameters(dim)]
    found = torch.autograd.grad(hill(rsample(*leaves)).sum(), leaves)
    for each, exact in zip(found, exact_gradient(dim), strict=True):
        error = each.std(0) / math.sqrt(num)
        assert error.max() < 0.02
        assert ((each.mean(0) - exact).abs() < 5 * error + 1e-12).all()


@pytest.mark.parametrize("dim", [1, 2])
def test_the_exact_gradient_is_that_of_finite_differences(dim):
    def expectation(logits, loc, scale):
        side = torch.linspace(-9, 9, 4001 if dim == 1 else 401, dtype=torch.double)
        z = torch.cartesian_prod(*[side] * dim).reshape(-1, dim)
        p = DiagonalGaussianMixture(logits, loc, scale).log_prob(z).exp()
        return float((p * hill(z)).sum()) * float(side[1] - side[0]) ** dim

    parameters = mixture_parameters(dim)
    for i, exact in enumerate(exact_gradient(dim)):
        for place in ((0,), (2,)) if i == 0 else ((0, 0), (1, dim - 1)):
            ends = []
            for change in (1e-4, -1e-4):
                moved = [t.clone() for t in parameters]
                moved[i][place] += change
                ends.append(expectation(*moved))
            assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(float(exact[place]), abs=1e-6)


@pytest.mark.parametrize("dim", [1, 2])
def test_the_gradient_of_mixture_draws(dim):
    check_gradient(lambda *parts: DiagonalGaussianMixture(*parts).rsample(), dim)


def through_one_component(logits, loc, scale):
    """The wrong twin: the path through the component that was drawn, none through the weights."""
    which = torch.distributions.Categorical(logits=logits).sample()
    index = which[:, None, None].expand(-1, 1, loc.shape[-1])
    loc, scale = (part.gather(1, index).squeeze(1) for part in (loc, scale))
    return loc + scale * torch.randn_like(loc)


def with_dimensions_apart(logits, loc, scale):
    """The wrong twin: each dimension moved as if it were alone."""
    z = DiagonalGaussianMixture(logits, loc, scale).sample()
    moved = []
    for d in range(z.shape[-1]):
        one = DiagonalGaussianMixture(logits, loc[..., d : d + 1], scale[..., d : d + 1])
        moved.append(one._reparametrized(z[..., d : d + 1]))
    return torch.cat(moved, -1)


@pytest.mark.parametrize("twin", [through_one_component, with_dimensions_apart])
def test_the_check_sees_a_wrong_gradient(twin):
    # Either has no gradient in the logits, or the wrong one.
    def rsample(logits, loc, scale):
        return twin(logits, loc, scale) + 0 * logits.sum(-1, keepdim=True)

    with pytest.raises(AssertionError):
        check_gradient(rsample, 2)


def test_mixture_moments_and_shapes():
    logits, loc, scale = mixture_parameters(2)
    q = DiagonalGaussianMixture(logits, loc, scale)
    z = q.sample((200_000,))
    error = z.std(0) / math.sqrt(len(z))
    assert ((z.mean(0) - q.mean).abs() < 5 * error).all()
    squares = (z - q.mean).square()
    assert ((squares.mean(0) - q.variance).abs() < 5 * squares.std(0) / math.sqrt(len(z))).all()
    same = Mixture(logits, dist.Normal(loc, scale).to_event(1)).log_prob(z[:50])
    torch.testing.assert_close(q.log_prob(z[:50]), same)
    with pytest.raises(ValueError, match=r"expected \[..., C\], \[..., C, L\]"):
        DiagonalGaussianMixture(logits[:2], loc, scale)
    with pytest.raises(ValueError):
        q.log_prob(torch.full((2,), math.nan))


# A VampPrior of each guide with a density anywhere ------------------------------------------------


@pytest.mark.parametrize("name", ["low_rank", "mixture", "coupling", "coupling, spline"])
@torch.no_grad()
def test_vamp_is_the_mixture_of_posteriors(name):
    vae = pv.VAE(
        data_shape=(4,),
        latent_dim=2,
        prior={"name": "vamp", "components": 5},
        guide={"name": name.split(",")[0], **GUIDES[name]},
    ).double()
    vae.prior.pseudo_inputs.copy_(torch.rand(5, 4))
    for key, p in vae.guide_module.named_parameters():
        p.mul_(1.5) if "encoder" in key else p.add_(0.1 * torch.randn_like(p))
    z = torch.randn(30, 2, dtype=torch.double)
    parameters = vae.guide_module.encode(vae.prior.pseudo_inputs)
    each = torch.stack(
        [
            vae.guide_module.distribution([part[c] for part in parameters]).log_prob(z)
            for c in range(5)
        ]
    )
    p = vae.prior.distribution()
    torch.testing.assert_close(p.log_prob(z), each.logsumexp(0) - math.log(5))
    torch.testing.assert_close(p.log_prob(z.reshape(3, 10, 2)), p.log_prob(z).reshape(3, 10))
    draws = p.sample((60_000,))
    log_p = p.log_prob(draws)
    check_weights(draws, log_p, narrow(draws, log_p))


@pytest.mark.parametrize("prior", ["vamp", "exemplar"])
@pytest.mark.parametrize(
    ("guide", "why"),
    [
        ("planar", "knows its density only at its own samples"),
        ("radial", "knows its density only at its own samples"),
        ("sylvester", "knows its density only at its own samples"),
        ("spline", "offers that density only one dimension at a time"),
        ("semi_amortized", "needs the prior itself for that density"),
        ("auxiliary", "knows its density only together with an auxiliary latent's"),
    ],
)
def test_mixtures_of_posteriors_refuse_guides_without_a_density(prior, guide, why):
    with pytest.raises(SpecError) as caught:
        pv.VAESpec(prior=prior, guide=guide)
    [line] = str(caught.value).splitlines()
    assert f"guide '{guide}' {why}" in line
    fitting = "coupling, full_rank, low_rank, mean_field, mixture, product_of_experts"
    assert line.endswith(f"guides that fit: {fitting}")
