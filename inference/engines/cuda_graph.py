"""The CUDA-graph engine: the compiled step, launched as one captured graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inference.engines.compiled import Compiled, Program


@dataclass
class _Captured:
    """A captured step with the static tensors it reads."""

    graph: torch.cuda.CUDAGraph
    batch: tuple[Tensor, ...]
    rows: Tensor | None
    # What the graph refers to by address; if another tensor comes, it is captured anew.
    held: list[Tensor] = field(default_factory=list)


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

    def step_rows(
        self, arguments: tuple[Tensor, ...], rows: Tensor, beta: float, size: int
    ) -> None:
        example = tuple(a[:1].expand(len(rows), *a.shape[1:]) for a in arguments)
        program = self.programs.get(self._key(example, size))
        states = None if program is None else self._states(program)
        if program is None or states is None:
            super().step_rows(arguments, rows, beta, size)
            return
        self._set(beta)
        captured = self._capture(program, states, arguments, rows)
        captured.rows.copy_(rows)  # type: ignore[union-attr]
        captured.graph.replay()

    def _run(self, program: Program, states: Sequence[Tensor], batch: tuple[Tensor, ...]) -> None:
        captured = self._capture(program, states, batch, None)
        for static, given in zip(captured.batch, batch, strict=True):
            static.copy_(given)
        captured.graph.replay()

    def _capture(
        self,
        program: Program,
        states: Sequence[Tensor],
        source: tuple[Tensor, ...],
        rows: Tensor | None,
    ) -> _Captured:
        """The captured step, made at its first use and whenever a tensor it refers to moved."""
        mutated = [*program.parameters, *states, *program.board.tensors()]
        held = [*mutated, *(source if rows is not None else ())]
        key = (id(program), rows is not None)
        found = self._captured.get(key)
        if found is not None and all(a is b for a, b in zip(found.held, held, strict=True)):
            return found
        static_rows = None if rows is None else rows.clone()
        if rows is None:
            static = tuple(b.clone() for b in source)
        else:
            static = tuple(a[rows] for a in source)

        def run() -> None:
            batch = static
            if static_rows is not None:
                batch = tuple(a.index_select(0, static_rows) for a in source)
            super(CudaGraph, self)._run(program, states, batch)

        # Warming up and capturing run the step: everything it changes is put back.
        kept = [tensor.detach().clone() for tensor in mutated]
        random = torch.cuda.get_rng_state(self.device)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        with torch.cuda.graph(graph):
            run()
        with torch.no_grad():
            for tensor, value in zip(mutated, kept, strict=True):
                tensor.copy_(value)
        torch.cuda.set_rng_state(random, self.device)
        self._captured[key] = _Captured(graph, static, static_rows, held)
        return self._captured[key]
