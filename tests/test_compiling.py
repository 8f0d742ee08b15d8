"""Passes over graphs before they are compiled, and what is said when that fails."""

import pytest
import torch
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from inference.compiling import _options, _scalars_apart, _without_copies, compile_graph
from inference.errors import CompilationError


def graph_of(function, *inputs):
    return make_fx(functionalize(function))(*inputs)


def operations(graph):
    return [str(n.target) for n in graph.graph.nodes if n.op == "call_function"]


def adam_like(weight, step, rate):
    step = step + 1
    size = rate / (1 - 0.9**step)
    return weight - size * weight.sin(), step


EXAMPLE = torch.randn(5), torch.tensor(3.0), torch.tensor(0.1)


def test_single_numbers_are_computed_apart():
    parts = _scalars_apart(graph_of(adam_like, *EXAMPLE))
    numbers, places, rest = parts
    assert places == [1, 2]
    assert any("pow" in name for name in operations(numbers))
    assert not any("pow" in name for name in operations(rest))
    handed = numbers(*EXAMPLE[1:])
    found, step = rest(*EXAMPLE, *handed)
    expected, expected_step = adam_like(*EXAMPLE)
    assert torch.equal(found, expected)
    assert torch.equal(step, expected_step)


def test_noise_and_results_of_the_data_stay():
    """A mean of data is one number, but not of numbers; a draw is no function of anything."""

    def function(x, scale):
        return x * (x.mean() + scale * torch.randn(()))

    parts = _scalars_apart(graph_of(function, torch.randn(4), torch.tensor(2.0)))
    assert parts is None or not any("rand" in name for name in operations(parts[0]))
    assert _scalars_apart(graph_of(lambda x: x.sum() * x, torch.randn(3))) is None


def test_a_bias_joins_what_follows():
    def function(x, weight, bias):
        return torch.addmm(bias, x, weight).tanh()

    inputs = torch.randn(3, 4), torch.randn(4, 5), torch.randn(5)
    graph = _without_copies(graph_of(function, *inputs))
    assert not any("addmm" in name for name in operations(graph))
    assert torch.allclose(graph(*inputs), function(*inputs), atol=1e-6)


def test_compiled_in_place_changes_reach_the_inputs():
    def function(weight, step, rate):
        new, count = adam_like(weight, step, rate)
        weight.copy_(new)
        step.copy_(count)
        return (new.sum(),)

    weight, step, rate = (t.clone() for t in EXAMPLE)
    graph = make_fx(function)(*(t.clone() for t in EXAMPLE))
    run = compile_graph(graph, [t.clone() for t in EXAMPLE])
    expected = adam_like(*EXAMPLE)
    with torch.no_grad():
        (total,) = run(weight, step, rate)
    assert torch.allclose(weight, expected[0])
    assert float(step) == 4.0
    assert float(total) == pytest.approx(float(expected[0].sum()), rel=1e-5)


def test_a_failure_is_one_sentence(monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no working C++ compiler\nand a long story")

    monkeypatch.setattr(torch._inductor, "compile", fail)
    with pytest.raises(CompilationError, match=r"^torch's inductor: no working C\+\+ compiler$"):
        compile_graph(graph_of(adam_like, *EXAMPLE), list(EXAMPLE))


def test_draws_of_several_sizes_keep_their_order():
    def function(x):
        return torch.randn(3).sum() * x, torch.rand(50, 7) * x, torch.randn(11).exp() + x

    x = torch.tensor(2.0)
    run = compile_graph(make_fx(function)(x.clone()), [x.clone()])
    torch.manual_seed(0)
    expected = function(x)
    torch.manual_seed(0)
    for found, wanted in zip(run(x), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-5)


def test_a_small_tanh_keeps_its_digits_where_they_count():
    """log |tanh x| is compiled by the accurate tanh, x W behind a tanh by the fast one."""
    x = 1e-6 * torch.randn(64).abs().add(0.1)
    run = compile_graph(make_fx(lambda x: (x.tanh().log(),))(x.clone()), [x.clone()])
    assert torch.allclose(run(x)[0], x.tanh().log(), rtol=1e-5)
    weight = torch.randn(3, 3)
    plain = graph_of(lambda x, w: (x @ w).tanh() @ w, torch.randn(2, 3), weight)
    spread = graph_of(lambda x, w: ((x @ w).tanh() @ w, (x @ w).tanh().log()), x[:3][None], weight)
    assert _options(plain)["cpp.use_decompose_tanh"]
    assert not _options(spread)["cpp.use_decompose_tanh"]
