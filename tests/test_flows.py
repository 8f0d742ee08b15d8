"""Flows: every log-determinant against autograd, every inverse, and what they are made of."""

import math

import pytest
import torch
from torch.distributions import biject_to, constraints

import pyro_vae as pv
from pyro_vae.autoregressive import Autoregressive
from pyro_vae.bijection import Bijection
from pyro_vae.coupling import Coupling
from pyro_vae.errors import SpecError
from pyro_vae.guides.planar import PlanarStep
from pyro_vae.guides.radial import RadialStep
from pyro_vae.guides.sylvester import SylvesterStep, orthonormal
from pyro_vae.monotone import Affine, RationalQuadraticSpline
from pyro_vae.part import Shapes

L = 5


def random(*shape):
    return torch.randn(*shape, dtype=torch.double)


def perturbed(module):
    """Weights far from those of the start, which is the identity and would hide mistakes."""
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return module.double()


def coupling(steps, dim=L, depth=3):
    return perturbed(Coupling(dim, depth=depth, hidden=8, steps=steps, owner="test"))


def autoregressive(step, context=0, depth=3, dim=L):
    flow = Autoregressive(dim, depth=depth, hidden=(9, 9), step=step, context=context, owner="test")
    return perturbed(flow)


def triangle(units):
    """Upper triangular, with a diagonal within (-1, 1)."""
    return random(units, units).triu(1) + random(units).tanh().diag()


FLOWS = {
    "planar": lambda: PlanarStep(random(L), random(L), random(1)),
    "radial": lambda: RadialStep(random(L), random(1), random(1)),
    "sylvester": lambda: SylvesterStep(
        orthonormal(random(3, L), 3), triangle(3), triangle(3), random(3)
    ),
    "sylvester, all units": lambda: SylvesterStep(
        orthonormal(random(3, L), L), triangle(L), triangle(L), random(L)
    ),
    "coupling, affine": lambda: coupling("affine").bijection(),
    "coupling, spline": lambda: coupling("spline").bijection(),
    "coupling, even number": lambda: coupling("affine", dim=4).bijection(),
    "autoregressive, affine": lambda: autoregressive(Affine()).bijection(),
    "autoregressive, spline": lambda: autoregressive(RationalQuadraticSpline()).bijection(),
    "autoregressive, context": lambda: autoregressive(
        RationalQuadraticSpline(4, 3.0), context=2
    ).bijection(random(2)),
}
WITHOUT_INVERSE = {name for name in FLOWS if name.startswith(("planar", "radial", "sylvester"))}
EACH = pytest.mark.parametrize("name", FLOWS)


def inputs(name, num=6):
    return 1.5 * random(num, 4 if name == "coupling, even number" else L)


def check_log_det(flow, x):
    """log|det| is that of autograd's Jacobian, and not that of a map next to the identity."""
    found = flow.forth(x)[1]
    for row, log_det in zip(x, found, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda x: flow.forth(x)[0], row)
        exact = torch.linalg.slogdet(jacobian)
        assert exact.sign == 1
        torch.testing.assert_close(log_det, exact.logabsdet, rtol=1e-9, atol=1e-9)
    assert found.abs().max() > 0.1


@EACH
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_log_determinants(name, seed):
    torch.manual_seed(seed)
    check_log_det(FLOWS[name](), inputs(name))


@EACH
def test_a_draw_is_scored_by_the_move_that_made_it(name):
    flow, x = FLOWS[name](), inputs(name)
    calls = []
    forth = flow.forth
    flow.forth = lambda x: (calls.append(1), forth(x))[1]
    y = flow(x)
    kept = flow.log_abs_det_jacobian(x, y)
    assert len(calls) == 1
    torch.testing.assert_close(kept, forth(x)[1])
    # Other values are not handed what was kept.
    other = inputs(name)
    torch.testing.assert_close(flow.log_abs_det_jacobian(other, forth(other)[0]), forth(other)[1])
    assert (flow.log_abs_det_jacobian(other, y) - kept).abs().max() > 1e-3


@EACH
def test_the_way_back(name):
    flow, x = FLOWS[name](), inputs(name)
    y, log_det = flow.forth(x)
    if name in WITHOUT_INVERSE:
        with pytest.raises(NotImplementedError, match="density is known at its own draws only"):
            flow.inv(y)
        assert flow(x) is flow(x)  # a draw is remembered
        assert flow.inv(flow(x)) is x
        return
    again, log_det_back = flow.back(y)
    torch.testing.assert_close(again, x, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(log_det_back, log_det, rtol=1e-7, atol=1e-7)
    z = inputs(name)
    torch.testing.assert_close(flow.forth(flow.back(z)[0])[0], z, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(flow.inv.log_abs_det_jacobian(y, x), -log_det)


@EACH
def test_leading_dimensions(name):
    flow, x = FLOWS[name](), inputs(name).unflatten(0, (2, 3))
    y, log_det = flow.forth(x)
    assert (y.shape, log_det.shape) == (x.shape, (2, 3))
    for i in range(2):
        one, one_log_det = flow.forth(x[i, 1:2])
        torch.testing.assert_close(y[i, 1:2], one)
        torch.testing.assert_close(log_det[i, 1:2], one_log_det)


def replaced(step, **parts):
    for name, part in parts.items():
        setattr(step, name, part)
    return step


class WrongRadial(RadialStep):
    """One dimension too many moves across."""

    def forth(self, x):
        y, log_det = super().forth(x)
        h = (self.a + (x - self.center).norm(dim=-1, keepdim=True)).reciprocal()
        return y, log_det + torch.log1p(self.b * h).squeeze(-1)


class WrongCoupling(Coupling):
    """The log-determinant of the last coupling alone."""

    def run(self, x, *, inverse):
        y, _ = super().run(x, inverse=inverse)
        kept, self.networks = self.networks, self.networks[:1]
        log_det = super().run(x, inverse=inverse)[1]
        self.networks = kept
        return y, log_det


class WithoutReversal(Bijection):
    """The order of numbers is not reversed, though the determinant is taken of the reversed."""

    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forth(self, x):
        y, log_det = x, 0.0
        for network in self.flow.networks:
            y, _ = self.flow.map.forth(network(y, y[..., :0]).mT, y)
        return y, log_det + self.flow.forth(x, None)[1]


class Inverted(RationalQuadraticSpline):
    """The slope of the way back, taken for that of the way forth."""

    def forth(self, raw, x):
        y, log_slope = super().forth(raw, x)
        return y, -log_slope


def wrong_coupling():
    flow = coupling("affine")
    flow.__class__ = WrongCoupling
    return flow.bijection()


WRONG = {
    "planar: u not moved": lambda: replaced(
        step := PlanarStep(random(L), random(L), random(1)), wu=(step.w * step.u).sum(-1) - 0.3
    ),
    "radial: one dimension too many": lambda: WrongRadial(random(L), random(1), random(1)),
    "sylvester: columns not orthonormal": lambda: SylvesterStep(
        random(L, 3), triangle(3), triangle(3), random(3)
    ),
    "sylvester: a full R": lambda: SylvesterStep(
        orthonormal(random(3, L), 3), random(3, 3), triangle(3), random(3)
    ),
    "coupling: one step's determinant": wrong_coupling,
    "autoregressive: no reversal": lambda: WithoutReversal(autoregressive(Affine())),
    "spline: slopes inverted": lambda: autoregressive(Inverted()).bijection(),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_the_check_sees_a_wrong_log_determinant(mistake):
    with pytest.raises(AssertionError):
        check_log_det(WRONG[mistake](), inputs(""))


# Which number depends on which ----------------------------------------------------------------


def pattern(flow):
    row = random(L)
    return torch.autograd.functional.jacobian(lambda x: flow.forth(x)[0], row).abs() > 1e-12


def test_halves_take_turns():
    one, two = (pattern(coupling("affine", depth=depth).bijection()) for depth in (1, 2))
    evens, odds = torch.arange(0, L, 2), torch.arange(1, L, 2)
    eye = torch.eye(L, dtype=torch.bool)
    assert torch.equal(one[evens], eye[evens])
    assert one[odds][:, evens].all()
    assert two[evens][:, odds].all()
    assert two[odds][:, evens].all()


def test_the_order_is_reversed_between_autoregressive_steps():
    one, two = (pattern(autoregressive(Affine(), depth=depth).bijection()) for depth in (1, 2))
    assert not one.triu(1).any()
    assert one.tril(-1).any()
    assert two.triu(1).any()
    assert two.tril(-1).any()


@pytest.mark.parametrize(
    "flow",
    [
        Coupling(L, depth=3, hidden=8, steps="affine", owner="test").bijection(),
        Coupling(L, depth=3, hidden=8, steps="spline", owner="test").bijection(),
        PlanarStep(torch.zeros(L), torch.zeros(L), torch.zeros(1)),
        RadialStep(torch.zeros(L), torch.zeros(1), torch.zeros(1)),
    ],
    ids=["affine", "spline", "planar", "radial"],
)
def test_flows_begin_as_the_identity(flow):
    x = torch.randn(7, L)
    y, log_det = flow.forth(x)
    torch.testing.assert_close(y, x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(log_det, torch.zeros(7), rtol=0, atol=1e-5)
    flow = Autoregressive(L, depth=1, hidden=(9,), step=RationalQuadraticSpline(), owner="test")
    torch.testing.assert_close(flow.bijection()(x), x, rtol=1e-5, atol=1e-5)


def test_planar_and_radial_steps_stay_invertible():
    u, w = 4 * random(1000, L), 4 * random(1000, L)
    step = PlanarStep(u, w, random(1000, 1))
    inner = (step.w * step.u).sum(-1)
    assert (inner > -0.9991).all()
    torch.testing.assert_close(inner, step.wu.squeeze(-1), rtol=1e-9, atol=1e-9)
    assert ((u * w).sum(-1) < -1).any(), "some had to be moved"
    moved = step.u - u
    along = (moved * w).sum(-1, keepdim=True) * w / w.square().sum(-1, keepdim=True)
    torch.testing.assert_close(moved, along, rtol=1e-9, atol=1e-9)
    step = RadialStep(random(1000, L), 4 * random(1000, 1), 4 * random(1000, 1))
    assert (step.b > -0.9991 * step.a).all()
    assert (step.b < 0).any()
    for flow in (PlanarStep, RadialStep, SylvesterStep):  # however large the numbers, in float32
        spec = pv.Guide.resolve(flow.__name__.removesuffix("Step").lower())
        guide = spec.build(Shapes((4,), (L,)), pv.networks.Linear())
        _, log_det = guide.step(1e3 * torch.randn(1000, guide.sizes[2] // 4)).forth(torch.randn(L))
        assert torch.isfinite(log_det).all()


@pytest.mark.parametrize("columns", [1, 3, L])
def test_reflections_make_orthonormal_columns(columns):
    q = orthonormal(random(4, 2, L), columns)
    assert q.shape == (4, L, columns)
    gram = q.mT @ q
    torch.testing.assert_close(gram, torch.eye(columns).double().expand_as(gram))
    assert (q[0] - q[1]).abs().max() > 0.1
    assert torch.isfinite(orthonormal(torch.zeros(2, L), columns)).all()


# Monotone maps ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0.0, 1.0, 8.0])
@pytest.mark.parametrize("bins", [2, 8])
def test_splines_rise_and_meet_the_identity(size, bins):
    spline = RationalQuadraticSpline(bins, bound=3.0)
    raw = size * random(spline.num_raw)
    x = torch.linspace(-3.5, 3.5, 20_001, dtype=torch.double, requires_grad=True)
    y, log_slope = spline.forth(raw.expand(len(x), -1), x)
    [slope] = torch.autograd.grad(y.sum(), x)
    assert (slope > 0).all()
    torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-8, atol=1e-8)
    outside = x.detach().abs() >= 3
    assert torch.equal(y[outside], x[outside])
    assert not log_slope[outside].any()
    # Continuous, and so is its slope: no jump is larger than the steepest rise of one step.
    step = 7 / 20_000
    assert (y.diff() <= 1.01 * step * slope.max() + 1e-9).all()
    ends = torch.tensor([-3 + 1e-12, 3 - 1e-12], dtype=torch.double)
    assert spline.forth(raw.expand(2, -1), ends)[1].abs().max() < 1e-4
    if size == 0:
        torch.testing.assert_close(y, x, rtol=1e-9, atol=1e-9)
    back, log_slope_back = spline.back(raw.expand(len(x), -1), y)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(log_slope_back, log_slope, rtol=1e-4, atol=1e-4)


def test_splines_pass_through_their_knots():
    """By the definition: the knots are the cumulated shares, the slopes there the given ones."""
    spline = RationalQuadraticSpline(3, bound=2.0)
    raw = random(spline.num_raw)
    least = spline.LEAST
    knots = [
        -2 + 4 * (least + (1 - 3 * least) * part.softmax(0)).cumsum(0)[:2]
        for part in raw[:6].split(3)
    ]
    y, log_slope = spline.forth(raw.expand(2, -1), knots[0])
    torch.testing.assert_close(y, knots[1])
    start = math.log(math.expm1(1 - least))
    expected = least + torch.nn.functional.softplus(raw[6:] + start)
    torch.testing.assert_close(log_slope.exp(), expected)


@pytest.mark.parametrize("size", [1.0, 30.0])
def test_float32_splines_stay_finite(size):
    spline = RationalQuadraticSpline()
    raw = (size * torch.randn(5000, spline.num_raw)).requires_grad_()
    x = (3 * torch.randn(5000)).requires_grad_()
    for way in (spline.forth, spline.back):
        value, log_slope = way(raw, x)
        assert torch.isfinite(value).all()
        assert torch.isfinite(log_slope).all()
        gradients = torch.autograd.grad((value + log_slope).sum(), [raw, x])
        assert all(torch.isfinite(g).all() for g in gradients)


def test_affine_scales_are_bounded():
    raw = torch.tensor([[0.0, 1e6], [0.0, -1e6], [2.0, 0.0]])
    y, log_slope = Affine().forth(raw, torch.ones(3))
    torch.testing.assert_close(log_slope, torch.tensor([3.0, -3.0, 0.0]))
    torch.testing.assert_close(y, torch.tensor([math.exp(3), math.exp(-3), 3.0]))


# Where they are used ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"guide": "coupling"}, "guide 'coupling' needs 2 or more latents"),
        ({"guide": "spline"}, "guide 'spline' needs 2 or more latents"),
        ({"prior": "flow"}, "prior 'flow' needs 2 or more latents"),
        ({"prior": {"name": "flow", "kind": "autoregressive"}}, "prior 'flow' needs 2 or more"),
    ],
)
def test_one_latent_is_too_few_for_flows(fields, words):
    with pytest.raises(SpecError, match=words) as caught:
        pv.VAE(data_shape=(4,), latent_dim=1, **fields)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(words)


def test_layers_must_be_as_wide_as_latents():
    with pytest.raises(SpecError, match=r"8 latents and hidden \(4,\)"):
        pv.VAE(data_shape=(4,), latent_dim=8, guide={"name": "spline", "hidden": [4]})
    with pytest.raises(SpecError, match="units=3, more than its 2 latents"):
        pv.VAE(data_shape=(4,), latent_dim=2, guide={"name": "sylvester", "units": 3})


def test_flows_lie_on_the_whole_space():
    flow = FLOWS["planar"]()
    for support in (flow.domain, flow.codomain):
        assert biject_to(support) is not None
        assert support is constraints.real_vector
    prior = pv.priors.Flow().build(Shapes((4,), (2,)))
    assert prior.distribution().support.event_dim == 1


@pytest.mark.parametrize("guide", ["spline", "coupling", "iaf"])
def test_own_draws_are_scored_without_an_inverse(guide, monkeypatch):
    """An autoregressive flow's inverse takes a pass a dimension."""
    vae = pv.VAE(data_shape=(6,), latent_dim=5, guide=guide)

    def inverse(*_):
        raise AssertionError("inverted")

    monkeypatch.setattr("pyro_vae.autoregressive._AutoregressiveBijection.back", inverse)
    monkeypatch.setattr("pyro_vae.coupling._CouplingBijection.back", inverse)
    q = vae.encode(torch.rand(3, 6).round())
    assert q.log_prob(q.rsample()).shape == (3,)
    if guide != "iaf":
        with pytest.raises(AssertionError, match="inverted"):
            q.log_prob(torch.zeros(3, 5))
