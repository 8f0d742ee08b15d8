"""The compiled engine: a training step recorded through Pyro's handlers once, as machine code."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor

from inference.compiling import compile_graph
from inference.engines.base import Engine
from inference.engines.bounds import BATCHES_TO_REPAY, RecordedBound
from inference.engines.eager import Eager
from inference.engines.recording import Board, Recorded, record_step
from inference.errors import CompilationError, NonFiniteError, Untraceable
from inference.isolation import own_randomness
from inference.tracing import Traced, first_bad, shapes_of, trace_loss

# A shape that comes once an epoch is compiled where an epoch is this short; elsewhere its graph is
# run operation by operation, which costs about as much as an eager step.
SHORT_EPOCH = 8

# So many recordings in one training; what is new after them is run eagerly. Batches of ever new
# shapes, or a number of the model's that a callback changes each epoch, would be compiled forever.
# A resumed training counts from 0 again: both ways of running a step give the same up to rounding.
MOST_RECORDINGS = 8


@dataclass
class Program:
    """A recorded step and the tensors that it works on."""

    recorded: Recorded
    run: Callable
    board: Board
    parameters: list[Tensor]
    doubtful: bool = False  # user code has run since it was last compared with the handlers

    @property
    def traced(self) -> Traced:
        return self.recorded.traced


class Compiled(Engine):
    """Loss, gradients, clipping and optimizer in one compiled graph.

    One recording a batch shape. Its first step from fresh weights is an eager one: Pyro's
    validation is on, and the optimizer makes its state. What changes how the pair computes
    (train/eval modes, frozen parameters, another shape, numbers that a callback changes) is
    noticed and recorded anew; what cannot be recorded then is run eagerly.
    """

    name = "compiled"

    def __init__(self, *args, steps_per_epoch: int = 1, **kwargs):
        super().__init__(*args, **kwargs)
        self.eager = Eager(*args, **kwargs)
        self.steps_per_epoch = steps_per_epoch
        self.programs: dict[tuple, Program | None] = {}  # None: its steps are eager ones
        self.recordings = 0
        self._said_enough = False
        self._bounds: dict[tuple, RecordedBound | None] = {}  # None: eager ones
        self._usual: int | None = None  # data in all batches but the last
        self.beta = torch.ones((), dtype=torch.float64, device=self.device)
        self.learning_rate = torch.ones((), dtype=torch.float64, device=self.device)
        self._totals = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._failed = torch.zeros((), dtype=torch.int64, device=self.device)
        self._children = [child for module in self.modules for child in module.modules()]

    def prepare(self, batch: tuple[Tensor, ...], size: int) -> None:
        """Record and compile for batches like this one, before anything is trained.

        Raises: `Untraceable`, `CompilationError`.
        """
        self._usual = size
        batch = tuple(b.contiguous() for b in batch)
        self.programs[self._key(batch, size)] = self._record(batch, size)

    def start(self, objective_sum: float, norm_sum: float) -> None:
        self._totals[0].fill_(objective_sum)  # a copy from the CPU would wait for the device
        self._totals[1].fill_(norm_sum)

    def sums(self) -> tuple[float, float]:
        self._check()
        objective, norm = self._totals.tolist()
        return objective, norm

    def doubt(self) -> None:
        for program in self.programs.values():
            if program is not None:
                program.doubtful = True
        for bound in self._bounds.values():
            if bound is not None:
                bound.doubtful = True

    def step(self, batch: tuple[Tensor, ...], beta: float, size: int) -> None:
        batch = tuple(b.contiguous() for b in batch)
        program = self._program(batch, size)
        states = None if program is None else self._states(program)
        if program is None or states is None:
            self._check(after=1)
            self.eager.start(*self._totals.tolist())
            self.eager.step(batch, beta, size)
            self.start(*self.eager.sums())
            return
        self._set(beta)
        self._run(program, states, batch)

    def evaluate(self, batch: tuple[Tensor, ...], often: int = 1) -> float:
        if self.handler.keep is not None or often < BATCHES_TO_REPAY:
            return super().evaluate(batch)
        batch = tuple(b.contiguous() for b in batch)
        bound = self._bound(batch)
        return super().evaluate(batch) if bound is None else bound(batch)

    def _bound(self, batch: tuple[Tensor, ...]) -> RecordedBound | None:
        """The bound of such batches, recorded where it is new; None where it cannot be."""
        key = self._key(batch, 0)
        found = self._bounds.get(key)
        if found is not None:
            try:
                self._compare(found, batch)
            except Untraceable:  # the others would be wrong, too
                self._bounds.clear()
        if key not in self._bounds:
            self._bounds[key] = None
            if self._may_record():
                try:
                    self._bounds[key] = self._record_bound(batch)
                except (Untraceable, CompilationError) as error:
                    self.remark(f"bounds of {_shapes(batch)} are eager ones, since {error}")
        return self._bounds[key]

    def _record_bound(self, batch: tuple[Tensor, ...]) -> RecordedBound:
        self.recordings += 1
        bound = RecordedBound(
            self.pair,
            self.bound,
            self.num_data,
            batch,
            vectorize=self.vectorize,
            precision=self.precision,
        )
        self._compare(bound, batch)
        return bound

    def _compare(self, bound: RecordedBound, batch: tuple[Tensor, ...]) -> None:
        """Before it is trusted: site by site, and as machine code. Raises: `Untraceable`."""
        if not bound.doubtful:
            return
        bound.check(batch)
        with own_randomness(0):
            expected = super().evaluate(batch)
        with own_randomness(0):
            found = bound(batch)
        if math.isnan(expected):
            return
        if not math.isclose(found, expected, rel_tol=1e-4, abs_tol=1e-4):
            raise Untraceable(f"compiled they are {found:.6g}, not {expected:.6g}")
        bound.doubtful = False

    def _program(self, batch: tuple[Tensor, ...], size: int) -> Program | None:
        """The step for such batches, recorded where it is new; None where it cannot be."""
        key = self._key(batch, size)
        program = self.programs.get(key)
        if program is not None and program.doubtful:
            try:
                program.traced.check_here(*batch)
                program.doubtful = False
            except Untraceable:  # the others would be wrong, too
                self._check(after=1)
                self.programs.clear()
        if key not in self.programs:
            self.programs[key] = None
            if self._may_record():
                try:
                    self.programs[key] = self._record(batch, size)
                except (Untraceable, CompilationError) as error:
                    self.remark(f"steps on {_shapes(batch)} are eager ones, since {error}")
        return self.programs[key]

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

    def _record(self, batch: tuple[Tensor, ...], size: int) -> Program:
        """Raises: `Untraceable`, `CompilationError`."""
        self.recordings += 1
        with own_randomness():  # recording draws, too
            traced = trace_loss(
                self.pair,
                self.objective,
                batch,
                self.num_data,
                vectorize=self.vectorize,
                precision=self.precision,
            )
            recorded = record_step(traced, self.optimizer, batch, size)
            self._accept(recorded)
            board = Board.of(traced, self.device)
            board = Board(self._totals, self._failed, board.culprits)
            run: Callable = recorded.graph
            if size == self._usual or self.steps_per_epoch <= SHORT_EPOCH:
                parameters = [p.detach() for p in traced.parameters.values()]
                states = recorded.states(self.optimizer.example_state(parameters))
                scalars = self.beta, self.learning_rate
                inputs = [*parameters, *states, *board.tensors(), *batch, *scalars]
                # An example of its own: nothing may be touched by compiling.
                run = compile_graph(recorded.graph, [i.clone() for i in inputs])
        return Program(recorded, run, board, list(traced.parameters.values()))

    def _may_record(self) -> bool:
        if self.recordings < MOST_RECORDINGS:
            return True
        if not self._said_enough:
            self._said_enough = True
            self.remark(
                f"new shapes and modes are run eagerly from here: {MOST_RECORDINGS} were compiled"
            )
        return False

    def _accept(self, recorded: Recorded) -> None:
        """Raises: `Untraceable` where this engine cannot run such a step."""

    def _check(self, after: int = 0) -> None:
        """Raises `NonFiniteError` if a step was not finite, `after` steps that are not yet run."""
        since = int(self._failed)
        if not since:
            return
        programs = [program for program in self.programs.values() if program is not None]
        said = (_culprit(p) for p in programs if not bool(torch.isfinite(p.board.culprits).all()))
        raise NonFiniteError(
            next(said, "the norm of all gradients is not finite"), steps_ago=since - 1 + after
        )


def _culprit(program: Program) -> str:
    """What was not finite in the step that a program's board holds."""
    traced = program.traced
    loss, *values = program.board.culprits.tolist()
    complaints, norms = values[: len(traced.complaints)], values[len(traced.complaints) :]
    if math.isfinite(loss):
        # In the order of their names, as the optimizer has them.
        names, numbers = zip(*sorted(zip(traced.parameters, norms, strict=True)), strict=True)
        bad = first_bad(names, numbers)
        what = f"the gradient of parameter '{bad}'" if bad else "the norm of all gradients"
        said = f"{what} is not finite"
    else:
        said = f"the loss is {loss}"
    site = first_bad(traced.complaints, complaints)
    return said + (f"; {site}" if site else "")


def _shapes(batch: Sequence[Tensor]) -> str:
    return shapes_of([(b.shape, b.dtype) for b in batch])
