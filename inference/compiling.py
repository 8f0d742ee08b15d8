"""Graphs of tensor operations, compiled by torch's inductor."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
import torch._inductor
from torch import Tensor, fx

from inference.errors import CompilationError

# Random numbers are drawn as in eager code: all engines see the same noise under one seed. Sizes
# were checked when the graph was recorded; checking them at every call costs as much as a kernel.
OPTIONS = {"fallback_random": True, "size_asserts": False, "nan_asserts": False}


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable:
    """The graph as machine code for inputs of these shapes, without gradients.

    Raises: `CompilationError`, e.g. where the machine has no C++ compiler.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice to users of torch.compile
            compiled = torch._inductor.compile(graph, list(inputs), options=dict(OPTIONS))
    except Exception as error:
        lines = (str(error).strip() or type(error).__name__).splitlines()
        raise CompilationError(f"torch's inductor: {lines[0][:200]}") from error
    if not callable(compiled):
        raise CompilationError("torch's inductor made no function of the graph")
    return compiled
