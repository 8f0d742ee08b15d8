"""The compiled engine: a training step recorded through Pyro's handlers once, as machine code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from inference.compiling import compile_graph
from inference.engines.base import Engine
from inference.engines.eager import Eager
from inference.engines.recording import Board, Recorded, record_step
from inference.errors import NonFiniteError
from inference.isolation import own_randomness
from inference.precision import products
from inference.tracing import Traced, trace_loss

# A shape that comes once an epoch is compiled where an epoch is this short; elsewhere its graph is
# run operation by operation, which costs about as much as an eager step.
SHORT_EPOCH = 8


@dataclass
class Program:
    """A recorded step and the tensors that it works on."""

    recorded: Recorded
    run: Callable
    board: Board
    parameters: list[Tensor]

    @property
    def traced(self) -> Traced:
        return self.recorded.traced


class Compiled(Engine):
    """Loss, gradients, clipping and optimizer in one compiled graph.

    One recording a batch shape. Its first step from fresh weights is an eager one: Pyro's
    validation is on, and the optimizer makes its state. What changes how the pair computes
    (train/eval modes, frozen parameters, another shape) is noticed and recorded anew.
    """

    name = "compiled"

    def __init__(self, *args, steps_per_epoch: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self.eager = Eager(*args, **kwargs)
        self.steps_per_epoch = steps_per_epoch
        self.programs: dict[tuple, Program] = {}
        self.recordings = 0
        wide = {"dtype": torch.float64, "device": self.device}
        self.beta = torch.ones((), **wide)  # type: ignore[arg-type]
        self.learning_rate = torch.ones((), **wide)  # type: ignore[arg-type]
        self._totals = torch.zeros(2, **wide)  # type: ignore[arg-type]
        self._failed = torch.zeros((), dtype=torch.int64, device=self.device)
        self._children = [child for module in self.modules for child in module.modules()]

    def prepare(self, batch: tuple[Tensor, ...], size: int) -> None:
        """Record and compile for batches like this one, before anything is trained.

        Raises: `Untraceable`, `CompilationError`.
        """
        self._record(batch, size, main=True)

    def start(self, objective_sum: float, norm_sum: float) -> None:
        self._totals.copy_(torch.tensor([objective_sum, norm_sum], dtype=torch.float64))

    def sums(self) -> tuple[float, float]:
        self._check()
        objective, norm = self._totals.tolist()
        return objective, norm

    def step(self, batch: tuple[Tensor, ...], beta: float, size: int) -> None:
        batch = tuple(b.contiguous() for b in batch)
        program = self.programs.get(self._key(batch, size)) or self._record(batch, size)
        states = self._states(program)
        if states is None:
            self.eager.start(*self._totals.tolist())
            self.eager.step(batch, beta, size)
            self.start(*self.eager.sums())
            return
        self._set(beta)
        self._run(program, states, batch)

    def _states(self, program: Program) -> list[Tensor] | None:
        return self.optimizer.state_of(program.parameters, program.recorded.state_keys)

    def _set(self, beta: float) -> None:
        self.beta.fill_(beta)
        self.learning_rate.fill_(self.optimizer.learning_rate * self.optimizer.factor)

    def _run(self, program: Program, states: Sequence[Tensor], batch: tuple[Tensor, ...]) -> None:
        with torch.no_grad():
            program.run(
                *program.parameters,
                *states,
                *program.board.tensors(),
                *batch,
                self.beta,
                self.learning_rate,
            )

    def _key(self, batch: tuple[Tensor, ...], size: int) -> tuple:
        """All that a recording depends on, beside the values of tensors."""
        return (
            size,
            *((b.shape, b.dtype) for b in batch),
            *(child.training for child in self._children),
            *(p.requires_grad for p in pyro.get_param_store()._params.values()),
        )

    def _record(self, batch: tuple[Tensor, ...], size: int, *, main: bool = False) -> Program:
        with own_randomness():  # recording draws, too
            return self._new_program(batch, size, main)

    def _new_program(self, batch: tuple[Tensor, ...], size: int, main: bool) -> Program:
        batch = tuple(b.contiguous() for b in batch)
        with products(self.precision):
            traced = trace_loss(
                self.pair, self.objective, batch, self.num_data, vectorize=self.vectorize
            )
        recorded = record_step(traced, self.optimizer, batch, size)
        board = Board.of(traced, self.device)
        board = Board(self._totals, self._failed, board.culprits)
        parameters = [p.detach() for p in traced.parameters.values()]
        run: Callable = recorded.graph
        if main or self.programs == {} or self.steps_per_epoch <= SHORT_EPOCH:
            states = recorded.states(self.optimizer.example_state(parameters))
            inputs = [*parameters, *states, *board.tensors(), *batch, self.beta, self.learning_rate]
            # An example of its own: nothing may be touched by compiling.
            run = compile_graph(recorded.graph, [i.clone() for i in inputs])
        self.recordings += 1
        program = Program(recorded, run, board, list(traced.parameters.values()))
        self.programs[self._key(batch, size)] = program
        return program

    def _check(self) -> None:
        """Raises `NonFiniteError` if a step since the last check was not finite."""
        since = int(self._failed)
        if not since:
            return
        for program in self.programs.values():
            if not bool(torch.isfinite(program.board.culprits).all()):
                raise NonFiniteError(_culprit(program), steps_ago=since - 1)


def _culprit(program: Program) -> str:
    """What was not finite in the step that a program's board holds."""
    traced = program.traced
    loss, *values = program.board.culprits.tolist()
    complaints, norms = values[: len(traced.complaints)], values[len(traced.complaints) :]
    if _finite(loss):
        bad = _first_bad(tuple(traced.parameters), norms)
        what = f"the gradient of parameter '{bad}'" if bad else "the norm of all gradients"
        said = f"{what} is not finite"
    else:
        said = f"the loss is {loss}"
    site = _first_bad(traced.complaints, complaints)
    return said + (f"; {site}" if site else "")


def _first_bad(names: Sequence[str], numbers: Sequence[float]) -> str | None:
    return next((n for n, v in zip(names, numbers, strict=True) if not _finite(v)), None)


def _finite(value: float) -> bool:
    return abs(value) < float("inf")
