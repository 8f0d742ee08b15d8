"""Which engine runs a training: the one asked for, or what repays its preparation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.engines.base import Engine
from inference.engines.compiled import Compiled
from inference.engines.cuda_graph import CudaGraph
from inference.engines.eager import Eager
from inference.errors import CompilationError, RequestError, Untraceable

ENGINES = ("auto", "eager", "compiled", "cuda_graph")

# Compiling takes 5 to 20 seconds and saves 1 to 2 milliseconds a step: it is repaid after this
# many steps. From the request alone, so that the choice never depends on a timing.
STEPS_TO_REPAY = 10_000


@dataclass(frozen=True)
class Choice:
    """An engine, and in one sentence why it is this one."""

    engine: Engine
    reason: str


def choose(
    asked: str,
    make: Callable[[type[Engine]], Engine],
    batch: tuple[Tensor, ...],
    size: int,
    total_steps: int,
    device: torch.device,
) -> Choice:
    """The engine for a training of `total_steps` with batches like this one.

    `make` builds an engine of a class. What cannot be captured is run compiled, and what cannot be
    recorded or compiled is run eagerly.
    Raises: `RequestError` for `cuda_graph` on another device.
    """
    if asked == "cuda_graph" and device.type != "cuda":
        raise RequestError(
            f"engine: 'cuda_graph' runs on an NVIDIA GPU, but the device is {device}; use "
            "'compiled', or 'auto'"
        )
    if asked == "eager":
        return Choice(make(Eager), "as asked")
    if asked == "auto" and total_steps < STEPS_TO_REPAY:
        return Choice(
            make(Eager),
            f"{total_steps} steps do not repay compiling (from {STEPS_TO_REPAY} steps on)",
        )
    kinds: list[type[Compiled]] = [Compiled]
    if asked == "cuda_graph" or (asked == "auto" and device.type == "cuda"):
        kinds.insert(0, CudaGraph)
    refusals = []
    for kind in kinds:
        engine = make(kind)
        assert isinstance(engine, Compiled)
        try:
            engine.prepare(batch, size)
        except Untraceable as error:
            refusals.append(f"not {kind.name}, since {error}")
        except CompilationError as error:
            refusals.append(f"not {kind.name}, since compiling failed ({error})")
        else:
            wish = "as asked" if asked != "auto" else f"{total_steps} steps repay compiling"
            return Choice(engine, "; ".join(refusals) or wish)
    return Choice(make(Eager), refusals[-1])
