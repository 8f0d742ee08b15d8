"""Precision: what runs in which arithmetic, and that everything is put back."""

import contextlib

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.nn import ConditionalAutoRegressiveNN, PyroModule, PyroParam
from small_pairs import LineGuide, LineModule, line_data, line_model
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from inference.errors import RequestError
from inference.precision import (
    PRECISIONS,
    arithmetic,
    cast,
    check_precision,
    in_dtype,
    switches,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BACKENDS = torch.backends
OPERATIONS = (
    BACKENDS.cuda.matmul,
    BACKENDS.cudnn.conv,
    BACKENDS.cudnn.rnn,
    BACKENDS.mkldnn.matmul,
    BACKENDS.mkldnn.conv,
    BACKENDS.mkldnn.rnn,
)
FAMILIES = (BACKENDS, BACKENDS.cudnn, BACKENDS.mkldnn)
needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="TF32 is a mode of NVIDIA GPUs, and there is none here"
)


def all_switches():
    """Both of torch's sets, the older where it can be read."""

    def old(read):
        try:
            return read()
        except RuntimeError:
            return "contradicts the newer"

    return [place.fp32_precision for place in (*FAMILIES, *OPERATIONS)] + [
        old(lambda: BACKENDS.cuda.matmul.allow_tf32),
        old(lambda: BACKENDS.cudnn.allow_tf32),
        old(torch.get_float32_matmul_precision),
    ]


@pytest.fixture
def default_switches():
    """Switches as torch starts with them, whatever the test does."""
    before = all_switches()
    yield
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    BACKENDS.fp32_precision = "none"
    BACKENDS.cudnn.fp32_precision = "none"
    for operation in OPERATIONS:
        operation.fp32_precision = "none"
    BACKENDS.cudnn.conv.fp32_precision = BACKENDS.cudnn.rnn.fp32_precision = "tf32"
    assert all_switches() == before


def test_requests_are_refused_in_one_sentence():
    for name in PRECISIONS:
        check_precision(name, CUDA)
    with pytest.raises(RequestError, match=r"TF32.*Choices: float32, tf32, bfloat16, float64"):
        check_precision("TF32", CPU)
    with pytest.raises(RequestError, match="is a mode of NVIDIA GPUs; use float32 or bfloat16"):
        check_precision("tf32", CPU)


# Switches


def legacy_high():
    torch.set_float32_matmul_precision("high")


def legacy_medium():
    torch.set_float32_matmul_precision("medium")


def legacy_convolutions_off():
    BACKENDS.cudnn.allow_tf32 = False


def new_on():
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    BACKENDS.mkldnn.matmul.fp32_precision = "bf16"


def new_everywhere():
    BACKENDS.fp32_precision = "tf32"


def new_gpu():
    BACKENDS.cudnn.fp32_precision = "tf32"


def new_convolutions_differ():
    BACKENDS.cudnn.conv.fp32_precision = "ieee"


def mixed_on():
    BACKENDS.cuda.matmul.allow_tf32 = True
    BACKENDS.cuda.matmul.fp32_precision = "ieee"
    BACKENDS.cudnn.conv.fp32_precision = "ieee"


def mixed_off():
    legacy_medium()
    legacy_convolutions_off()
    BACKENDS.fp32_precision = "tf32"
    BACKENDS.mkldnn.matmul.fp32_precision = "none"


SETTINGS = (
    legacy_high,
    legacy_medium,
    legacy_convolutions_off,
    new_on,
    new_everywhere,
    new_gpu,
    new_convolutions_differ,
    mixed_on,
    mixed_off,
)


@pytest.mark.usefixtures("default_switches")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_switches_are_set_and_put_back_whatever_the_caller_had(setting, precision):
    setting()
    before = all_switches()
    tf32 = precision == "tf32"
    with contextlib.suppress(ZeroDivisionError), arithmetic(precision, CUDA):
        inside = [operation.fp32_precision for operation in OPERATIONS]
        assert inside == ["tf32" if tf32 else "ieee"] * 3 + ["ieee"] * 3
        # The older set agrees with the newer: reading it, as inductor does, raises otherwise.
        assert BACKENDS.cuda.matmul.allow_tf32 == BACKENDS.cudnn.allow_tf32 == tf32
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        raise ZeroDivisionError
    assert all_switches() == before
    assert torch.cuda.is_available() or not torch.cuda.is_initialized()


@pytest.mark.usefixtures("default_switches")
def test_switches_that_followed_the_general_one_go_on_following_it():
    new_everywhere()
    with arithmetic("float32", CPU):
        pass
    BACKENDS.fp32_precision = "ieee"
    assert BACKENDS.cuda.matmul.fp32_precision == "ieee"
    assert BACKENDS.mkldnn.conv.fp32_precision == "ieee"


@pytest.mark.usefixtures("default_switches")
def test_float32_is_full_float32_on_the_cpu():
    x, w = torch.randn(128, 784), torch.randn(784, 200)
    full = x @ w
    legacy_medium()
    with arithmetic("float32", CPU):
        assert torch.equal(x @ w, full)
    with torch.autocast("cpu", torch.bfloat16):
        assert (x @ w).dtype is torch.bfloat16
        with arithmetic("float32", CPU):
            assert torch.equal(x @ w, full)
        assert (x @ w).dtype is torch.bfloat16


@needs_cuda
@pytest.mark.usefixtures("default_switches")
@pytest.mark.parametrize("setting", [legacy_high, mixed_on, mixed_off])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_errors_of_products_on_a_gpu(setting, precision):
    if torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("TF32 begins with compute capability 8")
    setting()
    x, w = (torch.randn(512, 512, device=CUDA, requires_grad=True) for _ in range(2))
    images = torch.randn(8, 16, 16, 16, device=CUDA)
    kernel = torch.randn(16, 16, 3, 3, device=CUDA)
    with arithmetic(precision, CUDA):
        product, convolved = x @ w, F.conv2d(images, kernel)
        (gradient,) = torch.autograd.grad(product.square().sum(), x)
    exact = x.double() @ w.double()
    pairs = (
        (product, exact),
        (gradient, 2 * product.double() @ w.double().T),
        (convolved, F.conv2d(images.double(), kernel.double())),
    )
    # Units in the last place: 2^-24, 2^-11 and 2^-9.
    low, high = {"float32": (0, 5e-6), "tf32": (5e-5, 2e-3), "bfloat16": (5e-4, 1e-2)}[precision]
    for value, truth in pairs:
        assert value.dtype is torch.float32
        assert low <= (value - truth).norm() / truth.norm() < high


@needs_cuda
def test_bfloat16_goes_through_a_cuda_graph():
    net = nn.Sequential(nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 1)).to(CUDA)
    x = torch.randn(32, 64, device=CUDA)

    def loss_and_gradients():
        with arithmetic("bfloat16", CUDA):
            loss = net(x).sum()
            return loss, *torch.autograd.grad(loss, tuple(net.parameters()))

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        loss_and_gradients()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = loss_and_gradients()
    x.copy_(torch.randn(32, 64))
    graph.replay()
    for value, eager in zip(captured, loss_and_gradients(), strict=True):
        assert torch.equal(value, eager)


# bfloat16


def rounded(*tensors):
    return [t.bfloat16() for t in tensors]


A, B, C = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(0)).unbind()
BATCH = torch.stack([A, B, C])
CALLS = {
    "linear": (F.linear, (A, B, C[0])),
    "linear without bias": (F.linear, (A, B)),
    "conv1d": (F.conv1d, (BATCH, BATCH[:, :, :3].transpose(0, 1).repeat(1, 2, 1)[:, :4], C[0])),
    "conv2d": (F.conv2d, (BATCH[None], torch.ones(2, 3, 3, 3) / 3)),
    "conv3d": (F.conv3d, (BATCH[None, None], torch.ones(2, 1, 2, 2, 2) / 3)),
    "conv_transpose1d": (F.conv_transpose1d, (BATCH, torch.ones(4, 2, 3) / 3)),
    "conv_transpose2d": (F.conv_transpose2d, (BATCH[None], torch.ones(3, 2, 3, 3) / 3)),
    "conv_transpose3d": (F.conv_transpose3d, (BATCH[None, None], torch.ones(1, 2, 2, 2, 2) / 3)),
    "@": (lambda a, b: a @ b, (A, B)),
    "@ in a batch": (lambda a, b: a @ b, (BATCH, B)),
    "matmul": (torch.matmul, (A, B[0])),
    "mm": (torch.mm, (A, B)),
    "bmm": (torch.bmm, (BATCH, BATCH)),
    "addmm": (torch.addmm, (A, B, C)),
    "baddbmm": (torch.baddbmm, (BATCH, BATCH, BATCH)),
    "method matmul": (lambda a, b: a.matmul(b), (A, B)),
    "method mm": (lambda a, b: a.mm(b), (A, B)),
    "method bmm": (lambda a, b: a.bmm(b), (BATCH, BATCH)),
    "method addmm": (lambda a, b, c: a.addmm(b, mat2=c), (A, B, C)),
    "method baddbmm": (lambda a, b, c: a.baddbmm(b, c), (BATCH, BATCH, BATCH)),
}


@pytest.mark.parametrize("name", CALLS)
def test_products_run_in_bfloat16_and_return_float32(name):
    function, arguments = CALLS[name]
    with arithmetic("bfloat16", CPU):
        value = function(*arguments)
    assert value.dtype is torch.float32
    assert torch.equal(value, function(*rounded(*arguments)).float())
    assert not torch.equal(value, function(*arguments))


@pytest.mark.parametrize("name", CALLS)
def test_other_dtypes_are_left_alone(name):
    function, arguments = CALLS[name]
    for dtype in (torch.float64, torch.bfloat16):
        arguments = [a.to(dtype) for a in arguments]
        plain = function(*arguments)
        with arithmetic("bfloat16", CPU):
            value = function(*arguments)
        assert value.dtype is dtype
        assert torch.equal(value, plain)


def test_everything_else_is_left_alone():
    whole = torch.arange(16).reshape(4, 4)
    into = torch.empty(4, 4)
    complex_product = A.to(torch.complex64) @ B.to(torch.complex64)
    outside = (torch.einsum("ij,jk->ik", A, B), F.softplus(A), whole @ whole, torch.mm(A, B))
    with arithmetic("bfloat16", CPU):
        inside = (
            torch.einsum("ij,jk->ik", A, B),
            F.softplus(A),
            whole @ whole,
            torch.mm(A, B, out=into),
        )
        assert torch.equal(A.to(torch.complex64) @ B.to(torch.complex64), complex_product)
        with pytest.raises(RuntimeError, match="dtype"):  # as without us: no silent rounding
            A.double() @ B
    for one, other in zip(inside, outside, strict=True):
        assert torch.equal(one, other)


@pytest.mark.usefixtures("own_store")
def test_layers():
    """Those of products in bfloat16; attention and recurrent layers in full float32."""
    torch.manual_seed(0)
    x, images = torch.randn(5, 8), torch.randn(2, 3, 8, 8)
    low = [
        (nn.Linear(8, 4), (x,)),
        (PyroModule[nn.Linear](8, 4), (x,)),
        (nn.Conv2d(3, 4, 3, padding="same"), (images,)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), (images,)),
        (nn.ConvTranspose2d(3, 4, 3, stride=2), (images,)),
        (ConditionalAutoRegressiveNN(8, 8, [16]), (x, x)),
    ]
    full = [
        (nn.MultiheadAttention(8, 2), (x, x, x)),
        (nn.GRU(8, 4), (x,)),
        (nn.LSTM(8, 4), (x,)),
        (nn.BatchNorm1d(8).eval(), (x,)),
    ]

    def first(value):
        return value[0] if isinstance(value, tuple) else value

    for layers, is_low in ((low, True), (full, False)):
        for layer, arguments in layers:
            exact = first(layer(*arguments))
            with arithmetic("bfloat16", CPU):
                value = first(layer(*arguments))
            assert value.dtype is torch.float32
            error = float(((value - exact).norm() / exact.norm()).detach())
            assert (1e-4 < error < 2e-2) if is_low else error == 0, layer


def test_densities_are_those_of_float32():
    """784 pixels and 200 latents: the densities of what the products gave, exact to 1e-3 nat.

    The usual autocast leaves bfloat16 behind, and loses up to a nat in the sums.
    """
    torch.manual_seed(0)
    hidden, x = torch.randn(64, 200), torch.bernoulli(torch.full((64, 784), 0.5))
    decoder, encoder = nn.Linear(200, 784), nn.Linear(200, 400)

    def logits():
        return 5 * decoder(hidden)

    def latents():
        loc, scale = encoder(hidden).chunk(2, -1)
        return dist.Normal(loc, F.softplus(scale)).to_event(1)

    def exact(distribution, value):
        base = distribution.base_dist
        if isinstance(base, dist.Bernoulli):
            return dist.Bernoulli(logits=base.logits.double()).to_event(1).log_prob(value.double())
        return dist.Normal(base.loc.double(), base.scale.double()).to_event(1).log_prob(value)

    def errors(low_networks, low_densities):
        found = []
        with low_networks():
            pixels, q = dist.Bernoulli(logits=logits()).to_event(1), latents()
        with low_densities():
            z = q.rsample()
            found = [(pixels.log_prob(x), pixels, x), (q.log_prob(z), q, z)]
        return [
            (log_prob.dtype, float((log_prob - exact(d, value)).abs().max()))
            for log_prob, d, value in found
        ]

    def ours():
        return arithmetic("bfloat16", CPU)

    def plain():
        return torch.autocast("cpu", torch.bfloat16)

    with torch.no_grad():
        for dtype, error in errors(ours, ours):
            assert dtype is torch.float32
            assert error < 1e-3
        # Autocast around the networks: the pixels. (CPU autocast has an exception for pixels.)
        (_, pixels), (dtype, latent) = errors(plain, contextlib.nullcontext)
        assert min(pixels, latent) > 0.05
        assert dtype is torch.bfloat16
        (_, _), (dtype, latent) = errors(plain, plain)
        assert latent > 0.05
        assert dtype is torch.bfloat16
        # What is left is the products' rounding.
        with ours():
            low = logits()
        assert 1e-3 < (low - logits()).norm() / logits().norm() < 1e-2


class Turned(dist.TorchDistribution):
    """One of a user's own: a Gaussian turned by a matrix."""

    def __init__(self, turn):
        self.turn = turn
        super().__init__(event_shape=turn.shape[:1], validate_args=False)

    def rsample(self, sample_shape=()):
        return torch.randn(*sample_shape, len(self.turn)) @ self.turn


def test_products_inside_a_distribution_are_part_of_its_density():
    """In bfloat16 they cost the low-rank Gaussian a nat."""
    torch.manual_seed(0)
    loc, factor, diagonal = torch.randn(64, 50), torch.randn(64, 50, 5), torch.rand(64, 50) + 0.01

    def draw_and_density(seed):
        torch.manual_seed(seed)
        low_rank = dist.LowRankMultivariateNormal(loc, 0.5 * factor, 0.1 * diagonal)
        full = dist.MultivariateNormal(loc, scale_tril=low_rank.scale_tril)
        flow = dist.TransformedDistribution(
            dist.Normal(loc, 1.0).to_event(1), [dist.transforms.Householder(50)]
        )
        own = Turned(torch.eye(50) + torch.randn(50, 50))
        z = low_rank.rsample()
        return (
            z,
            low_rank.log_prob(z),
            full.rsample(),
            full.log_prob(z),
            flow.rsample(),
            own.rsample((64,)),
        )

    with torch.no_grad():
        expected = draw_and_density(1)
        with arithmetic("bfloat16", CPU):
            values = draw_and_density(1)
    for value, exact in zip(values, expected, strict=True):
        assert torch.equal(value, exact)


class Small(nn.Module):
    """A VAE's ELBO beneath Pyro's handlers, of its weights, a batch and noise."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(20, 16), nn.Softplus(), nn.Linear(16, 6))
        self.decoder = nn.Sequential(nn.Linear(3, 16), nn.Softplus(), nn.Linear(16, 20))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x, noise):
        with pyro.plate("data", len(x)):
            loc, scale = self.encoder(x).chunk(2, -1)
            scale = F.softplus(scale)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1), obs=loc + scale * noise)

    def forward(self, x, noise):
        guide = poutine.trace(self.guide).get_trace(x, noise)
        values = {"z": guide.nodes["z"]["value"]}
        model = poutine.trace(poutine.condition(self.model, values)).get_trace(x)
        return (guide.log_prob_sum() - model.log_prob_sum()) / len(x)


def loss_and_gradients(net, precision, *, inside=True):
    names = [name for name, _ in net.named_parameters()]

    def function(weights, x, noise):
        with arithmetic(precision, CPU) if inside else contextlib.nullcontext():
            weights = [w.detach().requires_grad_() for w in weights]
            values = dict(zip(names, weights, strict=True))
            loss = torch.func.functional_call(net, values, (x, noise))
            return [loss, *torch.autograd.grad(loss, weights)]

    return function


def batch(size=32):
    return torch.bernoulli(torch.full((size, 20), 0.5)), torch.randn(size, 3)


@pytest.fixture
def no_validation():
    with pyro.validation_enabled(False):
        yield


@pytest.mark.usefixtures("no_validation")
@pytest.mark.parametrize("inside", [True, False])
def test_traced_equals_eager_bit_for_bit(inside):
    net = Small()
    eager = loss_and_gradients(net, "bfloat16")
    around = contextlib.nullcontext() if inside else arithmetic("bfloat16", CPU)
    weights = [w.detach().clone() for w in net.parameters()]
    with around:
        graph = make_fx(loss_and_gradients(net, "bfloat16", inside=inside))(weights, *batch())
    casts = [node.kwargs.get("dtype") for node in graph.graph.nodes if "_to_copy" in str(node)]
    assert casts.count(torch.bfloat16) >= 8  # at least the input and the weight of four layers
    assert casts.count(torch.float32) >= 4
    for _ in range(2):  # weights and batches that the tracing did not see
        weights = [w + 0.1 * torch.randn_like(w) for w in weights]
        arguments = batch()
        expected = eager(weights, *arguments)
        for replaying in (switches("bfloat16", CPU), arithmetic("bfloat16", CPU)):
            with replaying:
                traced = graph(weights, *arguments)
            assert all(value.dtype is torch.float32 for value in traced)
            assert all(torch.equal(a, b) for a, b in zip(traced, expected, strict=True))
    full = loss_and_gradients(net, "float32")(weights, *arguments)
    assert not any(torch.equal(a, b) for a, b in zip(full, expected, strict=True))


def test_gradients_are_close_to_those_of_float32():
    net, arguments = Small(), batch(128)
    weights = list(net.parameters())
    full = loss_and_gradients(net, "float32")(weights, *arguments)
    low = loss_and_gradients(net, "bfloat16")(weights, *arguments)
    for (name, _), a, b in zip(net.named_parameters(), low[1:], full[1:], strict=True):
        assert 1e-5 < (a - b).norm() / b.norm() < 0.02, name


# float64


class Various(nn.Module):
    """Parameters and buffers of several dtypes, one shared, one expanded, one complex."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3).bfloat16()
        self.tied = nn.Linear(3, 3)
        self.tied.weight = self.first.weight
        self.wide = nn.Parameter(torch.randn(3, dtype=torch.float64))
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("expanded", torch.zeros(1).expand(5))
        self.register_buffer("absent", None)
        self.register_buffer("turned", torch.ones(2, dtype=torch.complex64))
        self.lazy = nn.LazyLinear(2)
        self.register_buffer("derived", self.first.weight * 2, persistent=False)


def state(module):
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {
        name: (id(t), t.dtype, t.requires_grad, None if "lazy" in name else t.data_ptr())
        for name, t in tensors
    }


def test_modules_are_float64_inside_and_as_before_afterwards():
    module = Various()
    before, values = state(module), {n: p.detach().clone() for n, p in module.named_buffers()}
    module.first.weight.grad = gradient = torch.ones(3, 3)
    with contextlib.suppress(ZeroDivisionError), in_dtype([module], "float64"):
        assert torch.get_default_dtype() is torch.float64
        inside = state(module)
        for name, (identity, dtype, requires_grad, _) in before.items():
            exempt = dtype in (torch.complex64, torch.int64)
            wanted = (identity, dtype if exempt else torch.float64, requires_grad)
            assert inside[name][:3] == wanted, name
        assert module.first.weight.grad is None
        x = torch.randn(4, 3)
        module.norm(module.second(module.tied(module.first(x)))).square().sum().backward()
        assert module.first.weight.grad.dtype is torch.float64
        raise ZeroDivisionError
    assert torch.get_default_dtype() is torch.float32
    assert state(module) == before
    assert module.first.weight is module.tied.weight
    assert module.first.weight.grad is gradient
    assert module.second.weight.grad is None
    changed = {n for n, b in module.named_buffers() if not torch.equal(b, values[n])}
    assert changed == {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_others_change_nothing():
    module = Various()
    before = state(module)
    for precision in ("float32", "tf32", "bfloat16"):
        with in_dtype([module], precision):
            assert state(module) == before
            assert torch.get_default_dtype() is torch.float32


def test_trained_values_come_back_rounded_in_the_storage_they_had():
    module = nn.Linear(3, 1)
    view = module.weight.detach().view(-1)
    with in_dtype([module], "float64"):
        module.weight.data.fill_(1 / 3)
        assert float(module.weight.detach()[0, 0]) == 1 / 3
    assert torch.equal(view, torch.full((3,), 1 / 3))


def test_what_is_made_or_replaced_inside_gets_the_former_dtype():
    module = Various()
    with in_dtype([module], "float64"):
        module.second.weight = nn.Parameter(torch.zeros(3, 3))
        module.extra = nn.Linear(2, 2)
        module.register_buffer("turned", torch.ones(2))
        assert module.second.weight.dtype is module.extra.weight.dtype is torch.float64
        assert module.lazy(torch.ones(1, 3)).dtype is torch.float64
    assert module.lazy.weight.dtype is module.lazy.bias.dtype is torch.float32
    assert module.lazy.weight.shape == (2, 3)
    assert module.second.weight.dtype is torch.bfloat16
    assert module.extra.weight.dtype is torch.float32
    assert all(p.is_leaf and p.requires_grad for p in module.extra.parameters())


def test_a_graph_from_before_does_not_spoil_gradients_inside():
    module = nn.Linear(3, 1)
    kept = module(torch.ones(1, 3)).sum()  # its graph holds the accumulators of the weights
    with in_dtype([module], "float64"):
        module(torch.ones(1, 3)).sum().backward()
        assert module.weight.grad.dtype is torch.float64
    kept.backward()
    assert module.weight.grad.dtype is torch.float32


class Late(PyroModule):
    """A PyroParam that exists from its first use on, beside one that does from the start."""

    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(2.0), constraint=constraints.positive)
        self.late = PyroParam(lambda: torch.ones(2), constraint=constraints.positive)

    def forward(self):
        return self.scale * self.late


@pytest.mark.usefixtures("own_store")
def test_pyro_modules():
    module = Late()
    unconstrained = module.scale_unconstrained
    with in_dtype([module], "float64"):
        value = module()
        assert value.dtype is torch.float64
        value.sum().backward()
        assert unconstrained.grad.dtype is torch.float64
    assert module.scale_unconstrained is unconstrained
    assert {p.dtype for p in module.parameters()} == {torch.float32}
    assert len(list(module.parameters())) == 2
    assert module().dtype is torch.float32
    model, guide = LineModule(), LineGuide()
    data = cast(line_data(), "float64")
    with in_dtype([model, guide], "float64"):
        loss = pyro.infer.Trace_ELBO().differentiable_loss(model, guide, *data)
        assert loss.dtype is torch.float64
        loss.backward()
    assert {p.dtype for p in (*model.parameters(), *guide.parameters())} == {torch.float32}


def test_plain_parameters_of_the_store(own_store):
    own_store.clear()
    slope = pyro.param("slope", torch.tensor(0.5))
    other = nn.Linear(2, 2)
    pyro.module("other", other)  # another training's: none of ours
    data = cast(line_data(), "float64")
    with in_dtype([], "float64"):
        assert pyro.param("slope") is slope
        assert slope.dtype is torch.float64
        assert slope.is_leaf
        assert slope.requires_grad
        assert other.weight.dtype is torch.float32
        line_model(*data)  # makes "noise"
        (2 * pyro.param("slope") + pyro.param("noise")).backward()
        assert slope.grad.dtype is torch.float64
    assert slope.dtype is torch.float32
    assert slope.grad is None
    noise = own_store._params["noise"]
    assert noise.dtype is torch.float32
    assert noise.is_leaf
    assert noise.requires_grad
    assert pyro.param("noise").item() == pytest.approx(1.0)
    (2 * pyro.param("slope") + pyro.param("noise")).backward()
    assert float(slope.grad) == 2.0


def test_a_pair_evaluated_in_float64_loses_nothing_on_the_way():
    """A factor of 1 + 1e-10, of no effect in float32, is seen in the loss."""
    net, (x, noise) = Small(), cast(batch(), "float64")

    def difference():
        weight = net.decoder[2].weight
        before = net(x.to(weight.dtype), noise.to(weight.dtype))
        weight.data *= 1 + 1e-10
        return float(abs(net(x.to(weight.dtype), noise.to(weight.dtype)) - before))

    with torch.no_grad():
        assert difference() == 0
        with in_dtype([net], "float64"), arithmetic("float64", CPU):
            assert 1e-12 < difference() < 1e-9


def test_cast_touches_floating_data_for_float64_alone():
    data = (torch.ones(2), torch.ones(2, dtype=torch.float64), torch.arange(2), torch.ones(1) > 0)
    assert [a.dtype for a in cast(data, "float64")] == [
        torch.float64,
        torch.float64,
        torch.int64,
        torch.bool,
    ]
    for precision in ("float32", "tf32", "bfloat16"):
        assert all(a is b for a, b in zip(cast(data, precision), data, strict=True))
