"""The mixture's matrix-product densities against the definition, and what they rest on."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import softplus

import pyro_vae as pv
import pyro_vae.mixture
from pyro_vae.guides.base import LOG_SCALE_BOUNDS
from pyro_vae.mixture import Mixture

C, L = 500, 50


def naive_diagonal(logits, loc, scale, z):
    """log sum_c pi_c N(z; m_c, diag s_c^2), [rows, C, L] and all."""
    logits, loc, scale, z = logits.double(), loc.double(), scale.double(), z.double()
    r = (z.unsqueeze(-2) - loc) / scale
    each = (-0.5 * r.square() - scale.log() - 0.5 * math.log(2 * math.pi)).sum(-1)
    return torch.logsumexp(each + logits.log_softmax(0), -1)


def naive_full(logits, loc, tril, z):
    """log sum_c pi_c N(z; m_c, T_c T_c')."""
    logits, loc, tril, z = logits.double(), loc.double(), tril.double(), z.double()
    r = torch.linalg.solve_triangular(tril, (z.unsqueeze(-2) - loc).unsqueeze(-1), upper=False)
    half_log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = half_log_det + 0.5 * loc.shape[-1] * math.log(2 * math.pi)
    each = -0.5 * r.square().sum((-2, -1)) - constant
    return torch.logsumexp(each + logits.log_softmax(0), -1)


def diagonal(num, dim, log_scale=None):
    """logits, locations and scales; at most as narrow as guides allow."""
    if log_scale is None:
        log_scale = torch.empty(num, dim).uniform_(LOG_SCALE_BOUNDS[0], 0.0)
    return torch.randn(num), 2 * torch.randn(num, dim), log_scale.exp()


def full(num, dim, log_scale=None):
    """Also the rows of T as the full-rank guide makes them: T_ij = below_ij T_ii."""
    logits, loc, scale = diagonal(num, dim, log_scale)
    below = (0.3 * torch.randn(num, dim, dim)).tril(-1)
    return logits, loc, scale[..., None] * (below + torch.eye(dim))


def points(loc, spread, num=10):
    """Values at components, about them, and far from every one."""
    at = loc[:num]
    about = at + spread[:num] * torch.randn(num, loc.shape[-1])
    return torch.cat([at, about, 3 * torch.randn(num, loc.shape[-1])])


def build(logits, loc, spread):
    if spread.dim() == loc.dim():
        return Mixture(logits, dist.Normal(loc, spread).to_event(1)), naive_diagonal
    return Mixture(logits, dist.MultivariateNormal(loc, scale_tril=spread)), naive_full


FAMILIES = pytest.mark.parametrize("family", [diagonal, full])


def check_density(family, log_scale, limit):
    logits, loc, spread = family(*log_scale.shape, log_scale=log_scale)
    scale = spread if family is diagonal else spread.diagonal(dim1=-2, dim2=-1)
    mixture, naive = build(logits, loc, spread)
    z = points(loc, scale)
    expected = torch.cat([naive(logits, loc, spread, rows) for rows in z.split(10)])
    found = mixture.log_prob(z)
    near = slice(0, 20)
    assert (found.double() - expected)[near].abs().max() < limit
    # Far away the log density itself is of order 1e9, and float32 its precision.
    error = (mixture.log_prob(z.double()) - expected).abs()
    assert (error < limit + 1e-12 * expected.abs()).all()
    assert torch.isfinite(found).all()


@FAMILIES
def test_density_at_the_largest_precisions(family):
    check_density(family, torch.full((C, L), LOG_SCALE_BOUNDS[0]), limit=1e-2)


@FAMILIES
def test_density_at_mixed_precisions(family):
    mixed = torch.empty(C, L).uniform_(LOG_SCALE_BOUNDS[0], 0.0)
    check_density(family, mixed, limit=1e-2)


@FAMILIES
def test_density_at_ordinary_precisions(family):
    check_density(family, torch.full((40, L), -1.0), limit=1e-4)


def test_density_at_the_smallest_scale_of_the_mixture_prior():
    prior = pv.priors.GaussianMixture(components=C)
    narrow = torch.full((C, L), math.log(prior.min_scale))
    check_density(diagonal, narrow, limit=1e-3)


WRONG = {
    "2 pi forgotten": lambda right: (
        lambda z, m, s: right(z, m, s) + 0.5 * L * math.log(2 * math.pi)
    ),
    "locations a little off": lambda right: lambda z, m, s: right(z, 0.99 * m, s),
    "spreads a little off": lambda right: lambda z, m, s: right(z, m, 1.01 * s),
    "the half forgotten": lambda right: lambda z, m, s: 2 * right(z, m, s),
}


@FAMILIES
@pytest.mark.parametrize("mistake", WRONG)
def test_the_check_sees_a_wrong_density(family, mistake, monkeypatch):
    for name in ("_diagonal", "_full"):
        right = getattr(pyro_vae.mixture, name)
        monkeypatch.setattr(pyro_vae.mixture, name, WRONG[mistake](right))
    with pytest.raises(AssertionError):
        check_density(family, torch.full((40, L), -1.0), limit=1e-2)


def test_ill_conditioned_components_keep_their_density():
    """Products with the precision T^{-T} T^{-1} lose 10^9 nats here."""
    logits, loc, _ = diagonal(20, L)
    below = torch.randn(20, L, L).tril(-1)
    tril = math.exp(LOG_SCALE_BOUNDS[0]) * (below + torch.eye(L))
    assert torch.linalg.cond(tril.double()).min() > 1e4
    mixture, naive = build(logits, loc, tril)
    drawn = loc + (tril @ torch.randn(20, L, 1)).squeeze(-1)
    z = torch.cat([drawn, loc]).double()
    expected = naive(logits, loc, tril, z)
    # Rounding z to float32 alone makes some densities as low as -10^6 nats.
    error = (mixture.log_prob(z) - expected).abs()
    assert (error < 1e-2 + 1e-7 * expected.abs()).all()


@FAMILIES
def test_gradients_agree_with_the_definition(family):
    logits, loc, spread = family(num=40, dim=6, log_scale=torch.empty(40, 6).uniform_(-4, 0))
    z = torch.cat([loc[:10] + 0.01, torch.randn(10, 6)])
    gradients = []
    for which in ("ours", "naive"):
        leaves = [t.clone().requires_grad_() for t in (logits, loc, spread, z)]
        mixture, naive = build(*leaves[:3])
        log_p = mixture.log_prob(leaves[3]) if which == "ours" else naive(*leaves)
        gradients.append(torch.autograd.grad(log_p.sum(), leaves))
    for ours, theirs in zip(*gradients, strict=True):
        if ours.dim() == 3:
            ours, theirs = ours.tril(), theirs.tril()
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_other_families_go_one_by_one():
    logits, loc = torch.randn(7), torch.randn(7, 3)
    mixture = Mixture(logits, dist.Laplace(loc, 0.3).to_event(1))
    z = torch.randn(2, 5, 3)
    each = (-(z.unsqueeze(-2) - loc).abs() / 0.3 - math.log(0.6)).sum(-1)
    expected = torch.logsumexp(each + logits.log_softmax(0), -1)
    torch.testing.assert_close(mixture.log_prob(z), expected)
    torch.testing.assert_close(mixture.mean, logits.softmax(0) @ loc)
    assert mixture.sample((2, 5)).shape == (2, 5, 3)


@FAMILIES
def test_shapes_under_expand_and_plates(family, own_store):
    mixture, _ = build(*family(num=7, dim=3))
    assert mixture.batch_shape == ()
    assert mixture.event_shape == (3,)
    assert mixture.mean.shape == (3,)
    wide = mixture.expand([4, 5])
    assert (wide.batch_shape, wide.event_shape) == ((4, 5), (3,))
    assert wide.sample().shape == (4, 5, 3)
    assert wide.sample((2,)).shape == (2, 4, 5, 3)
    assert wide.mean.shape == (4, 5, 3)
    z = torch.randn(4, 5, 3)
    torch.testing.assert_close(wide.log_prob(z), mixture.log_prob(z))
    # As for every distribution: one value under a batch is scored once per member.
    torch.testing.assert_close(wide.log_prob(z[0, 0]), mixture.log_prob(z[0, 0]).expand(4, 5))
    assert wide.expand([2, 4, 5]).log_prob(z).shape == (2, 4, 5)

    def model():
        with pyro.plate("outer", 2, dim=-2), pyro.plate("data", 6, dim=-1):
            return pyro.sample("z", mixture)

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    site = trace.nodes["z"]
    assert site["value"].shape == (2, 6, 3)
    torch.testing.assert_close(site["log_prob"], mixture.log_prob(site["value"]))
    assert len({tuple(row.tolist()) for row in site["value"].reshape(-1, 3)}) == 12


@FAMILIES
def test_densities_are_traced_bit_for_bit(family):
    logits, loc, spread = family(num=7, dim=3)

    def density(logits, loc, spread, z):
        mixture, _ = build(logits, loc, spread)
        return mixture.log_prob(z)

    with pyro.validation_enabled(False), torch.no_grad():  # checks of values are not traceable
        graph = make_fx(density)(logits, loc, spread, torch.randn(4, 5, 3))
        logits, loc, spread = family(num=7, dim=3)
        z = torch.randn(4, 5, 3)
        assert torch.equal(graph(logits, loc, spread, z), density(logits, loc, spread, z))


def test_what_does_not_fit_is_refused():
    normal = dist.Normal(torch.zeros(4, 3), 1.0)
    for logits, components in [
        (torch.zeros(5), normal.to_event(1)),
        (torch.zeros(4), normal),
        (torch.zeros(2, 4), normal.to_event(1).expand([2, 4])),
    ]:
        with pytest.raises(ValueError, match=r"both must be \[C\]"):
            Mixture(logits, components)
    mixture = Mixture(torch.zeros(4), normal.to_event(1))
    with pytest.raises(ValueError):
        mixture.log_prob(torch.full((3,), math.nan))
    with pytest.raises(ValueError):
        mixture.log_prob(torch.zeros(5, 2))
    assert mixture.support.event_dim == 1
    assert constraints.is_dependent(mixture.support) is False


@pytest.mark.parametrize("family", [diagonal, full, "laplace"])
def test_draws_have_the_moments_of_the_density(family):
    num = 100_000
    logits, loc, spread = (diagonal if family == "laplace" else family)(
        num=3, dim=2, log_scale=torch.empty(3, 2).uniform_(-1.5, 0)
    )
    if family == "laplace":
        mixture = Mixture(logits, dist.Laplace(loc, spread).to_event(1))
        inner = torch.diag_embed(2 * spread**2)
    else:
        mixture, _ = build(logits, loc, spread)
        inner = torch.diag_embed(spread**2) if family is diagonal else spread @ spread.mT
    weights = logits.softmax(0)
    mean = weights @ loc
    second = (weights[:, None, None] * (inner + loc[..., None] * loc[:, None, :])).sum(0)
    torch.testing.assert_close(mixture.mean, mean)
    z = mixture.sample((num,))
    products = z[..., None] * z[:, None, :]
    for draws, expected in ((z, mean), (products.flatten(1), second.flatten())):
        error = draws.std(0) / math.sqrt(num)
        assert ((draws.mean(0) - expected).abs() < 5 * error).all()
        assert error.max() < 0.05
        # The same draws tell a mean that is 5% off.
        off = expected * 1.05 + 0.05 * expected.sign()
        assert ((draws.mean(0) - off).abs() > 5 * error).any()


def test_float64_draws_are_float64():
    mixture, _ = build(*(t.double() for t in diagonal(num=3, dim=2)))
    z = mixture.sample((1000,))
    assert z.dtype == torch.float64
    noise = z - z.float().double()
    assert (noise != 0).any()
    assert mixture.log_prob(z).dtype == torch.float64


# The VampPrior ------------------------------------------------------------------------------


def explicit_vamp(vae, z):
    """log 1/K sum_k q(z|u_k) straight from the encoder's outputs."""
    dim = z.shape[-1]
    inputs = vae.prior.pseudo_inputs.double()
    if vae.spec.likelihood.name == "bernoulli":
        inputs = inputs.clamp(0, 1)
    outputs = vae.guide_module.encoder(inputs)
    loc, log_scale, below = outputs.tensor_split([dim, 2 * dim], -1)
    tril = torch.zeros(len(inputs), dim, dim, dtype=torch.double)
    position = 0
    for i in range(dim):
        tril[:, i, i] = log_scale[:, i].exp()
        for j in range(i):
            if vae.spec.guide.name == "full_rank":
                tril[:, i, j] = below[:, position] * log_scale[:, i].exp()
                position += 1
    cov = tril @ tril.mT
    each = torch.stack(
        [
            torch.distributions.MultivariateNormal(m, covariance_matrix=s).log_prob(z)
            for m, s in zip(loc, cov, strict=True)
        ]
    )
    return torch.logsumexp(each, 0) - math.log(len(inputs))


@pytest.mark.parametrize("guide", ["mean_field", "full_rank"])
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@torch.no_grad()
def test_vamp_is_the_mixture_of_posteriors(guide, likelihood):
    vae = pv.VAE(
        data_shape=(3, 3),
        latent_dim=4,
        prior=pv.priors.VampPrior(components=11),
        guide=guide,
        likelihood=likelihood,
    ).double()
    vae.prior.pseudo_inputs.copy_(2 * torch.randn(11, 3, 3))  # some outside [0, 1]
    for p in vae.guide_module.parameters():
        p.mul_(1.5)
    z = torch.randn(50, 4, dtype=torch.double)
    found = vae.prior.distribution().log_prob(z)
    torch.testing.assert_close(found, explicit_vamp(vae, z), rtol=1e-9, atol=1e-9)
    vae.prior.pseudo_inputs[0] = 0.5
    assert (vae.prior.distribution().log_prob(z) - found).abs().max() > 1e-4


def test_vamp_learns_its_pseudo_inputs_and_the_encoder():
    vae = pv.VAE(data_shape=(3, 3), latent_dim=2, prior={"name": "vamp", "components": 5})
    vae.prior.distribution().log_prob(torch.randn(20, 2)).sum().backward()
    assert vae.prior.pseudo_inputs.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in vae.guide_module.encoder.parameters())


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_vamp_starts_at_distinct_training_data(likelihood):
    x = torch.rand(4, 3, 3).round() + torch.arange(4).reshape(4, 1, 1) * (likelihood == "gaussian")
    vae = pv.VAE(
        data_shape=(3, 3),
        latent_dim=2,
        prior={"name": "vamp", "components": 6},
        likelihood=likelihood,
    ).initialize(x)
    start = vae.prior.pseudo_inputs.detach()
    distance = torch.cdist(start.flatten(1), x.flatten(1)).min(1).values
    assert (distance < 0.2).all()
    assert len({tuple(row.tolist()) for row in start.flatten(1)}) == 6
    if likelihood == "bernoulli":
        assert ((start > 0) & (start < 1)).all()
    noisy = pv.VAE(
        data_shape=(3, 3), latent_dim=2, prior={"name": "vamp", "init": "noise", "components": 6}
    )
    before = noisy.prior.pseudo_inputs.clone()
    noisy.initialize(x)
    assert torch.equal(noisy.prior.pseudo_inputs, before)


# Everything together: the probabilities of all pictures add up to one -----------------------


def total_probability(vae, latent_dim):
    """sum_x integral p(z) p(x|z) dz over all 2^8 pictures, z on a grid."""
    x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.double)] * 8)
    side = torch.linspace(-9, 9, 4001 if latent_dim == 1 else 161, dtype=torch.double)
    step = side[1] - side[0]
    z = torch.cartesian_prod(*[side] * latent_dim).reshape(-1, latent_dim)
    log_prior = vae.prior.distribution().log_prob(z)
    total = 0.0
    for rows, log_p in zip(z.split(3000), log_prior.split(3000), strict=True):
        log_joint = vae.decode(rows[:, None]).log_prob(x) + log_p[:, None]
        total += log_joint.exp().sum() * step**latent_dim
    return float(total)


@pytest.fixture
def tiny(request):
    prior, latent_dim = request.param
    vae = pv.VAE(
        data_shape=(8,),
        latent_dim=latent_dim,
        prior=prior,
        encoder={"name": "mlp", "hidden": [6]},
        decoder={"name": "mlp", "hidden": [6]},
    ).double()
    with torch.no_grad():
        for p in vae.decoder.parameters():
            p.add_(0.7 * torch.randn_like(p))
        for p in vae.guide_module.parameters():
            p.mul_(0.5)  # no posterior too narrow or too wide for the grid
    return vae


TINY = pytest.mark.parametrize(
    "tiny",
    [
        (prior, latent_dim)
        for prior in ("standard_normal", "gaussian_mixture", {"name": "vamp", "components": 5})
        for latent_dim in (1, 2)
    ],
    indirect=True,
    ids=str,
)


@TINY
@torch.no_grad()
def test_all_probabilities_add_up_to_one(tiny):
    assert abs(total_probability(tiny, tiny.spec.latent_dim) - 1) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("mistake", ["prior constant", "likelihood constant"])
@pytest.mark.parametrize("tiny", [("standard_normal", 1), ("gaussian_mixture", 2)], indirect=True)
def test_the_sum_sees_a_forgotten_constant(tiny, mistake, monkeypatch):
    if mistake == "prior constant":

        class Without:
            def log_prob(self, z):
                return -0.5 * z.square().sum(-1)

        monkeypatch.setattr(tiny.prior, "distribution", Without)
    else:
        right = tiny.likelihood.forward

        def without(outputs):
            p = right(outputs)
            p.log_prob = lambda x: (x * outputs - softplus(outputs - 0.1)).sum(-1)
            return p

        monkeypatch.setattr(tiny.likelihood, "forward", without)
    assert abs(total_probability(tiny, tiny.spec.latent_dim) - 1) > 1e-3
