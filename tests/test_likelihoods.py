"""Likelihoods: densities by hand with their constants, floors, and starts from data."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, softplus

import pyro_vae as pv
from pyro_vae.likelihoods import bernoulli
from pyro_vae.part import Shapes

SIGMAS = ["fixed", "learned", "per_pixel", "predicted"]
SHAPES = [(4,), (3, 2), (3, 2, 2)]


def build(sigma, data=(3, 2), **fields):
    spec = pv.likelihoods.Gaussian(sigma=sigma, **fields)
    shapes = Shapes(data=data, latent=(2,))
    return spec, spec.build(shapes)


def parts(sigma, module, outputs):
    """loc and scale of the definition."""
    if sigma == "predicted":
        loc, raw = outputs.movedim(-len(module.shapes.data) - 1, 0)
        return loc, raw.exp()
    if sigma == "fixed":
        return outputs, torch.tensor(module.scale)
    return outputs, module.log_sigma.exp()


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("data", SHAPES)
@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_gaussian_by_hand(sigma, data, leading):
    spec, module = build(sigma, data, scale=0.7)
    assert spec.param_shape(data) == ((2, *data) if sigma == "predicted" else data)
    if hasattr(module, "log_sigma"):
        module.log_sigma.data += 0.3 * torch.randn_like(module.log_sigma)
    outputs = torch.randn(*leading, *spec.param_shape(data))
    p = module(outputs)
    assert p.event_shape == data
    assert p.batch_shape == leading
    loc, scale = parts(sigma, module, outputs)
    x = torch.randn(*leading, *data)
    torch.testing.assert_close(p.mean, loc)
    pixels = Normal(loc, scale).log_prob(x)
    by_hand = -0.5 * ((x - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)
    dims = tuple(range(-len(data), 0))
    torch.testing.assert_close(pixels, by_hand)
    torch.testing.assert_close(p.log_prob(x), by_hand.sum(dims))
    without = (by_hand + 0.5 * math.log(2 * math.pi)).sum(dims)
    assert not torch.allclose(p.log_prob(x), without, atol=1.0), "the constant must be seen"


@pytest.mark.parametrize("sigma", ["learned", "per_pixel", "predicted"])
def test_the_floor_is_respected(sigma):
    spec, module = build(sigma, floor=0.05, scale=0.05)
    outputs = torch.zeros(spec.param_shape((3, 2)))
    if sigma == "predicted":
        outputs[1] = -50.0
    else:
        module.log_sigma.data.fill_(-50.0)
    scale = module(outputs).base_dist.scale
    torch.testing.assert_close(scale, torch.full((3, 2), 0.05))
    if sigma == "predicted":
        outputs[1] = 200.0
        assert torch.isfinite(module(outputs).base_dist.scale).all()


def below_the_floor(sigma, raw=-9.0):
    """A module whose log sigma is `raw`, and what gradients flow to."""
    spec, module = build(sigma, floor=0.05)
    outputs = torch.zeros(spec.param_shape((3, 2)))
    if sigma == "predicted":
        outputs[1] = raw
        return module, outputs.requires_grad_(), outputs
    module.log_sigma.data.fill_(raw)
    return module, outputs, module.log_sigma


@pytest.mark.parametrize("sigma", ["learned", "per_pixel", "predicted"])
def test_a_sigma_below_its_floor_comes_back_when_the_data_say_so(sigma):
    module, outputs, leaf = below_the_floor(sigma)
    far, near = torch.ones(3, 2), torch.zeros(3, 2)

    def gradient(x):
        (found,) = torch.autograd.grad(-module(outputs).log_prob(x), leaf)
        return found[1] if sigma == "predicted" else found

    # d/d log sigma of -log N is 1 - (r / sigma)^2, for each pixel.
    expected = torch.full((3, 2), 1 - (1 / 0.05) ** 2)
    expected = expected.sum() if sigma == "learned" else expected
    torch.testing.assert_close(gradient(far), expected)
    assert not gradient(near).any(), "nothing may lead further below"
    module.eval()
    assert not gradient(far).any(), "evaluation has the exact gradient, which is 0"


@pytest.mark.parametrize("sigma", ["learned", "per_pixel"])
def test_training_raises_a_sigma_from_below_its_floor(sigma):
    module, outputs, leaf = below_the_floor(sigma, raw=-4.0)
    x = 0.5 * torch.randn(200, 3, 2)
    optimizer = torch.optim.Rprop([leaf], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        (-module(outputs).log_prob(x).mean()).backward()
        optimizer.step()
    expected = x.square().mean(0).sqrt()
    expected = x.square().mean().sqrt() if sigma == "learned" else expected
    torch.testing.assert_close(module.fitted_sigma().detach(), expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("raw", [-9.0, 0.3])
@pytest.mark.parametrize("sigma", ["learned", "per_pixel", "predicted"])
def test_the_way_back_is_traced(sigma, raw):
    module, outputs, leaf = below_the_floor(sigma, raw)

    def loss_and_gradient(leaf, outputs, x):
        with torch.enable_grad():
            if sigma == "predicted":
                loss = -module(leaf).log_prob(x)
            else:
                found = torch.func.functional_call(module, {"log_sigma": leaf}, (outputs,))
                loss = -found.log_prob(x)
            return loss, *torch.autograd.grad(loss, leaf)

    dist = torch.distributions.Distribution
    validate = dist._validate_args
    dist.set_default_validate_args(False)  # checks of values are not traceable
    try:
        graph = make_fx(loss_and_gradient)(leaf, outputs, torch.ones(3, 2))
        for x in (torch.ones(3, 2), torch.zeros(3, 2)):  # the gradients have opposite signs
            for ours, traced in zip(
                loss_and_gradient(leaf, outputs, x), graph(leaf, outputs, x), strict=True
            ):
                assert torch.equal(ours, traced)
    finally:
        dist.set_default_validate_args(validate)


def test_a_predicted_sigma_above_its_ceiling_comes_back():
    module, outputs, leaf = below_the_floor("predicted", raw=20.0)
    (gradient,) = torch.autograd.grad(-module(outputs).log_prob(torch.zeros(3, 2)), leaf)
    torch.testing.assert_close(gradient[1], torch.ones(3, 2))


def test_predicted_sigmas_at_the_floor_are_counted():
    spec, module = build("predicted", floor=0.05)
    outputs = torch.zeros(10, *spec.param_shape((3, 2)))
    assert module.warnings(outputs) == []
    outputs[:5, 1, 0] = -50.0  # two pixels of half the data
    [said] = module.warnings(outputs)
    assert said.startswith("10 of 60 sigmas predicted for 10 data stand at their floor of 0.05")
    assert f"up to {math.log(10):.0f} nats per datum" in said  # one pixel a datum, on average


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_density_is_normalised(sigma, dtype):
    spec, module = build(sigma, (1,), scale=0.5)
    module = module.to(dtype)
    outputs = torch.full(spec.param_shape((1,)), 0.3, dtype=dtype)
    x = torch.linspace(-15, 15, 30_001, dtype=dtype)[:, None]
    with torch.no_grad():
        density = module(outputs).expand([len(x)]).log_prob(x).exp()
    assert density.dtype == dtype
    assert abs(float(density.sum()) * 1e-3 - 1) < (1e-9 if dtype == torch.float64 else 1e-4)


def test_initialize_sets_the_spread_of_the_data():
    x = torch.randn(500, 3, 2) * torch.tensor([0.5, 2.0]) + 4
    _, learned = build("learned")
    learned.initialize(x)
    rms = (x - x.mean(0)).square().mean().sqrt()
    torch.testing.assert_close(learned.fitted_sigma(), rms)
    _, per_pixel = build("per_pixel")
    per_pixel.initialize(x)
    torch.testing.assert_close(per_pixel.fitted_sigma(), x.std(0, correction=0))
    # Without z, these starts are the maximum of the likelihood.
    for module in (learned, per_pixel):
        p = module(module.initial_output(x))
        start = p.log_prob(x).mean()
        module.log_sigma.data += 0.05
        assert module(module.initial_output(x)).log_prob(x).mean() < start
        module.log_sigma.data -= 0.1
        assert module(module.initial_output(x)).log_prob(x).mean() < start
    _, fixed = build("fixed", scale=0.7)
    fixed.initialize(x)
    assert float(fixed.fitted_sigma()) == pytest.approx(0.7)
    assert not list(fixed.parameters())
    _, predicted = build("predicted")
    loc, raw = predicted.initial_output(x)
    torch.testing.assert_close(loc, x.mean(0))
    torch.testing.assert_close(raw.exp(), x.std(0, correction=0))


def test_constant_pixels_are_counted():
    x = torch.rand(100, 3, 2)
    x[:, 0] = 0.25
    _, module = build("per_pixel", floor=1e-2)
    assert module.warnings() == []
    module.initialize(x)
    [said] = module.warnings()
    assert said.startswith("2 of 6 sigmas stand at their floor of 0.01")
    assert f"up to {2 * math.log(10):.0f} nats" in said
    _, lower = build("per_pixel", floor=1e-3)
    lower.initialize(x)
    outputs = x.mean(0)
    gained = lower(outputs).log_prob(x) - module(outputs).log_prob(x)
    torch.testing.assert_close(gained, torch.full((100,), 2 * math.log(10)), rtol=0, atol=1e-2)

    _, one = build("learned", floor=1e-2)
    one.initialize(torch.full((10, 3, 2), 0.5))
    [said] = one.warnings()
    assert said.startswith("1 of 1 sigmas")
    assert f"up to {6 * math.log(10):.0f} nats" in said
    for sigma in ("fixed", "predicted"):
        assert build(sigma)[1].warnings() == []


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("decoder", ["linear", "mlp", "conv"])
def test_a_vae_starts_at_the_data_mean(sigma, decoder):
    x = 0.3 * torch.randn(200, 6, 6) + torch.linspace(-1, 1, 36).reshape(6, 6)
    vae = pv.VAE(
        data_shape=(6, 6),
        latent_dim=2,
        likelihood={"name": "gaussian", "sigma": sigma},
        decoder=decoder,
    ).initialize(x)
    start = vae.decode(torch.zeros(2))
    expected = x.mean(0) if decoder != "conv" else x.mean().expand(6, 6)
    torch.testing.assert_close(start.mean, expected, atol=1e-5, rtol=1e-5)
    if sigma == "predicted" and decoder != "conv":
        torch.testing.assert_close(start.base_dist.scale, x.std(0, correction=0))


def test_bernoulli_vae_starts_at_the_clipped_mean_image():
    x = (torch.rand(1000, 6, 6) < torch.linspace(0, 1, 36).reshape(6, 6)).float()
    vae = pv.VAE(data_shape=(6, 6), latent_dim=2, decoder="linear").initialize(x)
    torch.testing.assert_close(vae.decode(torch.zeros(2)).mean, x.mean(0).clamp(0.001, 0.999))


@pytest.mark.parametrize("data", SHAPES)
@pytest.mark.parametrize("leading", [(), (5,), (2, 5)])
def test_bernoulli_by_hand(data, leading):
    module = pv.likelihoods.Bernoulli().build(Shapes(data=data, latent=(2,)))
    logits = (4 * torch.randn(*leading, *data, dtype=torch.double)).requires_grad_()
    x = torch.rand(5, *data, dtype=torch.double).round() if leading else torch.ones(data).double()
    p = module(logits)
    assert (p.batch_shape, p.event_shape) == (leading, data)
    dims = tuple(range(-len(data), 0))
    log_p = p.log_prob(x)
    expected = Bernoulli(logits=logits).log_prob(x.expand_as(logits)).sum(dims)
    torch.testing.assert_close(log_p, expected)
    cross_entropy = binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
    torch.testing.assert_close(log_p, -cross_entropy.sum(dims))
    (ours,) = torch.autograd.grad(log_p.sum(), logits)
    torch.testing.assert_close(ours, x - logits.detach().sigmoid(), atol=1e-8, rtol=1e-6)
    assert p.expand([3, *leading]).log_prob(x).shape == (3, *leading)


def test_bernoulli_at_the_edges():
    module = pv.likelihoods.Bernoulli().build(Shapes(data=(1,), latent=(2,)))
    logits = torch.tensor([[-1e4], [-100.0], [-30.0], [0.0], [30.0], [100.0], [1e4]])
    for x in (torch.zeros(1), torch.ones(1)):
        exact = Bernoulli(logits=logits.double()).log_prob(x.double()).sum(-1)
        torch.testing.assert_close(module(logits).log_prob(x).double(), exact, rtol=1e-6, atol=1e-8)
    for grey in (0.5, 2.0, math.nan):
        with pytest.raises(ValueError, match="support"):
            module(logits).log_prob(torch.tensor([grey]))


# Without gradients: products in place of softplus -----------------------------------------------

SIZES = [1, 7, 16, 61, 784, 1024, 1025, 3072]


def binary(count, rows=20):
    return torch.rand(rows, count).round()


def exact_log_p(logits, x):
    """log sigmoid(+-l), summed in float64."""
    signed = torch.where(x > 0.5, logits, -logits).double()
    return logsigmoid(signed).sum(-1)


def extremes(x):
    """Logits `[rows, D]`, by name; `right` ones agree with the data."""
    sign = 2 * x - 1
    levels = (0.0, 1e-8, 1e-3, 1.0, 17.0, 50.0, 1e4)
    return {
        **{f"all {level}": torch.full_like(x, level) for level in levels},
        **{f"right {level}": sign * level for level in levels},
        **{f"normal {scale}": scale * torch.randn_like(x) for scale in (0.1, 3.0, 30.0)},
        "right 10": sign * 10 * torch.randn_like(x).abs(),
        "mixed": torch.tensor([1e4, -50.0, 0.0, 1e-8])[torch.randint(4, x.shape)],
    }


@pytest.mark.parametrize("count", SIZES)
def test_products_are_as_exact_as_softplus(count):
    x = binary(count)
    module = pv.likelihoods.Bernoulli().build(Shapes(data=(count,), latent=(2,)))
    for name, logits in extremes(x).items():
        expected = exact_log_p(logits, x)
        error = (module(logits).log_prob(x).double() - expected).abs().max()
        plain = ((x * logits - softplus(logits)).sum(-1).double() - expected).abs().max()
        # Sums of D float32 numbers: a few last places of the total, and 4e-8 for each factor.
        assert error <= 1.5 * plain + 4e-7 * expected.abs().max() + 5e-8 * count, name


@pytest.mark.parametrize("groups", ["one product of all", "one factor forgotten"])
def test_the_check_sees_wrong_groups(groups, monkeypatch):
    def wrong(factors):
        if groups == "one product of all":  # underflows
            return factors.prod(-1).log()
        return right(factors[..., 1:])

    right = bernoulli._sum_of_logs
    monkeypatch.setattr(bernoulli, "_sum_of_logs", wrong)
    with pytest.raises(AssertionError):
        test_products_are_as_exact_as_softplus(784)


@pytest.mark.parametrize("data", [(784,), (3, 4, 5)])
def test_both_ways_agree_where_one_x_meets_many_outputs(data):
    module = pv.likelihoods.Bernoulli().build(Shapes(data=data, latent=(2,)))
    logits = 3 * torch.randn(6, 5, *data)
    x = torch.rand(5, *data).round()
    with_gradients = module(logits.clone().requires_grad_()).log_prob(x)
    assert with_gradients.requires_grad
    found = module(logits).log_prob(x)
    assert found.shape == (6, 5)
    torch.testing.assert_close(found, with_gradients.detach())
    with torch.no_grad():
        assert torch.equal(module(logits.requires_grad_()).log_prob(x), found)


def test_low_precision_outputs_are_summed_in_float32():
    for build_module in (pv.likelihoods.Bernoulli().build, pv.likelihoods.Gaussian().build):
        module = build_module(Shapes(data=(784,), latent=(2,)))
        outputs = torch.randn(5, 784, dtype=torch.bfloat16)
        x = torch.rand(5, 784).round()
        found = module(outputs).log_prob(x)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, module(outputs.float()).log_prob(x), rtol=0, atol=0)


# Recorded once ------------------------------------------------------------------------------


@pytest.fixture
def unchecked():
    """Checks of values are not traceable."""
    distribution = torch.distributions.Distribution
    validate = distribution._validate_args
    distribution.set_default_validate_args(False)
    yield
    distribution.set_default_validate_args(validate)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("likelihood", ["bernoulli", *SIGMAS])
def test_densities_are_traced_bit_for_bit(likelihood, gradients, unchecked):
    if likelihood == "bernoulli":
        spec = pv.likelihoods.Bernoulli()
        module = spec.build(Shapes(data=(3, 7), latent=(2,)))
    else:
        spec, module = build(likelihood, (3, 7))

    def density(outputs, x):
        if not gradients:
            return (module(outputs).log_prob(x),)
        log_p = module(outputs).log_prob(x)
        return log_p, *torch.autograd.grad(log_p.sum(), outputs)

    def inputs():
        outputs = torch.randn(4, 5, *spec.param_shape((3, 7)))
        return outputs.requires_grad_(gradients), torch.rand(5, 3, 7).round()

    with torch.set_grad_enabled(gradients):
        graph = make_fx(density)(*inputs())
        new = inputs()
        for found, expected in zip(graph(*new), density(*new), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gaussian_images_expand(sigma):
    spec, module = build(sigma, (3, 2), scale=0.7)
    p = module(torch.randn(5, *spec.param_shape((3, 2))))
    wide = p.expand([4, 5])
    assert (wide.batch_shape, wide.event_shape) == ((4, 5), (3, 2))
    x = torch.randn(4, 5, 3, 2)
    torch.testing.assert_close(wide.log_prob(x), p.log_prob(x), rtol=0, atol=0)
    torch.testing.assert_close(wide.log_prob(x[0]), p.log_prob(x[0]).expand(4, 5))
    assert wide.sample().shape == (4, 5, 3, 2)
    with pytest.raises(ValueError, match="support"):
        wide.log_prob(torch.full((3, 2), math.nan))
