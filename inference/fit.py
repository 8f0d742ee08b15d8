"""Train a Pyro pair: init, step, fit -> FitResult."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.checkpoint import FILE, has_checkpoint, load_checkpoint, save_checkpoint
from inference.engines.choice import ENGINES
from inference.errors import CheckpointError, EngineWarning, NonFiniteError, RequestError
from inference.isolation import modes, modules_of, own_randomness, own_store, seed_all
from inference.layout import init
from inference.memory import keep_freed_memory
from inference.objectives.base import OBJECTIVES, Objective
from inference.objectives.elbo import ELBO
from inference.optimizer import SingleOptimizer
from inference.pair import Data, as_arguments
from inference.precision import cast, check_precision, in_dtype, switches
from inference.progress import Progress, say, working
from inference.requests import member, one_of, positive, usable_device, whole_number
from inference.resuming import checkpoint_of, put, restore
from inference.schedules import SCHEDULES, Constant, Schedule
from inference.tensor_files import data_digest
from inference.training import State, Training

BATCH_SIZE = 128  # unless told otherwise


@dataclass(frozen=True, repr=False)
class FitResult:
    """What a training did.

    `status`: `completed` or `stopped_early`; `message` says it in words. `history` has one row an
    epoch: epoch, step, train_bound (the objective at that epoch's beta), validation_bound (the
    ELBO at beta = 1 whatever the objective, with the same noise), beta, learning_rate, grad_norm,
    seconds (compiling included). Bounds are in nats per datum. `engine` is the one that ran,
    `engine_reason` why.
    """

    history: list[dict[str, Any]]
    status: str
    message: str
    best_epoch: int | None
    steps: int
    seconds: float
    engine: str
    engine_reason: str

    def __repr__(self) -> str:
        return f"FitResult({self.status}: {self.message}; engine {self.engine})"


def fit(
    model: Callable,
    guide: Callable,
    train: Data,
    *,
    validation: Data | None = None,
    objective: Objective | str = ELBO(),  # noqa: B008  (a frozen value)
    epochs: int = 50,
    batch_size: int | None = None,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    optimizer_options: Mapping[str, Any] | None = None,
    schedule: Schedule | str = Constant(),  # noqa: B008
    clip_norm: float | None = None,
    patience: int | None = None,
    seed: int = 0,
    engine: str = "auto",
    precision: str = "float32",
    device: str | torch.device | None = None,
    progress: bool = True,
    batch_transform: Callable[[Tensor], Tensor] | None = None,
    callback: Callable[[dict[str, Any]], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 60.0,
    resume: bool = False,
    plate: str | None = "data",
) -> FitResult:
    """Maximise the objective of a Pyro pair over minibatches, as `pyro.infer.SVI` does.

    Args:
        model, guide: any callables `model(x, ...)`, `guide(x, ...)` whose per-datum sites stand in
            a plate called `plate`, as long as the batch. A plate that subsamples itself
            (`subsample_size=`) is recognised and handed all data each step. Parameters may come
            from `pyro.module`, PyroModule, PyroParam or plain `pyro.param`.
        train, validation: tensor `[N, ...]` or a tuple of such; moved to `device` once. The
            validation bound is over all validation data, whatever part of the training data a
            step takes.
        objective: one of `inference.OBJECTIVES`, or its name. What is not Pyro's `Trace_ELBO` is a
            function of one record of draws, in every engine.
        batch_size: data of a step; None takes 128, or all where they are fewer.
        optimizer, learning_rate, optimizer_options: any torch optimizer by name.
        schedule: multiplies the learning rate (`Constant`, `Cosine`, `Exponential`, `Step`), or
            the name of one.
        clip_norm: largest global gradient norm.
        patience: stop after so many epochs without a better validation bound, counted from the
            end of warm-up; then the best weights are put back.
        engine: `eager` (`pyro.infer.SVI` itself), `compiled` (Pyro's handlers run once, then the
            whole step is one compiled graph), `cuda_graph` (that, as one launch on a GPU), or
            `auto`: `compiled` (on a GPU `cuda_graph`) where the training is long enough to repay
            it, else `eager`. All draw the same noise. What cannot be recorded is run by `eager`;
            the result says why. A number of Python's that the pair or `batch_transform` changes by
            itself (a counter) is found when the record is held against the handlers: when it is
            made, after each callback, and at steps 64, 128, 256, ...; till then the former
            number is used.
        precision: `float32`, `bfloat16` (products of networks alone; densities, losses and weights
            stay float32), `tf32` (the same on NVIDIA GPUs), or `float64` (data and modules are
            float64 during training).
        device: where data and modules are moved; by default the GPU where there is one. Modules
            stay there afterwards, and evidence and diagnostics find them there.
        batch_transform: fresh randomness per batch (of torch, numpy or `random`), applied to the
            first tensor (x).
        callback: called with each row of `history`. It may change modes, numbers that the pair
            reads and values of parameters (in place): every engine notices.
        checkpoint: a folder; written at least every `checkpoint_seconds`. With `resume=True` the
            training there goes on, bit for bit as if it had not stopped (same machine, torch,
            thread count and engine; another engine goes on up to rounding); without, a folder that
            holds a training is refused.
    Returns: a `FitResult`. Modules are trained in place; values of plain `pyro.param`s are put
        into the caller's parameter store, which is otherwise left as found, as are random states
        (torch, numpy, `random`), dtype and validation flag.
    Raises: `RequestError` (an argument), `PairError` (the pair), `CheckpointError`,
        `NonFiniteError` (loss or gradient). When training breaks off, by an error or Ctrl-C,
        modules and plain `pyro.param`s alike keep their last good values.
    """
    started = time.perf_counter()
    arguments = as_arguments(train, "train")
    held_out = None if validation is None else as_arguments(validation, "validation")
    objective = member("objective", objective, Objective, OBJECTIVES)
    schedule = member("schedule", schedule, Schedule, SCHEDULES)
    if batch_size is None:
        batch_size = min(BATCH_SIZE, len(arguments[0]))
    _check_request(locals())
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = usable_device(device)
    check_precision(precision, device)
    keep_freed_memory(device)
    arguments = cast(tuple(a.to(device) for a in arguments), precision)
    if held_out is not None:
        held_out = cast(tuple(a.to(device) for a in held_out), precision)
    modules = modules_of(model, guide)
    for module in modules:
        module.to(device)

    with (
        own_store() as keep_params,
        own_randomness(seed),
        modes(modules, training=True),
        in_dtype(modules, precision),
        switches(precision, device),
    ):
        one_optimizer = SingleOptimizer(optimizer, learning_rate, optimizer_options, clip_norm)
        # A look leaves running statistics alone.
        with modes(modules, training=False), working("preparing the training step", progress):
            training = init(
                model,
                guide,
                arguments,
                held_out=held_out,
                objective=objective,
                optimizer=one_optimizer,
                schedule=schedule,
                epochs=epochs,
                batch_size=batch_size,
                patience=patience,
                seed=seed,
                device=device,
                plate=plate,
                transform=batch_transform,
                modules=modules,
                engine=engine,
                precision=precision,
            )
        _tell_engine(engine, training, progress)
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
            "precision": precision,
            "epochs": epochs,
        }
        if checkpoint is not None:
            settings["data"] = data_digest(arguments)
            settings["validation"] = data_digest(held_out or ())
        state = State()
        seed_all(seed)
        if resume:
            state = restore(training, load_checkpoint(checkpoint), settings)  # type: ignore[arg-type]
        keep_params()
        # What came before the first step (looking, recording, compiling) is part of the time.
        before = state.seconds + time.perf_counter() - started
        return _run(
            training, state, settings, before, checkpoint, checkpoint_seconds, callback, progress
        )


def _run(
    training: Training,
    state: State,
    settings: dict[str, Any],
    before: float,
    checkpoint: str | Path | None,
    checkpoint_seconds: float,
    callback: Callable[[dict[str, Any]], None] | None,
    progress: bool,
) -> FitResult:
    """Epochs of steps, with validation, early stopping and checkpoints around them."""
    started = saved = time.perf_counter()

    def save() -> None:
        nonlocal saved
        if checkpoint is not None:
            save_checkpoint(checkpoint, checkpoint_of(training, state, settings))
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
                    last = state.batch == steps
                    due = not last and time.perf_counter() - saved > checkpoint_seconds
                    if last or due:
                        training.read(state)
                except NonFiniteError as error:
                    step = state.step - error.steps_ago
                    kept = f"; the last good checkpoint is in {checkpoint}" if checkpoint else ""
                    raise NonFiniteError(
                        f"step {step} (epoch {(step - 1) // steps + 1}): {error}. The weights "
                        "were not updated by this step"
                        f"{kept}. Lower the learning rate, set clip_norm, or check the data"
                    ) from None
                bar.advance(text=f"bound {state.objective_sum / training.seen(state):.2f}")
                state.seconds = before + time.perf_counter() - started
                if due:
                    save()
            row = training.finish_epoch(state)
            state.seconds = row["seconds"] = before + time.perf_counter() - started
            if callback is not None:
                callback(row)
                training.user_code_ran()
            if state.finished or time.perf_counter() - saved > checkpoint_seconds:
                save()
    save()
    stopped_early = state.finished
    best_epoch = state.stopping.best_epoch or None
    if state.best is not None and training.patience is not None:
        put(training, state.best)
    run = f"{state.epoch} epochs, {state.step} steps, {state.seconds:.0f} s"
    message = f"all {run}"
    if stopped_early:
        message = f"stopped after {run}: no better validation bound for {training.patience} epochs"
    if training.patience is not None and best_epoch:
        message += f"; weights are those of epoch {best_epoch}"
    elif best_epoch and best_epoch != state.epoch:
        message += (
            f"; weights are those of the last epoch (the validation bound was best at epoch "
            f"{best_epoch}: patience keeps the best)"
        )
    return FitResult(
        history=state.history,
        status="stopped_early" if stopped_early else "completed",
        message=message,
        best_epoch=best_epoch,
        steps=state.step,
        seconds=state.seconds,
        engine=training.engine.name,
        engine_reason="; ".join([training.engine_reason, *training.engine.remarks]),
    )


def _tell_engine(asked: str, training: Training, progress: bool) -> None:
    """Say which engine runs and why; warn where it is not the one asked for."""
    name, reason = training.engine.name, training.engine_reason
    if asked not in ("auto", name):
        warnings.warn(f"the {name} engine runs this training: {reason}", EngineWarning)
    elif progress and asked == "auto":
        say(f"engine: {name} ({reason})")


def _check_request(request: dict[str, Any]) -> None:
    """Refuse bad arguments, each in one sentence that names it."""
    for name in ("epochs", "batch_size", "patience"):
        if name != "patience" or request[name] is not None:
            whole_number(name, request[name])
    for name in ("learning_rate", "clip_norm"):
        if name != "clip_norm" or request[name] is not None:
            positive(name, request[name])
    if request["patience"] is not None and request["validation"] is None:
        raise RequestError(
            f"patience: early stopping after {request['patience']} epochs needs validation data; "
            "give validation=..., or patience=None"
        )
    one_of("engine", request["engine"], ENGINES)
    folder = request["checkpoint"]
    if request["resume"]:
        if folder is None:
            raise RequestError("resume: give the checkpoint folder to resume from")
    elif folder is not None and has_checkpoint(folder):
        raise CheckpointError(
            f"checkpoint: {folder} holds a training ({FILE}), which a new one would overwrite; go "
            "on with it by resume=True, or give another folder"
        )


def _plain(options: Mapping[str, Any] | None) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in sorted((options or {}).items())
    }
