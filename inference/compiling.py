"""Graphs of tensor operations, compiled by torch's inductor.

The inductor takes seconds to import, so it is imported where something is compiled.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize

from inference.errors import CompilationError


def _options(graph: fx.GraphModule) -> dict[str, Any]:
    import torch._inductor.config as config
    import torch._inductor.fx_passes.post_grad as post_grad

    options = {
        # Random numbers are drawn as in eager code: all engines see the same noise under one seed.
        "fallback_random": True,
        # Sizes are known since the recording; checking them at every call costs time.
        "size_asserts": False,
        # tanh by one exp, in a quarter of the time: off by 1e-7, which is much of a small value but
        # nothing to the sum of a product.
        "cpp.use_decompose_tanh": all(_is_summed(n) for n in graph.graph.nodes if _is_tanh(n)),
    }
    if not hasattr(post_grad, "_chain_random_ops_for_ordering"):
        # Releases that do not keep the order of draws otherwise.
        options |= {"reorder_for_locality": False, "reorder_for_peak_memory": False}
    known = config.get_config_copy()
    return {name: value for name, value in options.items() if name in known}


def _is_tanh(node: fx.Node) -> bool:
    return node.target is torch.ops.aten.tanh.default


def _is_summed(node: fx.Node) -> bool:
    """Does a value go into matrix products and its own derivative only?"""
    aten = torch.ops.aten
    products = (aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution)
    shapes: tuple[Any, ...] = (
        aten.view,
        aten.t,
        aten.transpose,
        aten.reshape,
        aten.permute,
        aten._to_copy,
    )
    shapes += (aten.expand, aten.unsqueeze, aten.squeeze, aten._unsafe_view, aten.clone, aten.alias)
    for user in node.users:
        kind = getattr(user.target, "overloadpacket", None)
        if kind in (*products, aten.tanh_backward, aten.convolution_backward):
            continue
        if kind not in shapes or not _is_summed(user):
            return False
    return True


def _without_copies(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The same graph, without copies that the compiler would make.

    b + X W becomes a product and a sum, which joins what follows: as one operation, b is first
    copied to every row of the result. The detour through another shape keeps the compiler from
    joining the two again.
    """
    graph = fx.Graph()
    aten = torch.ops.aten
    copies: dict[fx.Node, fx.Node] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target is aten.addmm.default and not node.kwargs:
            bias, left, right = (copies[n] for n in node.args)
            product = graph.call_function(aten.mm.default, (left, right))
            wide = graph.call_function(aten.unsqueeze.default, (product, 0))
            total = graph.call_function(aten.add.Tensor, (wide, bias))
            copies[node] = graph.call_function(aten.squeeze.dim, (total, 0))
        elif _is_standard_normal(node):
            # As a fill, the compiler would copy the empty tensor first.
            value = node.meta["val"]
            options = {"dtype": value.dtype, "device": value.device}
            copies[node] = graph.call_function(aten.randn.default, (list(value.shape),), options)
            copies[node].meta.update(node.meta)
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.eliminate_dead_code()
    return fx.GraphModule(graph_module, graph)


def _is_standard_normal(node: fx.Node) -> bool:
    return (
        node.target is torch.ops.aten.normal_functional.default
        and len(node.args) == 1
        and not node.kwargs
        and isinstance(node.meta.get("val"), Tensor)
    )


def _scalars_apart(
    graph_module: fx.GraphModule,
) -> tuple[fx.GraphModule, list[int], fx.GraphModule] | None:
    """What is computed from single numbers alone, as a graph of its own.

    The compiler would compute such a number anew for every element that it meets: the optimizer's
    1 - 0.9^step once a weight, in ever slower arithmetic as the power underflows. Returns the graph
    of the numbers, the places of its inputs among all inputs, and the graph that takes the numbers
    behind these; None where there is nothing to set apart.
    """
    nodes = list(graph_module.graph.nodes)
    places = {n: i for i, n in enumerate(n for n in nodes if n.op == "placeholder")}
    single: set[fx.Node] = set()
    for node in nodes:
        inputs = node.all_input_nodes
        if node.op == "placeholder" and _is_single(node):
            single.add(node)
        elif node.op == "call_function" and inputs and all(n in single for n in inputs):
            schema = getattr(node.target, "_schema", None)
            tags = getattr(node.target, "tags", ())
            pure = schema is None or not schema.is_mutable
            if pure and torch.Tag.nondeterministic_seeded not in tags and _is_single(node):
                single.add(node)
    handed = [
        n
        for n in nodes
        if n in single
        and n.op == "call_function"
        and isinstance(n.meta.get("val"), Tensor)
        and any(user not in single for user in n.users)
    ]
    if not handed:
        return None
    numbers, rest = fx.Graph(), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    taken = [n for n in nodes if n in single and n.op == "placeholder"]
    for node in nodes:
        if node in single:
            copies[node] = numbers.node_copy(node, lambda n: copies[n])
    numbers.output(tuple(copies[n] for n in handed))
    copies = {n: rest.node_copy(n) for n in places}
    copies |= {n: rest.placeholder(f"number_{i}") for i, n in enumerate(handed)}
    for node in nodes:
        if node not in copies and node not in single:
            copies[node] = rest.node_copy(node, lambda n: copies[n])
    return (
        fx.GraphModule(graph_module, numbers),
        [places[n] for n in taken],
        fx.GraphModule(graph_module, rest),
    )


def _is_single(node: fx.Node) -> bool:
    value = node.meta.get("val")
    values = value if isinstance(value, tuple | list) else [value]
    return bool(values) and all(isinstance(v, Tensor) and v.dim() == 0 for v in values)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's remark that a machine without a GPU has none."""
    logger = logging.getLogger("torch.utils.cpp_extension")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable:
    """The graph as machine code for inputs of these shapes, without gradients.

    `inputs` are examples, which compiling may change.
    Raises: `CompilationError`, e.g. where the machine has no C++ compiler.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    examples = list(inputs)
    try:
        with torch.no_grad(), warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")  # advice to users of torch.compile
            plain = make_fx(functionalize(graph))(*(e.clone() for e in examples))
            plain.graph.eliminate_dead_code()
            parts = _scalars_apart(plain)
            if parts is None:
                return _compiled(plain, examples)
            numbers, places, rest = parts
            given = [examples[i] for i in places]
            first = _compiled(numbers, given)
            second = _compiled(rest, [*examples, *numbers(*given)])
    except Exception as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise CompilationError(f"torch's inductor: {lines[0][:200]}") from error

    def run(*inputs: Tensor):
        return second(*inputs, *first(*(inputs[i] for i in places)))

    return run


def _compiled(graph: fx.GraphModule, examples: list[Any]) -> Callable:
    import torch._inductor

    compiled = torch._inductor.compile(_without_copies(graph), examples, options=_options(graph))
    if not callable(compiled):
        raise CompilationError("torch's inductor made no function of the graph")
    return compiled
