"""Guides: densities by independent routes, shapes, and where each density can be evaluated."""

import math

import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import SpecError
from pyro_vae.guides.base import LOG_SCALE_BOUNDS
from pyro_vae.part import Shapes

# Those with a density anywhere, be it one dimension at a time.
GUIDES = [
    "mean_field",
    "full_rank",
    pv.guides.LowRank(rank=2),
    "mixture",
    pv.guides.CouplingGuide(hidden=6),
    pv.guides.CouplingGuide(hidden=6, depth=3, steps="spline"),
    pv.guides.IAF(depth=3, hidden=(12,), context=5),
    pv.guides.Spline(hidden=(12,), context=5),
]


def build(guide, dim=3, data=(4,), widen=3.0):
    spec = pv.Guide.resolve(guide)
    module = spec.build(Shapes(data, (dim,)), pv.networks.MLP(hidden=(8,))).double()
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "flows" in name:
                p.mul_(widen)  # flows that do something
            elif "flow" in name:  # these begin as the identity
                p.add_(0.1 * widen * torch.randn_like(p))
    return module


def ids(guide):
    return guide if isinstance(guide, str) else f"{guide.name}-{getattr(guide, 'steps', '')}"


@pytest.mark.parametrize("guide", GUIDES, ids=ids)
@pytest.mark.parametrize("dim", [2, 5])
def test_shapes_under_expand(guide, dim):
    module = build(guide, dim)
    x = torch.randn(6, 4, dtype=torch.double)
    q = module.distribution(module.encode(x))
    assert (q.batch_shape, q.event_shape) == ((6,), (dim,))
    z = q.rsample()
    log_q = q.log_prob(z)
    assert log_q.shape == (6,)
    wide = q.expand([7, 6])
    draws = wide.rsample()
    assert draws.shape == (7, 6, dim)
    assert len({tuple(row.tolist()) for row in draws.reshape(-1, dim)}) == 42
    log_wide = wide.log_prob(draws)
    for k in range(7):
        torch.testing.assert_close(log_wide[k], q.log_prob(draws[k].clone()), atol=1e-8, rtol=1e-8)
    several = q.rsample((7,))
    torch.testing.assert_close(q.log_prob(several), wide.log_prob(several.clone()))
    # Parameters of each datum are its own; leading dimensions are only more data.
    again = module.distribution(module.encode(x.expand(2, 6, 4)))
    assert again.batch_shape == (2, 6)
    one = module.distribution(module.encode(x[2:3]))
    assert one.batch_shape == (1,)
    torch.testing.assert_close(one.log_prob(z[2:3].clone()), log_q[2:3])
    torch.testing.assert_close(again.log_prob(z.expand(2, 6, dim).clone())[1], log_q)


@pytest.mark.parametrize("guide", GUIDES, ids=ids)
def test_the_density_integrates_to_one(guide):
    module = build(guide, dim=2, widen=1.0)  # stronger flows overflow in the grid's corners
    with torch.no_grad():
        q = module.distribution(module.encode(0.2 * torch.randn(1, 4, dtype=torch.double)))
        # Densities of splines have kinks, which a grid takes to second order in its step alone.
        smooth = "spline" not in ids(guide)
        side = torch.linspace(*((-14, 14, 401) if smooth else (-7, 7, 401)), dtype=torch.double)
        z = torch.cartesian_prod(side, side)
        total = q.expand([len(z)]).log_prob(z).exp().sum() * (side[1] - side[0]) ** 2
    assert float(total) == pytest.approx(1, abs=1e-6 if smooth else 5e-5)


def test_mean_field_by_hand():
    module = build("mean_field")
    x = torch.randn(6, 4, dtype=torch.double)
    loc, raw = module.encoder(x).chunk(2, -1)
    q = module.distribution(module.encode(x))
    z = torch.randn(6, 3, dtype=torch.double)
    r = (z - loc) / raw.exp()
    expected = (-0.5 * r**2 - raw - 0.5 * math.log(2 * math.pi)).sum(-1)
    torch.testing.assert_close(q.log_prob(z), expected)
    torch.testing.assert_close(q.mean, loc)


@pytest.mark.parametrize("dim", [1, 2, 6])
def test_full_rank_by_hand(dim):
    module = build("full_rank", dim)
    x = 3 * torch.randn(6, 4, dtype=torch.double)
    loc, tril = module.encode(x)
    assert torch.equal(tril, tril.tril())
    assert (tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    off = tril.tril(-1)[..., *torch.tril_indices(dim, dim, -1)]
    assert off.abs().min() > 0 if dim > 1 else off.numel() == 0
    q = module.distribution((loc, tril))
    z = loc + torch.randn(6, dim, dtype=torch.double)
    cov = tril @ tril.mT
    r = (z - loc).unsqueeze(-1)
    quadratic = (r.mT @ torch.linalg.inv(cov) @ r).reshape(6)
    expected = -0.5 * (quadratic + torch.logdet(cov) + dim * math.log(2 * math.pi))
    torch.testing.assert_close(q.log_prob(z), expected)
    gradients = torch.autograd.grad(q.log_prob(z).sum(), list(module.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("guide", ["mean_field", "full_rank"])
@pytest.mark.parametrize("extreme", [-1e4, 1e4])
def test_scales_stay_within_bounds(guide, extreme):
    module = build(guide).float()
    with torch.no_grad():
        module.encoder.body[-1].bias[3:6] = extreme
        q = module.distribution(module.encode(torch.randn(6, 4)))
    low, high = (math.exp(bound) for bound in LOG_SCALE_BOUNDS)
    scale = q.stddev if guide == "mean_field" else q.scale_tril.diagonal(dim1=-2, dim2=-1)
    expected = low if extreme < 0 else high
    torch.testing.assert_close(scale, torch.full_like(scale, expected))
    assert torch.isfinite(q.log_prob(q.sample())).all()


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("dim", [2, 4])
def test_iaf_is_the_change_of_variables(depth, dim):
    module = build(pv.guides.IAF(depth=depth, hidden=(12,), context=5), dim)
    x = torch.randn(3, 4, dtype=torch.double)
    loc, scale, context = module.encode(x)
    for row in range(3):
        q = module.distribution((loc[row : row + 1], scale[row : row + 1], context[row : row + 1]))

        def flow(base, q=q):
            z = base.unsqueeze(0)
            for transform in q.transforms:
                z = transform(z)
            return z.squeeze(0)

        start = loc[row] + scale[row] * torch.randn(dim, dtype=torch.double)
        z = flow(start)
        jacobian = torch.autograd.functional.jacobian(flow, start)
        base = torch.distributions.Normal(loc[row], scale[row]).log_prob(start).sum()
        expected = base - torch.linalg.slogdet(jacobian).logabsdet
        torch.manual_seed(row)
        draw = q.rsample()
        torch.manual_seed(row)
        noise = q.base_dist.rsample()
        torch.testing.assert_close(draw, flow(noise[0]).unsqueeze(0))

        # Elsewhere: one dimension at a time, with nothing remembered from a forward pass.
        fresh = module.distribution(
            (loc[row : row + 1], scale[row : row + 1], context[row : row + 1])
        )
        found = fresh.log_prob(z.detach().clone().unsqueeze(0))
        torch.testing.assert_close(found[0], expected, rtol=1e-8, atol=1e-8)

        jacobian = torch.autograd.functional.jacobian(flow, noise[0].detach())
        base = torch.distributions.Normal(loc[row], scale[row]).log_prob(noise[0]).sum()
        expected = base - torch.linalg.slogdet(jacobian).logabsdet
        torch.manual_seed(row)
        own = q.rsample()
        torch.testing.assert_close(q.log_prob(own)[0], expected, rtol=1e-10, atol=1e-10)
        assert abs((q.log_prob(own)[0] - base).item()) > 1e-3, "the log determinant must be seen"


def test_iaf_reverses_its_order_between_steps():
    """Two steps let every dimension of z depend on every other; one step is triangular."""
    patterns = {}
    for depth in (1, 2):
        module = build(pv.guides.IAF(depth=depth, hidden=(12,), context=5), dim=4)
        q = module.distribution(module.encode(torch.randn(1, 4, dtype=torch.double)))

        def flow(base, q=q):
            for transform in q.transforms:
                base = transform(base)
            return base

        jacobian = torch.autograd.functional.jacobian(flow, torch.randn(1, 4, dtype=torch.double))
        patterns[depth] = jacobian.reshape(4, 4) != 0
    assert not patterns[1].triu(1).any()
    assert patterns[1].tril().sum() == 10
    assert patterns[2].sum() > 10


def test_iaf_depends_on_x_through_its_context():
    module = build(pv.guides.IAF(depth=1, hidden=(12,), context=5))
    loc, scale, context = module.encode(torch.randn(2, 4, dtype=torch.double))
    same = module.distribution((loc[:1], scale[:1], context[:1]))
    other = module.distribution((loc[:1], scale[:1], context[1:]))
    torch.manual_seed(1)
    one = same.rsample()
    torch.manual_seed(1)
    assert (other.rsample() - one).abs().max() > 1e-3


@pytest.mark.parametrize(("hidden", "dim"), [((4,), 8), ((200,), 1), ((), 3), ((9, 4), 5)])
def test_iaf_refuses_what_it_cannot_build(hidden, dim):
    with pytest.raises(SpecError, match="guide 'iaf' needs") as caught:
        pv.VAE(data_shape=(4,), latent_dim=dim, guide={"name": "iaf", "hidden": hidden})
    assert len(str(caught.value).splitlines()) == 1


def test_a_reloaded_guide_is_the_same():
    x = torch.randn(6, 4, dtype=torch.double)
    for guide in GUIDES:
        first, second = build(guide), build(guide)
        second.load_state_dict(first.state_dict())
        draws = []
        for module in (first, second):
            torch.manual_seed(3)
            q = module.distribution(module.encode(x))
            z = q.rsample()
            draws.append((z, q.log_prob(z)))
        torch.testing.assert_close(*draws, rtol=0, atol=0)


def test_densities_are_declared():
    real = {n: g for n, g in pv.Guide.registry.items() if (g.support, g.levels) == ("real", "one")}
    assert {name: guide.density for name, guide in real.items()} == {
        "product_of_experts": "anywhere",
        "point": "none",
        "mean_field": "anywhere",
        "full_rank": "anywhere",
        "low_rank": "anywhere",
        "mixture": "anywhere",
        "coupling": "anywhere",
        "iaf": "sequential",
        "spline": "sequential",
        "planar": "own samples",
        "radial": "own samples",
        "sylvester": "own samples",
        "semi_amortized": "given the prior",
        "auxiliary": "joint",
    }
