"""Graphs of tensor operations, compiled by torch's inductor."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch._inductor
import torch._inductor.config
from torch import Tensor, fx

from inference.errors import CompilationError


def _options() -> dict[str, Any]:
    options = {
        # Random numbers are drawn as in eager code: all engines see the same noise under one seed.
        "fallback_random": True,
        # Sizes are known since the recording; checking them at every call costs time.
        "size_asserts": False,
        # tanh by one exp: off by 1e-7 at most, in a quarter of the time.
        "cpp.use_decompose_tanh": True,
    }
    known = torch._inductor.config.get_config_copy()
    return {name: value for name, value in options.items() if name in known}


def _bias_apart(graph_module: fx.GraphModule) -> fx.GraphModule:
    """b + X W as a product and a sum, which joins what follows.

    As one operation b is first copied to every row of the result. The detour through another shape
    keeps the compiler from joining the two again.
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
        else:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    return fx.GraphModule(graph_module, graph)


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

    Raises: `CompilationError`, e.g. where the machine has no C++ compiler.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings(), _quiet():
            warnings.simplefilter("ignore")  # advice to users of torch.compile
            compiled = torch._inductor.compile(_bias_apart(graph), list(inputs), options=_options())
    except Exception as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise CompilationError(f"torch's inductor: {lines[0][:200]}") from error
    if not callable(compiled):
        raise CompilationError("torch's inductor made no function of the graph")
    return compiled
