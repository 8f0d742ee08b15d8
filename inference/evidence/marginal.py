"""log p(x) of any Pyro pair, by the estimator that is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from inference.evidence.ais import AIS
from inference.evidence.enumerate import Enumerate
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.importance import Importance
from inference.evidence.quadrature import Quadrature
from inference.evidence.sandwich import Sandwich
from inference.evidence.smc import SMC
from inference.evidence.weighing import check_engine
from inference.pair import Data
from inference.requests import member

ESTIMATORS: dict[str, type[Estimator]] = {
    "importance": Importance,
    "ais": AIS,
    "smc": SMC,
    "sandwich": Sandwich,
    "quadrature": Quadrature,
    "enumerate": Enumerate,
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
    Returns: an `Estimate`, float64 tensors on the CPU.
    Raises: `PairError` (pair and question do not fit), `RequestError`, `NonFiniteError` (a weight
        is NaN; names datum and site).
    """
    estimator = member("estimator", estimator, Estimator, ESTIMATORS)
    check_engine(engine)
    request = Request(model, guide, data, seed, plate, engine, precision, device, progress)
    return estimator.run(request)
