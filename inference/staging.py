"""A recorded graph, cut by what its operations depend on, so that nothing is computed twice.

once       parameters and constants alone (a mixture's components, a VampPrior's encoder)
per datum  the data, too (the guide's encoder)
per draw   random numbers and what is handed in with each call, too (densities, the decoder)
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from inference.capture import capture, lift
from inference.compiling import compile_graph
from inference.errors import CompilationError, Untraceable
from inference.isolation import own_randomness

ONCE, PER_DATUM, PER_DRAW = range(3)


class Staged:
    """`function(*data)`, recorded and cut in three; the last part can be compiled.

        kernel = Staged(function, data)
        shared = kernel.share(data)      # what all draws of these data have in common
        kernel(shared)                   # function(*data), with fresh draws each time

    With `given`, tensors like those that come with each call (a point in the space of latents):

        kernel = Staged(function, data, given)
        kernel(shared, *given)           # function(*given, *data)

    Parameters are used as they are when it is made. Random states are left as found.
    Raises: `Untraceable`.
    """

    def __init__(self, function: Callable, data: Sequence[Tensor], given: Sequence[Tensor] = ()):
        with own_randomness(), torch.no_grad():
            recorded = capture(function, (*given, *data))
            closed_over = [
                getattr(recorded, node.target)
                for node in recorded.graph.nodes
                if node.op == "get_attr"
            ]
            recorded = lift(recorded, closed_over)
            constants = [tensor.detach() for tensor in closed_over]
            # Without in-place operations each value has one maker, whose stage is its own.
            inputs = [*constants, *(i.clone() for i in (*given, *data))]
            whole = make_fx(functionalize(recorded))(*inputs)
            whole.graph.eliminate_dead_code()
            places = [node for node in whole.graph.nodes if node.op == "placeholder"]
            first = len(constants) + len(given)
            self._given, self._data = places[len(constants) : first], places[first:]
            self._known: dict[fx.Node, Any] = dict(zip(places, constants, strict=False))
            stages = _stages(whole.graph, set(self._data), set(self._given))
            anew = _made_anew(whole, inputs)
            self._parts: dict[int, fx.GraphModule] = {}
            self._inputs: dict[int, list[fx.Node]] = {}
            self._outputs: dict[int, list[fx.Node]] = {}
            wanted: set[fx.Node] = set()
            result = next(node for node in whole.graph.nodes if node.op == "output")
            for stage in (PER_DRAW, PER_DATUM, ONCE):
                if stage == PER_DRAW:
                    outputs = list(result.all_input_nodes)
                else:
                    outputs = [n for n in whole.graph.nodes if n in wanted and stages[n] == stage]
                    outputs = [n for n in outputs if n.op == "call_function"]
                part, inputs = _part(whole, outputs, stage, stages, anew)
                self._parts[stage], self._inputs[stage] = part, inputs
                self._outputs[stage] = outputs
                wanted.update(inputs)
            self._known |= self._run(ONCE, self._known)
        self._order = [self._outputs[PER_DRAW].index(n) for n in _flat(result.args[0])]
        self._draw: Callable = self._parts[PER_DRAW]

    @torch.no_grad()
    def share(self, data: Sequence[Tensor]) -> list[Tensor]:
        """What all draws of these data have in common."""
        known = self._known | dict(zip(self._data, data, strict=True))
        known |= self._run(PER_DATUM, known)
        return [known[node] for node in self._inputs[PER_DRAW] if node not in self._given]

    @torch.no_grad()
    def __call__(self, shared: Sequence[Tensor], *given: Tensor) -> list[Tensor]:
        found = self._draw(*self._handed(shared, given))
        return [found[i] for i in self._order]

    def compile(self, shared: Sequence[Tensor], *given: Tensor) -> None:
        """Make machine code of what is done per draw. Raises: `CompilationError`."""
        with own_randomness():
            inputs = [i.clone() for i in self._handed(shared, given)]
            self._draw = compile_graph(self._parts[PER_DRAW], inputs)

    def _handed(self, shared: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
        """The inputs of the last part, in its order."""
        # Machine code reads memory in the layout that it was made for, whatever it is handed.
        own = {node: g.contiguous() for node, g in zip(self._given, given, strict=True)}
        others = iter(shared)
        return [own[n] if n in own else next(others) for n in self._inputs[PER_DRAW]]

    def _run(self, stage: int, known: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
        results = self._parts[stage](*(known[node] for node in self._inputs[stage]))
        return dict(zip(self._outputs[stage], results, strict=True))


def attempt(make: Callable[[], Staged]) -> tuple[Staged | None, str]:
    """What `make` makes; else None, and in words why there is no machine code."""
    try:
        return make(), ""
    except Untraceable as error:
        return None, f"not compiled, since {error}"
    except CompilationError as error:
        return None, f"not compiled, since compiling failed ({error})"


def _flat(results: Any) -> list[fx.Node]:
    return list(results) if isinstance(results, tuple | list) else [results]


def _stages(graph: fx.Graph, data: set[fx.Node], given: set[fx.Node]) -> dict[fx.Node, int]:
    """What each value depends on."""
    stages: dict[fx.Node, int] = {}
    for node in graph.nodes:
        stage = max((stages[n] for n in node.all_input_nodes), default=ONCE)
        if node in data:
            stage = PER_DATUM
        elif node in given or torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            stage = PER_DRAW
        stages[node] = stage
    return stages


def _made_anew(graph_module: fx.GraphModule, data: Sequence[Tensor]) -> set[fx.Node]:
    """Values that are better made where they are used than handed over.

    Views cost nothing; constants, and what is spread over all draws, would be read from memory.
    """
    anew: set[fx.Node] = set()
    held: dict[fx.Node, int] = {}  # numbers in memory that a value is made from

    class Measure(fx.Interpreter):
        def run_node(self, node: fx.Node) -> Any:
            value = super().run_node(node)
            size = value.numel() if isinstance(value, Tensor) else 0
            if isinstance(value, Tensor):
                held[node] = value.untyped_storage().nbytes() // value.element_size()
            inputs = node.all_input_nodes
            roots = sum(held.get(n, 0) for n in inputs)
            tags = getattr(node.target, "tags", ())
            if node.op == "call_function" and torch.Tag.nondeterministic_seeded not in tags:
                spread = torch.Tag.pointwise in tags and size > roots
                if node.target is operator.getitem:  # of several results
                    free = inputs[0] in anew
                else:
                    free = not inputs or _is_view(node) or spread
                if free:
                    anew.add(node)
                    held[node] = roots
            return value

    Measure(graph_module).run(*data)
    return anew


def _is_view(node: fx.Node) -> bool:
    returns = node.target._schema.returns  # type: ignore[union-attr]
    return any(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _part(
    whole: fx.GraphModule,
    outputs: Sequence[fx.Node],
    stage: int,
    stages: dict[fx.Node, int],
    anew: set[fx.Node],
) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The graph that makes `outputs` at a stage, and the earlier values that it takes."""
    inside: set[fx.Node] = set()
    taken: set[fx.Node] = set()
    waiting = list(outputs)
    while waiting:
        node = waiting.pop()
        if node in inside or node in taken:
            continue
        own = node.op == "call_function" and stages[node] == stage
        if own or (node in anew and node not in outputs):
            inside.add(node)
            waiting += node.all_input_nodes
        else:
            taken.add(node)
    graph = fx.Graph()
    inputs = [node for node in whole.graph.nodes if node in taken]
    copies = {node: graph.placeholder(f"given_{i}") for i, node in enumerate(inputs)}
    for node in whole.graph.nodes:
        if node in inside:
            copies[node] = graph.node_copy(node, lambda n: copies[n])
    graph.output(tuple(copies[node] for node in outputs))
    return fx.GraphModule(whole, graph), inputs
