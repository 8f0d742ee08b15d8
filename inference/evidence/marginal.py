"""log p(x) of any Pyro pair, by the estimator that is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from inference.evidence.ais import AIS
from inference.evidence.auto import Auto
from inference.evidence.enumerate import Enumerate
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.importance import Importance
from inference.evidence.kept import Kept, pair_digest, version
from inference.evidence.quadrature import Quadrature
from inference.evidence.sandwich import Sandwich
from inference.evidence.smc import SMC
from inference.evidence.weighing import check_engine
from inference.pair import Data, as_arguments
from inference.requests import member
from inference.tensor_files import data_digest, row_digests

ESTIMATORS: dict[str, type[Estimator]] = {
    "importance": Importance,
    "ais": AIS,
    "smc": SMC,
    "sandwich": Sandwich,
    "quadrature": Quadrature,
    "enumerate": Enumerate,
    "auto": Auto,
}


def log_marginal(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    estimator: Estimator | str = Importance(),  # noqa: B008  (a frozen value)
    seed: int = 0,
    plate: str | None = "data",
    engine: str = "auto",
    precision: str = "float32",
    device: str | torch.device | None = None,
    checkpoint: str | PathLike | None = None,
    progress: bool = True,
) -> Estimate:
    """log p(x) of every datum under a Pyro pair, with its error.

    Args:
        model, guide: any Pyro pair. Per-datum sites stand in the plate named `plate`; with
            `plate=None` the whole data set has one joint evidence.
        data: tensor `[N, ...]` or a tuple of such, handed to model and guide in batches.
        estimator: `Importance(num_samples=5000)`, `AIS()`; or its name, for default settings.
        seed: of the draws; the caller's random state is left alone.
        engine: `eager` runs Pyro's handlers for every tile; `compiled` runs them once and compiles
            what they did; `auto` compiles where the work repays it. The draws are the same.
        precision: `float32` (never TF32 or autocast, whatever the global settings), `float64`, or
            `tf32` or `bfloat16`: then the result notes by how many nats that moves it.
        device: where data and modules are moved; by default data go where the modules are.
        checkpoint: a file for what finished tiles gave. Where it stands, the same call goes on with
            it, and has an equal result; it is removed at the end.
    Returns: an `Estimate`, float64 tensors on the CPU.
    Raises: `PairError` (pair and question do not fit), `RequestError`, `NonFiniteError` (a weight
        is NaN or infinite; names datum and site), `CheckpointError` (the file belongs to another
        question, or is damaged).
    """
    estimator = member("estimator", estimator, Estimator, ESTIMATORS)
    check_engine(engine)
    arguments = as_arguments(data)
    question: dict[str, Any] = {}
    if checkpoint is not None:
        own: dict[str, Any] = {"plate": plate, "device": device, "precision": precision}
        question = {
            "estimator": estimator.model_dump(),
            "data": data_digest(arguments),
            "pair": pair_digest(model, guide, data, **own),
            "seed": seed,
            "plate": plate,
            "engine": engine,
            "precision": precision,
            "version": f"{version()}, torch {torch.__version__}",
        }
    with Kept(None if checkpoint is None else Path(checkpoint), question) as kept:
        request = Request(
            model, guide, data, seed, plate, engine, precision, device, progress, kept
        )
        found = estimator.run(request)
    if found.data_digests is None:  # else it made its own data
        found = replace(found, data_digests=row_digests(arguments))
    return found
