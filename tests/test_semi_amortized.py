"""The semi-amortized guide: where its steps lead, and that training goes through them."""

import copy

import pyro
import pytest
import torch

import inference
import pyro_vae as pv
from pyro_vae.given import Given
from pyro_vae.guides.semi_amortized import orthogonal_signs

DATA, DIM = (5,), 2
SIGMA = 0.6


def build(steps=2, rate=0.2, pairs=2, prior="standard_normal"):
    """A linear decoder and Gaussian noise: the bound and its optimum are known."""
    vae = pv.VAE(
        data_shape=DATA,
        latent_dim=DIM,
        prior=prior,
        guide=pv.guides.SemiAmortized(steps=steps, rate=rate, pairs=pairs),
        likelihood={"name": "gaussian", "sigma": "fixed", "scale": SIGMA},
        encoder={"name": "mlp", "hidden": [6]},
        decoder="linear",
    )
    return vae.double()


def linear(vae):
    layer = next(m for m in vae.decoder.modules() if isinstance(m, torch.nn.Linear))
    return layer.weight, layer.bias


def exact_bound(vae, x, loc, scale):
    """E_q[log p(x|z) + log p(z)] + sum log s, but for the constants that `bound` forgets, too.

    E |x - W z - b|^2 = |x - W m - b|^2 + sum_l |W_l|^2 s_l^2.
    """
    w, b = linear(vae)
    residual = (x - loc @ w.T - b).square().sum(-1) + scale.square() @ w.square().sum(0)
    prior = (loc.square() + scale.square()).sum(-1)
    return -0.5 * residual / SIGMA**2 - 0.5 * prior + scale.log().sum(-1)


@pytest.mark.parametrize("pairs", [1, 2, 4])
def test_the_bound_of_orthogonal_signs_is_exact(pairs):
    """One pair has crosses of the two latents, which a decoder with orthogonal columns has not."""
    vae = build(pairs=pairs)
    x, loc, log_scale = (torch.randn(7, n, dtype=torch.double) for n in (5, 2, 2))
    for orthogonal in (False, True):
        if orthogonal:
            w = linear(vae)[0]
            w.data.copy_(torch.linalg.qr(w.data)[0])
        with torch.no_grad():
            found = vae.guide_module.bound(loc, log_scale, vae.read(x))
            expected = exact_bound(vae, x, loc, log_scale.exp())
        same = torch.allclose(found - found[0], expected - expected[0])
        assert same == (orthogonal or pairs > 1)


@pytest.mark.parametrize("size", [1, 2, 8])
def test_signs_are_orthogonal(size):
    signs = orthogonal_signs(size)
    assert torch.equal(signs.abs(), torch.ones(size, size))
    assert torch.equal(signs.T @ signs, size * torch.eye(size))


def test_steps_reach_the_best_diagonal_gaussian():
    """With orthogonal columns the posterior is diagonal, and the steps end there from anywhere."""
    vae = build(steps=60, rate=0.5)
    w, b = linear(vae)
    with torch.no_grad():
        w.copy_(torch.linalg.qr(torch.randn(5, 2).double())[0] * torch.tensor([3.0, 0.5]))
        for p in vae.guide_module.encoder.parameters():
            p.mul_(2)
    x = 2 * torch.randn(6, 5, dtype=torch.double)
    q = vae.encode(x)
    precision = 1 + w.square().sum(0) / SIGMA**2
    torch.testing.assert_close(q.base_dist.scale, precision.rsqrt().expand(6, 2))
    torch.testing.assert_close(q.mean, (x - b) @ w / SIGMA**2 / precision)


@pytest.mark.parametrize("size", [0.3, 3.0])
def test_each_step_raises_the_exact_bound(size):
    """Also where the encoder's scales are far too wide, where plain steps would explode."""
    x = torch.randn(50, 5, dtype=torch.double)
    vae = build(pairs=2)
    linear(vae)[0].data.mul_(3)
    vae.guide_module.encoder.body[-1].bias.data[2:] = size
    bounds = []
    for steps in range(6):
        module = vae.guide_module
        module.raw_rate = torch.nn.Parameter(torch.full((steps,), -1.4).double())
        loc, scale = module.encode(x, vae.read(x))
        bounds.append(exact_bound(vae, x, loc, scale).mean().detach())
    rises = torch.stack(bounds).diff()
    assert (rises > 0).all()
    assert rises[0] > 1


# Training goes through the steps --------------------------------------------------------------


def outer(vae, x):
    """A function of the refined parameters."""
    loc, scale = vae.guide_module.encode(x, vae.read(x))
    return (loc.sin() + scale.square()).sum()


def check_gradients(vae, x):
    """Autograd through the steps against finite differences, for every kind of parameter."""
    parameters = {
        "decoder": linear(vae)[0],
        "encoder": vae.guide_module.encoder.body[-1].bias,
        "rates": vae.guide_module.raw_rate,
    }
    found = torch.autograd.grad(outer(vae, x), list(parameters.values()), allow_unused=True)
    for parameter, gradient in zip(parameters.values(), found, strict=True):
        assert gradient is not None
        for place in (0, -1):
            ends = []
            for change in (1e-5, -1e-5):
                flat = parameter.data.view(-1)
                flat[place] += change
                ends.append(float(outer(vae, x).detach()))
                flat[place] -= change
            exact = (ends[0] - ends[1]) / 2e-5
            assert abs(float(gradient.view(-1)[place]) - exact) < 1e-6 * max(1, abs(exact))


def test_gradients_go_through_the_steps():
    check_gradients(build(steps=3), torch.randn(4, 5, dtype=torch.double))


def test_the_check_sees_steps_without_gradients(monkeypatch):
    """The wrong twin: inner gradients taken for constants."""
    right = torch.autograd.grad

    def constant(bound, at, create_graph=False, **rest):
        found = right(bound, at, create_graph=create_graph, **rest)
        return tuple(g.detach() for g in found) if create_graph else found

    vae, x = build(steps=3), torch.randn(4, 5, dtype=torch.double)
    monkeypatch.setattr(torch.autograd, "grad", constant)
    with pytest.raises(AssertionError):
        check_gradients(vae, x)


@pytest.mark.parametrize("frozen", [False, True])
def test_evaluation_finds_the_same(frozen):
    vae, x = build(steps=3), torch.randn(4, 5, dtype=torch.double)
    vae.requires_grad_(not frozen)
    before = torch.get_rng_state()
    with_graph = vae.encode(x)
    with torch.no_grad():
        without = vae.encode(x)
        assert torch.equal(with_graph.mean, without.mean)
        assert torch.equal(with_graph.stddev, without.stddev)
        assert not without.mean.requires_grad
        alone = vae.encode(x[1:2])
        torch.testing.assert_close(alone.mean, without.mean[1:2])
        both = x.expand(2, 4, 5)
        loc, _ = vae.guide_module.encode(both, Given(both))
        torch.testing.assert_close(loc[1], without.mean)
    assert torch.equal(torch.get_rng_state(), before), "q is a function of x"
    assert all(p.grad is None for p in vae.parameters())


def test_references_follow_copies():
    vae = build(prior="gaussian_mixture")
    twin = copy.deepcopy(vae)
    assert twin.guide_module.vae is twin
    assert not any(name.startswith("guide_module.vae") for name in vae.state_dict())
    fresh = pv.VAE.from_spec(vae.spec).double()
    fresh.load_state_dict(vae.state_dict())
    x = torch.randn(3, 5, dtype=torch.double)
    torch.testing.assert_close(fresh.encode(x).mean, vae.encode(x).mean, rtol=0, atol=0)
    with torch.no_grad():
        linear(twin)[0].mul_(2)
    assert (twin.encode(x).mean - vae.encode(x).mean).abs().max() > 1e-3


def test_weights_are_those_of_the_refined_density():
    """The exact evidence of the linear model, by importance from the refined guide."""
    vae, x = build(steps=20, rate=0.5), torch.randn(6, 5, dtype=torch.double)
    w, b = linear(vae)
    w.data.copy_(torch.linalg.qr(w.data)[0])  # whose posterior is diagonal: weights of low variance
    with pyro.get_param_store().scope():
        estimate = inference.log_marginal(
            vae.model, vae.guide, x, estimator=inference.Importance(num_samples=4000), seed=0
        )
    cov = w @ w.T + SIGMA**2 * torch.eye(5).double()
    exact = torch.distributions.MultivariateNormal(b, covariance_matrix=cov).log_prob(x).detach()
    assert estimate.std_error.max() < 0.01
    assert ((estimate.value - exact).abs() < 5 * estimate.std_error + 1e-9).all()


@pytest.mark.parametrize("objective", ["stl", "dreg"])
def test_path_derivatives_hold_the_steps_still(objective):
    """Scored again, q is a function of its draws alone, decoder and all; its paths are not."""
    vae, x = build(steps=2), torch.randn(6, 5, dtype=torch.double)
    before = linear(vae)[0].detach().clone(), vae.guide_module.raw_rate.detach().clone()
    result = inference.fit(
        vae.model, vae.guide, x, objective=objective, epochs=1, engine="eager", progress=False
    )
    assert result.steps == 1
    assert not torch.equal(before[0], linear(vae)[0])
    assert not torch.equal(before[1], vae.guide_module.raw_rate)


def test_a_frozen_encoder_leaves_the_decoder_its_gradient():
    vae, x = build(steps=2), torch.randn(4, 5, dtype=torch.double)
    vae.guide_module.requires_grad_(False)
    exact = torch.autograd.grad(outer(vae, x), linear(vae)[0])[0]
    vae.guide_module.requires_grad_(True)
    torch.testing.assert_close(torch.autograd.grad(outer(vae, x), linear(vae)[0])[0], exact)


def test_a_scale_at_its_floor_is_led_back_inside():
    """Below the floor a predicted sigma has slope 0; in training what leads back inside passes."""
    vae = pv.VAE(
        data_shape=(1,),
        latent_dim=1,
        guide=pv.guides.SemiAmortized(steps=1),
        likelihood={"name": "gaussian", "sigma": "predicted", "floor": 0.5, "scale": 1.0},
        encoder="linear",
        decoder="linear",
    ).double()
    layer = linear(vae)
    with torch.no_grad():  # the mean is 0, and log sigma = z / 10 below the floor's
        layer[0].copy_(torch.tensor([[0.0], [0.1]]))
        layer[1].copy_(torch.tensor([0.0, -3.0]))
    far, near = torch.tensor([[4.0]]).double(), torch.tensor([[0.01]]).double()
    zero = torch.zeros(1, 1, dtype=torch.double)
    moved = [vae.guide_module.refine(zero, zero, Given(x))[:, 0].item() for x in (far, near)]
    assert moved[0] > 0.1, "a wider sigma would raise the bound: inside is that way"
    assert abs(moved[1]) < 1e-12, "a narrower one leads further out"


def test_a_pole_beside_a_point_throws_no_mean_away(monkeypatch):
    """The horseshoe's slope at m - s = 1e-9 has no bound: a step of it would end anywhere."""
    vae = build(steps=1, prior="horseshoe")
    x, log_scale = torch.randn(1, 5, dtype=torch.double), torch.zeros(1, 2, dtype=torch.double)
    loc = log_scale + 1 + 1e-9

    def moved():
        return (vae.guide_module.refine(loc, log_scale, vae.read(x))[:, :2] - loc).abs().max()

    assert 1 < moved() < 3 + 1e-6
    monkeypatch.setattr("pyro_vae.guides.semi_amortized.FARTHEST", float("inf"))
    assert moved() > 1e5
