"""A training under way: its fixed parts, its state, and what a checkpoint holds of both."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from inference.checkpoint import Checkpoint, Snapshot, random_from, random_tensors
from inference.engines.base import Engine
from inference.engines.choice import choose
from inference.engines.compiled import Compiled
from inference.engines.enumerated import check_warmup
from inference.errors import (
    CheckpointError,
    InferenceError,
    PairError,
    RequestError,
)
from inference.isolation import (
    derived_seed,
    modes,
    own_randomness,
    random_state,
    set_random_state,
)
from inference.log_weights import Scorer
from inference.objectives.elbo import ELBO
from inference.optimizer import SingleOptimizer
from inference.pair import Pair, examine, head, look_at
from inference.schedules import Constant, Schedule
from inference.stopping import Stopping
from inference.tiles import even_share, numbers_per_tile

# A recorded step is compared with the handlers whenever the number of steps has doubled since this
# one. The comparison touches neither weights nor random states: a resumed training stays exact.
FIRST_CHECK = 64

# What a checkpoint tells of a `State`, beside weights and history.
PROGRESS = {
    *("epoch", "batch", "step", "objective_sum", "norm_sum", "seconds", "finished"),
    *("best", "best_epoch", "waited"),
}


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
    objective: ELBO
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
        """The validation bound at beta = 1 over all held-out data, with the same noise each time.

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

    # What a checkpoint holds -----------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        buffers = {
            f"{i}.{name}": tensor
            for i, module in enumerate(self.modules)
            for name, tensor in module.named_buffers()
        }
        weights = dict(pyro.get_param_store()._params)
        return Snapshot(weights, buffers, self.optimizer.get_state())

    def checkpoint(self, state: State, settings: dict[str, Any]) -> Checkpoint:
        return Checkpoint(
            current=self.snapshot(),
            best=state.best,
            random=random_tensors(random_state(self.device)),
            progress={
                "epoch": state.epoch,
                "batch": state.batch,
                "step": state.step,
                "objective_sum": state.objective_sum,
                "norm_sum": state.norm_sum,
                "seconds": state.seconds,
                "finished": state.finished,
                "best": state.stopping.best,
                "best_epoch": state.stopping.best_epoch,
                "waited": state.stopping.waited,
            },
            settings=settings,
            history=state.history,
        )

    def may_grow(self, before: int | None, epochs: int) -> bool:
        """May a training meant for `before` epochs go on to `epochs`?"""
        return before is not None and before <= epochs and not self.schedule.depends_on_total

    def restore(self, saved: Checkpoint, settings: dict[str, Any]) -> State:
        """Weights, optimizer and random states as they were; the `State` to go on from."""
        changed = [
            f"{key} was {saved.settings.get(key)!r}, now {settings.get(key)!r}"
            for key in sorted(saved.settings.keys() | settings.keys())
            if saved.settings.get(key) != settings.get(key)
            and key != "engine"  # all give the same
            and not (key == "epochs" and self.may_grow(saved.settings.get(key), settings[key]))
        ]
        if changed:
            raise CheckpointError(
                f"resume: the training has changed: {'; '.join(changed)}. Resume with the same "
                "settings, or start a new training"
            )
        p = saved.progress
        missing = sorted(PROGRESS - p.keys())
        if missing:
            raise CheckpointError(f"resume: the checkpoint lacks '{missing[0]}'")
        random = random_from(saved.random)
        self.put(saved.current)
        if p["step"]:  # no engine takes its next step for a first one
            self.optimizer.adopt(pyro.get_param_store()._params.values())
        set_random_state(random, self.device)
        self.engine.start(p["objective_sum"], p["norm_sum"])
        return State(
            epoch=p["epoch"],
            batch=p["batch"],
            step=p["step"],
            objective_sum=p["objective_sum"],
            norm_sum=p["norm_sum"],
            seconds=p["seconds"],
            # More epochs may be asked for, but early stopping has decided.
            finished=p["finished"],
            stopping=Stopping(p["best"], p["best_epoch"], p["waited"]),
            best=saved.best,
            history=saved.history,
        )

    @torch.no_grad()
    def put(self, snapshot: Snapshot) -> None:
        """Copy a snapshot's values into the live parameters and the optimizer.

        Raises: `CheckpointError`.
        """
        live = self.snapshot()
        for kind in ("weights", "buffers"):
            here, there = getattr(live, kind), getattr(snapshot, kind)
            if here.keys() != there.keys():
                odd = sorted(here.keys() ^ there.keys())[0]
                raise CheckpointError(f"resume: '{odd}' is not in both the pair and the checkpoint")
            for name, tensor in here.items():
                if tensor.shape != there[name].shape:
                    raise CheckpointError(
                        f"resume: '{name}' has shape {tuple(tensor.shape)} in the pair and "
                        f"{tuple(there[name].shape)} in the checkpoint"
                    )
                tensor.copy_(there[name])
        self.optimizer.set_state(
            {
                name: {key: _state_item(item, live.weights[name]) for key, item in values.items()}
                for name, values in snapshot.optimizer.items()
            }
        )


def _state_item(item: Any, parameter: Tensor) -> Any:
    if not isinstance(item, Tensor):
        return item
    # Fused optimizers keep the step count on the parameter's device, in float32.
    item = item.to(parameter.device)
    if item.shape == parameter.shape:  # and the rest in the order of its memory
        return torch.empty_like(parameter, dtype=item.dtype).copy_(item)
    return item.clone()


def init(
    model: Callable,
    guide: Callable,
    arguments: tuple[Tensor, ...],
    *,
    objective: ELBO,
    optimizer: SingleOptimizer,
    batch_size: int,
    device: torch.device,
    held_out: tuple[Tensor, ...] | None = None,
    schedule: Schedule = Constant(),  # noqa: B008  (a frozen value)
    epochs: int = 1,
    patience: int | None = None,
    seed: int = 0,
    plate: str | None = "data",
    transform: Callable[[Tensor], Tensor] | None = None,
    modules: Sequence[nn.Module] = (),
    engine: str = "auto",
    precision: str = "float32",
) -> Training:
    """Look at the pair, register its parameters, and lay out the training.

    Raises: `PairError` if the pair does not fit the data or itself; `RequestError` if batch size
        or warm-up do not fit the data.
    """
    few = head(arguments, transform)
    with _told_of("train", arguments):
        pair = examine(model, guide, arguments, plate, transform)
    num_data = len(arguments[0])
    if pair.enumerated:
        check_warmup(pair, objective, head(arguments, transform, num_data if pair.whole else 4))
    if pair.subsampling == "own":
        batch_size = pair.subsample_size
    elif batch_size > num_data:
        raise RequestError(
            f"batch_size: {batch_size} exceeds the {num_data} training data; use a smaller batch"
        )
    elif pair.whole and batch_size < num_data:
        raise PairError(
            f"the pair runs on all {num_data} data at once only (a plate of fixed size), but "
            f"batch_size is {batch_size}: set batch_size={num_data}, or let the plate subsample "
            "itself (subsample_size=)"
        )
    if pair.subsampling != "none" and pair.full_size != num_data:
        raise PairError(
            f"plate '{plate}' declares {pair.full_size} data, but train holds {num_data}"
        )
    if held_out is not None:
        _check_held_out(pair, few, held_out)
    vectorize = False
    if objective.num_particles > 1:
        few = head(arguments, transform, num_data if pair.whole else 4)
        with contextlib.suppress(PairError):  # one particle at a time always works
            vectorize = not Scorer(pair, few).folded
    store = pyro.get_param_store()
    if not len(store):
        raise PairError("the pair has no parameters: nothing to train")
    for parameter in store._params.values():
        parameter.grad = None  # gradients that someone left behind would be added to
    steps_per_epoch = math.ceil(num_data / batch_size)

    def make(kind: type[Engine]) -> Engine:
        settings: dict[str, Any] = {
            "vectorize": vectorize,
            "modules": modules,
            "precision": precision,
        }
        if issubclass(kind, Compiled):
            settings["steps_per_epoch"] = steps_per_epoch
        return kind(pair, objective, optimizer, num_data, device, **settings)

    first = head(arguments, transform, num_data if pair.whole else batch_size)
    with modes(list(modules), training=True), own_randomness():
        choice = choose(engine, make, first, batch_size, epochs * steps_per_epoch, device)
    training = Training(
        pair=pair,
        engine=choice.engine,
        engine_reason=choice.reason,
        optimizer=optimizer,
        objective=objective,
        arguments=arguments,
        held_out=held_out,
        batch_size=batch_size,
        schedule=schedule,
        epochs=epochs,
        patience=patience,
        seed=seed,
        device=device,
        transform=transform,
        modules=list(modules),
    )
    warmup = objective.warmup(training.steps_per_epoch)
    if warmup > training.total_steps:
        raise RequestError(
            f"objective warm-up of {warmup} steps is longer than the training of "
            f"{training.total_steps} steps, so beta would never reach 1; train longer or warm up "
            "faster"
        )
    return training


def _check_held_out(pair: Pair, train: tuple[Tensor, ...], held_out: tuple[Tensor, ...]) -> None:
    """See that validation data are like the batches of training, and that the pair takes them.

    Raises: `RequestError`, `PairError`.
    """
    if len(held_out) != len(train):
        raise RequestError(
            f"validation: {len(held_out)} tensor(s), but train has {len(train)}; give the same ones"
        )
    for i, (seen, item) in enumerate(zip(train, held_out, strict=True)):
        if item.shape[1:] != seen.shape[1:]:
            raise RequestError(
                f"validation: a datum of tensor {i} has shape {tuple(item.shape[1:])}, but "
                f"{tuple(seen.shape[1:])} in a batch of train"
            )
        if _kind(item) != _kind(seen):
            raise RequestError(
                f"validation: tensor {i} holds {_plain(item.dtype)}, but a batch of train "
                f"{_plain(seen.dtype)}; convert it"
            )
    count = len(held_out[0])
    if pair.subsampling == "own":
        if count < pair.subsample_size:
            raise PairError(
                f"validation: plate '{pair.plate}' draws {pair.subsample_size} data itself, but "
                f"validation holds {count}; give more, or a smaller subsample_size="
            )
    elif pair.subsampling == "prescaled":
        count = min(4, count, pair.full_size)
    elif not pair.whole:
        count = min(4, count)
    few = tuple(a[:count] for a in held_out)
    with _told_of("validation", few):
        try:
            look_at(pair.model, pair.guide, few, pair.plate)
        except PairError as error:
            raise PairError(f"validation: {error}") from None


@contextlib.contextmanager
def _told_of(name: str, arguments: tuple[Tensor, ...]) -> Iterator[None]:
    """What torch and Pyro raise when a pair does not take the data, in one sentence."""
    try:
        yield
    except InferenceError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        held = ", ".join(f"{_plain(a.dtype)} {list(a.shape)}" for a in arguments)
        raise PairError(f"{name}: the pair fails on these data ({held}): {said}") from error


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "float" if tensor.is_floating_point() else "integer"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
