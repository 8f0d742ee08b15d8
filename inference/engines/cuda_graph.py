"""The CUDA-graph engine: the compiled step, launched as one captured graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from inference.engines.compiled import Compiled, Program
from inference.engines.recording import Recorded
from inference.errors import Untraceable
from inference.isolation import random_state, set_random_state


@dataclass
class _Captured:
    """A captured step with the static tensors that its inputs are copied to."""

    launch: Callable[[], None]
    program: Program
    batch: tuple[Tensor, ...]
    rows: Tensor | None
    # What else the graph refers to by address: where it moves, the step is captured anew.
    addresses: list[int]


class CudaGraph(Compiled):
    """The whole step, data gathering included, as one launch.

    Random numbers come from torch's CUDA generator, which is registered with the graph, so that
    every replay draws fresh ones and a resumed run the same. Nothing in a step waits for the
    device; the sums are read every `read_every` steps.
    """

    name = "cuda_graph"
    read_every = 50

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._captured: dict[tuple[int, bool], _Captured] = {}
        self._capturable = True

    def step_rows(
        self, arguments: tuple[Tensor, ...], rows: Tensor, beta: float, size: int
    ) -> None:
        example = tuple(a[:1].expand(len(rows), *a.shape[1:]) for a in arguments)
        key = self._key(example, size)
        program = self.programs.get(key)
        if key not in self.programs or (program is not None and program.doubtful):
            program = self._program(tuple(a[rows].contiguous() for a in arguments), size)
        states = None if program is None else self._states(program)
        captured = None
        if program is not None and states is not None:
            captured = self._capture(program, states, arguments, rows)
        if captured is None:
            super().step_rows(arguments, rows, beta, size)
            return
        self._set(beta)
        captured.rows.copy_(rows)  # type: ignore[union-attr]
        captured.launch()

    def _run(self, program: Program, states: Sequence[Tensor], batch: tuple[Tensor, ...]) -> None:
        captured = self._capture(program, states, batch, None)
        if captured is None:
            super()._run(program, states, batch)
            return
        for static, given in zip(captured.batch, batch, strict=True):
            static.copy_(given)
        captured.launch()

    def _accept(self, recorded: Recorded) -> None:
        culprit = off_device(recorded.graph, self.device)
        if culprit is not None:
            raise Untraceable(
                f"{culprit} works on a tensor that is not on {self.device}: a launched graph "
                "would see its first value forever"
            )

    def _capture(
        self,
        program: Program,
        states: Sequence[Tensor],
        source: tuple[Tensor, ...],
        rows: Tensor | None,
    ) -> _Captured | None:
        """The captured step, made at its first use and whenever a tensor it refers to moved.

        None once capturing has failed: from there on steps are run as by `compiled`.
        """
        if not self._capturable:
            return None
        mutated = [*program.parameters, *states, *program.board.tensors()]
        referred = (*mutated, *program.recorded.held, *(() if rows is None else source))
        addresses = [t.data_ptr() for t in referred]
        key = (id(program), rows is not None)
        found = self._captured.get(key)
        if found is not None and found.addresses == addresses:
            return found
        living = [id(p) for p in self.programs.values()]
        self._captured = {k: c for k, c in self._captured.items() if k[0] in living and k != key}
        static_rows = None if rows is None else rows.clone()
        static = tuple(b.clone() for b in source) if rows is None else ()

        def run() -> None:
            batch = static
            if static_rows is not None:
                batch = tuple(a.index_select(0, static_rows) for a in source)
            super(CudaGraph, self)._run(program, states, batch)

        # Warming up and capturing run the step: everything it changes is put back.
        kept = [tensor.detach().clone() for tensor in mutated]
        random = random_state(self.device)
        try:
            launch = captured_run(run, self.device)
        except RuntimeError as error:
            self._capturable = False
            self._captured.clear()
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            self.remark(f"steps are run as by 'compiled', since capturing one failed ({said})")
            return None
        finally:
            with torch.no_grad():
                for tensor, value in zip(mutated, kept, strict=True):
                    tensor.copy_(value)
            set_random_state(random, self.device)
        self._captured[key] = _Captured(launch, program, static, static_rows, addresses)
        return self._captured[key]


def captured_run(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What launches `run` as one graph. It is run twice before, aside, as capturing demands."""
    graph = torch.cuda.CUDAGraph()
    here, aside = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    aside.wait_stream(here)
    try:
        with torch.cuda.stream(aside):
            run()
            run()
        here.wait_stream(aside)
        with torch.cuda.graph(graph, stream=aside):
            run()
    finally:  # what was changed aside is put back here, also after an error
        here.wait_stream(aside)
    return graph.replay


def off_device(graph_module: fx.GraphModule, device: torch.device) -> str | None:
    """The first operation that a launched graph would not repeat: its tensor is elsewhere.

    Scalar constants on the CPU are handed to kernels by value, which is right.
    """

    def away(node: fx.Node) -> bool:
        held = getattr(graph_module, str(node.target)) if node.op == "get_attr" else None
        value = node.meta.get("val", held)
        return isinstance(value, Tensor) and value.device.type != device.type

    aten = torch.ops.aten
    for node in graph_module.graph.nodes:
        taken = [n for n in node.all_input_nodes if away(n)]
        if node.op == "get_attr" and away(node):
            if any(user.target is not aten.lift_fresh_copy.default for user in node.users):
                return "the pair"
        elif node.op == "call_function" and (taken or away(node)):
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            scalar = not away(node) or node.meta["val"].dim() == 0
            copies = not away(node) and node.target in (aten._to_copy.default, aten.copy_.default)
            if random or copies or not scalar:
                return f"'{node.target._schema.name.partition('::')[2]}'"
    return None
