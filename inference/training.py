"""A training under way: its fixed parts, its state, and what a checkpoint holds of both."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from inference.checkpoint import Snapshot
from inference.engines.base import Engine
from inference.errors import (
    PairError,
)
from inference.isolation import (
    derived_seed,
    modes,
    own_randomness,
)
from inference.objectives.base import Objective
from inference.optimizer import SingleOptimizer
from inference.pair import Pair
from inference.schedules import Schedule
from inference.stopping import Stopping
from inference.tiles import even_share, numbers_per_tile

# A recorded step is compared with the handlers whenever the number of steps has doubled since this
# one. The comparison touches neither weights nor random states: a resumed training stays exact.
FIRST_CHECK = 64


@dataclass
class State:
    """Where a training stands."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # batches finished in the epoch under way
    step: int = 0
    objective_sum: float = 0.0  # over the epoch under way, weighted by data
    norm_sum: float = 0.0
    seconds: float = 0.0
    finished: bool = False
    stopping: Stopping = field(default_factory=Stopping)
    best: Snapshot | None = None
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class Training:
    """What stays the same during a training: the pair, its engine, its data."""

    pair: Pair
    engine: Engine
    engine_reason: str
    optimizer: SingleOptimizer
    objective: Objective
    arguments: tuple[Tensor, ...]
    held_out: tuple[Tensor, ...] | None
    batch_size: int
    schedule: Schedule
    epochs: int
    patience: int | None
    seed: int
    device: torch.device
    transform: Callable[[Tensor], Tensor] | None
    modules: list[nn.Module]

    @property
    def num_data(self) -> int:
        return len(self.arguments[0])

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_data / self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def seen(self, state: State) -> int:
        """Data seen in the epoch under way."""
        return max(1, min(state.batch * self.batch_size, self.num_data))

    def order(self, epoch: int) -> Tensor:
        """The epoch's shuffle: a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, epoch))
        return torch.randperm(self.num_data, generator=generator).to(self.device)

    def __post_init__(self) -> None:
        children = [child for module in self.modules for child in module.modules()]
        self._owned = [(c, n, p) for c in children for n, p in c._parameters.items()]
        self._stored = dict(pyro.get_param_store()._params)
        self._layouts = self._layouts_now()

    def step(self, state: State, order: Tensor) -> None:
        """One batch: gather, transform, update. Advances `state`.

        Raises: `NonFiniteError`; `state.step - error.steps_ago` is the step at fault. `PairError`
            if a parameter is another tensor than at the start.
        """
        self._check_parameters()
        size = min(self.batch_size, self.num_data - state.batch * self.batch_size)
        beta = self.objective.beta(state.step, self.steps_per_epoch)
        self.optimizer.factor = self.schedule.factor(
            state.step, self.steps_per_epoch, self.total_steps
        )
        if state.batch == 0:
            self.engine.start(0.0, 0.0)
        start = state.batch * self.batch_size
        state.batch += 1
        state.step += 1
        if state.step >= FIRST_CHECK and state.step & (state.step - 1) == 0:
            self.engine.doubt()  # the pair itself may have changed numbers that it reads
        rows = None if self.pair.whole else order[start : start + size]
        if rows is not None and self.transform is None:
            self.engine.step_rows(self.arguments, rows, beta, size)
        else:
            self.engine.step(self.batch(rows), beta, size)
        if state.step % self.engine.read_every == 0:
            self.read(state)

    def user_code_ran(self) -> None:
        """After a callback: what it may have changed beside values is looked for.

        Raises: `PairError` if a parameter is of another shape, dtype or memory layout.
        """
        self._check_parameters()
        for name, layout in self._layouts_now().items():
            if layout != self._layouts[name]:
                self._refuse(name, "was given another shape, dtype or memory layout")
        self.engine.doubt()

    def _layouts_now(self) -> dict[str, Any]:
        return {n: (p.shape, p.dtype, p.device, p.stride()) for n, p in self._stored.items()}

    def _check_parameters(self) -> None:
        """Pyro and the optimizer would go on with the former tensor, whatever the module holds."""
        store = pyro.get_param_store()._params
        for name, parameter in self._stored.items():
            if store.get(name) is not parameter:
                self._refuse(name, "was replaced by another tensor")
        for child, name, owned in self._owned:
            if child._parameters.get(name) is not owned:
                known = (n for n, p in self._stored.items() if p is owned)
                self._refuse(next(known, name), "was replaced by another tensor")

    def _refuse(self, name: str, what: str) -> None:
        raise PairError(
            f"parameter '{name}' {what} during training, which the optimizer does not know; "
            "change its values in place (`with torch.no_grad(): parameter.copy_(...)`)"
        )

    def batch(self, rows: Tensor | None) -> tuple[Tensor, ...]:
        """These rows of the data (all, for a pair that takes no part), transformed."""
        batch = self.arguments if rows is None else tuple(a[rows] for a in self.arguments)
        if self.transform is not None:
            batch = (self.transform(batch[0]), *batch[1:])
        return batch

    def read(self, state: State) -> None:
        """Bring the epoch's sums from the engine. Raises: `NonFiniteError`."""
        state.objective_sum, state.norm_sum = self.engine.sums()

    def finish_epoch(self, state: State) -> dict[str, Any]:
        """The epoch's row; validation, best-so-far and the decision to stop."""
        self.read(state)
        row = {
            "epoch": state.epoch + 1,
            "step": state.step,
            "train_bound": state.objective_sum / self.num_data,
            "validation_bound": self.validate(),
            "beta": self.objective.beta(state.step - 1, self.steps_per_epoch),
            "learning_rate": self.optimizer.learning_rate * self.optimizer.factor,
            "grad_norm": state.norm_sum / self.steps_per_epoch,
            "seconds": state.seconds,
        }
        state.epoch, state.batch = state.epoch + 1, 0
        state.objective_sum = state.norm_sum = 0.0
        if row["validation_bound"] is not None:
            warming = state.step < self.objective.warmup(self.steps_per_epoch)
            state.stopping = state.stopping.see(
                row["validation_bound"], state.epoch, warming=warming
            )
            if self.patience is not None:
                if state.stopping.best_epoch == state.epoch:
                    state.best = self.snapshot().copy()
                state.finished = state.stopping.waited >= self.patience
        state.history.append(row)
        return row

    def validate(self) -> float | None:
        """The ELBO at beta = 1 over all held-out data, with the same noise each time.

        It is the ELBO whatever objective is trained, so that bounds of trainings can be compared.

        A plate that subsamples itself is handed the rows to take, until all have had their turn.
        """
        if self.held_out is None:
            return None
        count = len(self.held_out[0])
        size = even_share(count, max(1, numbers_per_tile(self.device) // self.pair.event_numel))
        if self.pair.subsampling == "prescaled":
            size = min(size, self.pair.full_size)
        elif self.pair.whole:
            size = self.pair.subsample_size if self.pair.subsampling == "own" else count
        total = 0.0
        with (
            own_randomness(derived_seed("validation", self.seed)),
            modes(self.modules, training=False),
        ):
            for start in range(0, count, size):
                rows = min(size, count - start)
                if self.pair.subsampling == "own":
                    total += rows * self.engine.evaluate_rows(self.held_out, start)
                else:
                    batch = tuple(a[start : start + size] for a in self.held_out)
                    often = self.epochs * (count // size if rows == size else 1)
                    total += rows * self.engine.evaluate(batch, often)
        return total / count

    def snapshot(self) -> Snapshot:
        """Weights, buffers and optimizer state, as they are now: no copies."""
        buffers = {
            f"{i}.{name}": tensor
            for i, module in enumerate(self.modules)
            for name, tensor in module.named_buffers()
        }
        weights = dict(pyro.get_param_store()._params)
        return Snapshot(weights, buffers, self.optimizer.get_state())
