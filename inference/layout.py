"""Laying a training out: a look at the pair, its parameters, its engine, and what fits what."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from inference.engines.base import Engine
from inference.engines.choice import choose
from inference.engines.compiled import Compiled
from inference.errors import InferenceError, PairError, RequestError
from inference.isolation import modes, own_randomness
from inference.objectives.base import Objective
from inference.optimizer import SingleOptimizer
from inference.pair import Pair, examine, head, look_at
from inference.particles import Scorer
from inference.schedules import Constant, Schedule
from inference.suitability import check_objective
from inference.training import Training


def init(
    model: Callable,
    guide: Callable,
    arguments: tuple[Tensor, ...],
    *,
    objective: Objective,
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
        pair = objective.ready(examine(model, guide, arguments, plate, transform, batch_size))
    num_data = len(arguments[0])
    few = _few(pair, arguments, transform)
    with modes(list(modules), training=True):
        check_objective(pair, objective, few, modules)
    if pair.subsampling == "own":
        batch_size = pair.subsample_size
    elif batch_size > num_data:
        raise RequestError(
            f"batch_size: {batch_size} exceeds the {num_data} training data; use a smaller batch"
        )
    elif pair.whole and batch_size < num_data:
        raise PairError(
            f"the pair runs on all {num_data} data at once only "
            f"({pair.failure or 'a plate of fixed size'}), but batch_size is {batch_size}: set "
            f"batch_size={num_data}, or let the plate subsample itself (subsample_size=)"
        )
    if pair.subsampling != "none" and pair.full_size != num_data:
        raise PairError(
            f"plate '{plate}' declares {pair.full_size} data, but train holds {num_data}"
        )
    if held_out is not None:
        _check_held_out(pair, few, held_out)
    vectorize = False
    if objective.num_particles > 1:
        few = _few(pair, arguments, transform)
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


def _few(
    pair: Pair, arguments: tuple[Tensor, ...], transform: Callable[[Tensor], Tensor] | None
) -> tuple[Tensor, ...]:
    """As many data as the pair needs for a look at it."""
    return head(arguments, transform, len(arguments[0]) if pair.whole else pair.few)


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
        count = min(pair.few, count, pair.full_size)
    elif not pair.whole:
        count = min(pair.few, count)
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
        if said.startswith("Shape mismatch inside plate"):
            said += "; dimensions of one datum belong into .to_event(their number)"
        held = ", ".join(f"{_plain(a.dtype)} {list(a.shape)}" for a in arguments)
        raise PairError(f"{name}: the pair fails on these data ({held}): {said}") from error


def _kind(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "complex"
    return "float" if tensor.is_floating_point() else "integer"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
