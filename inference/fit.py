"""Train a Pyro pair: init, step, fit -> FitResult."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from inference.checkpoint import (
    Checkpoint,
    Snapshot,
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from inference.engines.eager import Eager
from inference.errors import CheckpointError, NonFiniteError, PairError, RequestError
from inference.isolation import derived_seed, modes, modules_of, own_randomness, own_store
from inference.log_weights import Scorer
from inference.objectives.elbo import ELBO
from inference.optimizer import SingleOptimizer
from inference.pair import Data, Pair, as_arguments, examine, head
from inference.progress import Progress
from inference.schedules import Constant, Schedule
from inference.stopping import Stopping
from inference.tiles import TILE_NUMBERS

ENGINES = ("auto", "eager")

# What a checkpoint tells of a `State`, beside weights and history.
PROGRESS = {
    *("epoch", "batch", "step", "objective_sum", "norm_sum", "seconds", "finished"),
    *("best", "best_epoch", "waited"),
}


@dataclass(frozen=True)
class FitResult:
    """What a training did.

    `status`: `completed` or `stopped_early`; `message` says it in words. `history` has one row an
    epoch: epoch, step, train_bound (the objective at that epoch's beta), validation_bound (always
    at beta = 1, with the same noise), beta, learning_rate, grad_norm, seconds. Bounds are in nats
    per datum.
    """

    history: list[dict[str, Any]]
    status: str
    message: str
    best_epoch: int | None
    steps: int
    seconds: float
    engine: str


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


def fit(
    model: Callable,
    guide: Callable,
    train: Data,
    *,
    validation: Data | None = None,
    objective: ELBO = ELBO(),  # noqa: B008  (a frozen value)
    epochs: int = 50,
    batch_size: int = 128,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    optimizer_options: Mapping[str, Any] | None = None,
    schedule: Schedule = Constant(),  # noqa: B008
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    engine: str = "auto",
    device: str | torch.device | None = None,
    progress: bool = True,
    batch_transform: Callable[[Tensor], Tensor] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
    plate: str | None = "data",
) -> FitResult:
    """Maximise the objective of a Pyro pair over minibatches, with `pyro.infer.SVI`.

    Args:
        model, guide: any callables `model(x, ...)`, `guide(x, ...)` whose per-datum sites stand in
            a plate called `plate`, as long as the batch. A plate that subsamples itself
            (`subsample_size=`) is recognised and handed all data each step. Parameters may come
            from `pyro.module`, PyroModule, PyroParam or plain `pyro.param`.
        train, validation: tensor `[N, ...]` or a tuple of such; moved to `device` once.
        optimizer, learning_rate, optimizer_options: any torch optimizer by name.
        schedule: multiplies the learning rate (`Constant`, `Cosine`, `Exponential`, `Step`).
        clip_norm: largest global gradient norm.
        patience: stop after so many epochs without a better validation bound, counted from the
            end of warm-up; then the best weights are put back.
        batch_transform: fresh randomness per batch, applied to the first tensor (x).
        callback: called with each row of `history`.
        checkpoint: a folder; written at least every `checkpoint_seconds`. With `resume=True` the
            training there goes on, bit for bit as if it had not stopped (same machine, torch and
            thread count).
    Returns: a `FitResult`. Modules are trained in place; values of plain `pyro.param`s are put
        into the caller's parameter store, which is otherwise left as found, as are random state,
        dtype and validation flag.
    Raises: `RequestError` (an argument), `PairError` (the pair), `CheckpointError`,
        `NonFiniteError` (loss or gradient; the weights keep their last good values).
    """
    arguments = as_arguments(train, "train")
    held_out = None if validation is None else as_arguments(validation, "validation")
    _check_request(locals())
    device = _device(device)
    arguments = tuple(a.to(device) for a in arguments)
    held_out = None if held_out is None else tuple(a.to(device) for a in held_out)
    modules = modules_of(model, guide)
    for module in modules:
        module.to(device)

    with own_store(keep_plain=True), own_randomness(seed), modes(modules, training=True):
        one_optimizer = SingleOptimizer(optimizer, learning_rate, optimizer_options, clip_norm)
        with modes(modules, training=False):  # a look leaves running statistics alone
            training = init(
                model,
                guide,
                arguments,
                objective=objective,
                optimizer=one_optimizer,
                batch_size=batch_size,
                device=device,
                plate=plate,
                transform=batch_transform,
            )
        training.held_out, training.modules, training.seed = held_out, modules, seed
        training.schedule, training.epochs, training.patience = schedule, epochs, patience
        warmup = objective.warmup(training.steps_per_epoch)
        if warmup > training.total_steps:
            raise RequestError(
                f"objective warm-up of {warmup} steps is longer than the training of "
                f"{training.total_steps} steps, so beta would never reach 1; train longer or warm "
                "up faster"
            )
        settings = {
            "objective": objective.model_dump(mode="json"),
            "optimizer": optimizer.lower(),
            "learning_rate": learning_rate,
            "optimizer_options": _plain(optimizer_options),
            "schedule": schedule.model_dump(mode="json"),
            "clip_norm": clip_norm,
            "patience": patience,
            "batch_size": batch_size,
            "seed": seed,
            "engine": training.engine.name,
            "num_data": len(arguments[0]),
            "num_validation": 0 if held_out is None else len(held_out[0]),
            "epochs": epochs,
        }
        state = State()
        torch.manual_seed(seed)
        if resume:
            if checkpoint is None:
                raise RequestError("resume: give the checkpoint folder to resume from")
            state = training.restore(load_checkpoint(checkpoint), settings)
        return _run(training, state, settings, checkpoint, checkpoint_seconds, callback, progress)


def _run(
    training: Training,
    state: State,
    settings: dict[str, Any],
    checkpoint: str | Path | None,
    checkpoint_seconds: float,
    callback: Callable[[dict[str, Any]], None] | None,
    progress: bool,
) -> FitResult:
    """Epochs of steps, with validation, early stopping and checkpoints around them."""
    started = saved = time.perf_counter()
    before = state.seconds

    def save() -> None:
        nonlocal saved
        if checkpoint is not None:
            save_checkpoint(checkpoint, training.checkpoint(state, settings))
            saved = time.perf_counter()

    if not state.step:
        save()
    steps = training.steps_per_epoch
    total = training.total_steps
    with Progress("training", total, progress, done=state.step) as bar:
        while not state.finished and state.epoch < training.epochs:
            order = training.order(state.epoch)
            while state.batch < steps:
                try:
                    training.step(state, order)
                except NonFiniteError as error:
                    kept = f"; the last good checkpoint is in {checkpoint}" if checkpoint else ""
                    raise NonFiniteError(
                        f"step {state.step + 1} (epoch {state.epoch + 1}): {error}. The weights "
                        "were not updated by this step"
                        f"{kept}. Lower the learning rate, set clip_norm, or check the data"
                    ) from None
                bar.advance(text=f"bound {state.objective_sum / training.seen(state):.2f}")
                state.seconds = before + time.perf_counter() - started
                if state.batch < steps and time.perf_counter() - saved > checkpoint_seconds:
                    save()
            row = training.finish_epoch(state)
            state.seconds = row["seconds"] = before + time.perf_counter() - started
            if callback is not None:
                callback(row)
            if state.finished or time.perf_counter() - saved > checkpoint_seconds:
                save()
    save()
    stopped_early = state.finished
    best_epoch = state.stopping.best_epoch or None
    if state.best is not None and training.patience is not None:
        training.put(state.best, with_optimizer=True)
    last = f"{state.epoch} epochs, {state.step} steps, {state.seconds:.0f} s"
    message = f"all {last}"
    if stopped_early:
        message = f"stopped after {last}: no better validation bound for {training.patience} epochs"
    if training.patience is not None and best_epoch:
        message += f"; weights are those of epoch {best_epoch}"
    return FitResult(
        history=state.history,
        status="stopped_early" if stopped_early else "completed",
        message=message,
        best_epoch=best_epoch,
        steps=state.step,
        seconds=state.seconds,
        engine=training.engine.name,
    )


@dataclass
class Training:
    """What stays the same during a training: the pair, its engine, its data."""

    pair: Pair
    engine: Eager
    optimizer: SingleOptimizer
    objective: ELBO
    arguments: tuple[Tensor, ...]
    batch_size: int
    device: torch.device
    held_out: tuple[Tensor, ...] | None = None
    modules: list[nn.Module] = field(default_factory=list)
    seed: int = 0
    schedule: Schedule = field(default_factory=Constant)
    transform: Callable[[Tensor], Tensor] | None = None
    epochs: int = 1
    patience: int | None = None

    @property
    def num_data(self) -> int:
        return len(self.arguments[0])

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.num_data / self.batch_size)

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    @functools.cached_property
    def buffers(self) -> list[Tensor]:
        """Running statistics and the like, which a forward pass may change."""
        return [buffer for module in self.modules for buffer in module.buffers()]

    def seen(self, state: State) -> int:
        """Data seen in the epoch under way."""
        return max(1, min(state.batch * self.batch_size, self.num_data))

    def order(self, epoch: int) -> Tensor:
        """The epoch's shuffle: a function of seed and epoch alone."""
        generator = torch.Generator().manual_seed(derived_seed("order", self.seed, epoch))
        return torch.randperm(self.num_data, generator=generator).to(self.device)

    def step(self, state: State, order: Tensor) -> None:
        """One batch: gather, transform, update. Advances `state`."""
        batch = self.arguments
        size = min(self.batch_size, self.num_data - state.batch * self.batch_size)
        if not self.pair.whole:
            start = state.batch * self.batch_size
            rows = order[start : start + size]
            batch = tuple(a[rows] for a in self.arguments)
        if self.transform is not None:
            batch = (self.transform(batch[0]), *batch[1:])
        beta = self.objective.beta(state.step, self.steps_per_epoch)
        self.optimizer.factor = self.schedule.factor(
            state.step, self.steps_per_epoch, self.total_steps
        )
        buffers = [buffer.clone() for buffer in self.buffers]
        try:
            objective = self.engine.step(batch, beta)
        except NonFiniteError:
            for buffer, kept in zip(self.buffers, buffers, strict=True):
                buffer.copy_(kept)
            raise
        state.objective_sum += size * objective
        state.norm_sum += self.optimizer.grad_norm
        state.batch += 1
        state.step += 1

    def finish_epoch(self, state: State) -> dict[str, Any]:
        """The epoch's row; validation, best-so-far and the decision to stop."""
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
        """The validation bound at beta = 1, with the same noise each time."""
        if self.held_out is None:
            return None
        count = len(self.held_out[0])
        size = count if self.pair.whole else max(1, TILE_NUMBERS // self.pair.event_numel)
        total = 0.0
        with (
            own_randomness(derived_seed("validation", self.seed)),
            modes(self.modules, training=False),
        ):
            for start in range(0, count, size):
                batch = tuple(a[start : start + size] for a in self.held_out)
                total += len(batch[0]) * self.engine.evaluate(batch)
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
            random=random_state(self.device),
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
        self.put(saved.current, with_optimizer=True)
        set_random_state(saved.random, self.device)
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
    def put(self, snapshot: Snapshot, *, with_optimizer: bool) -> None:
        """Copy a snapshot's values into the live parameters. Raises `CheckpointError`."""
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
        if with_optimizer:
            states = {
                name: {
                    key: _state_item(item, key, live.weights[name]) for key, item in values.items()
                }
                for name, values in snapshot.optimizer.items()
            }
            self.optimizer.set_state(states)


def _state_item(item: Any, key: str, parameter: Tensor) -> Any:
    if not isinstance(item, Tensor):
        return item
    # Fused optimizers keep the step count on the parameter's device, in float32.
    return item.clone().to(parameter.device)


def init(
    model: Callable,
    guide: Callable,
    arguments: tuple[Tensor, ...],
    *,
    objective: ELBO,
    optimizer: SingleOptimizer,
    batch_size: int,
    device: torch.device,
    plate: str | None = "data",
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Training:
    """Look at the pair, register its parameters, and lay out the training.

    Raises: `PairError` if the pair does not fit the data or itself.
    """
    pair = examine(model, guide, arguments, plate, transform)
    num_data = len(arguments[0])
    if pair.subsampling == "own":
        batch_size = pair.subsample_size
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
    vectorize = False
    if objective.num_particles > 1:
        few = head(arguments, transform, num_data if pair.whole else 4)
        with contextlib.suppress(PairError):  # one particle at a time always works
            vectorize = not Scorer(pair, few).folded
    engine = Eager(pair, objective, optimizer, num_data, device, vectorize=vectorize)
    store = pyro.get_param_store()
    if not len(store):
        raise PairError("the pair has no parameters: nothing to train")
    for parameter in store._params.values():
        parameter.grad = None  # gradients that someone left behind would be added to
    return Training(
        pair=pair,
        engine=engine,
        optimizer=optimizer,
        objective=objective,
        arguments=arguments,
        batch_size=min(batch_size, num_data),
        device=device,
        transform=transform,
    )


def _check_request(request: dict[str, Any]) -> None:
    """Refuse bad arguments, each in one sentence that names it."""
    for name in ("epochs", "batch_size", "patience"):
        value = request[name]
        if name == "patience" and value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise RequestError(f"{name}: got {value!r}; expected a whole number of at least 1")
    for name in ("learning_rate", "clip_norm"):
        value = request[name]
        if name == "clip_norm" and value is None:
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not (value > 0 and math.isfinite(value)):
            raise RequestError(f"{name}: got {value!r}; expected a positive number")
    if request["batch_size"] > len(request["arguments"][0]):
        raise RequestError(
            f"batch_size: {request['batch_size']} exceeds the {len(request['arguments'][0])} "
            "training data; use a smaller batch"
        )
    if request["patience"] is not None and request["validation"] is None:
        raise RequestError(
            f"patience: early stopping after {request['patience']} epochs needs validation data; "
            "give validation=..., or patience=None"
        )
    if request["engine"] not in ENGINES:
        raise RequestError(
            f"engine: '{request['engine']}' is unknown. Choices: {', '.join(ENGINES)}"
        )


def _device(device: str | torch.device | None) -> torch.device:
    """The device asked for, if it is there; else the GPU where there is one."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"device: '{device}' is not available here ({str(error).splitlines()[0]}); use cpu"
        ) from None
    return found


def _plain(options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in sorted((options or {}).items())
    }
