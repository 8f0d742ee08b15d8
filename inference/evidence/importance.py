"""Importance-weighted estimates of log p(x), any Pyro pair, in tiles.

References: Rezende, Mohamed, Wierstra, arXiv:1401.4082 (appendix E); Burda, Grosse,
Salakhutdinov, arXiv:1509.00519.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from inference.errors import NonFiniteError, RequestError
from inference.evidence.estimate import Estimate
from inference.evidence.smoothing import khat_threshold, pareto_khat
from inference.log_weights import LogWeights
from inference.pair import Data
from inference.progress import Progress
from inference.tiles import Tiles, tiled

# Nats. A spread of log w below its rounding is called none only where that rounding is this small.
MAX_ROUNDING = 1e-2


class Importance(BaseModel):
    """log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k|x),   z_k ~ q(z|x).

    Low in expectation, by about var(w)/(2K); unbiased on the weight scale. Its error is
    s^2 = 1/ESS - 1/K with ESS = (sum w)^2 / sum w^2.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["importance"] = "importance"
    num_samples: PositiveInt = 5000


def log_marginal(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    estimator: Importance | str = Importance(),  # noqa: B008  (a frozen value)
    seed: int = 0,
    plate: str | None = "data",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Estimate:
    """log p(x) of every datum under a Pyro pair, with its error.

    Args:
        model, guide: any Pyro pair. Per-datum sites stand in the plate named `plate`; with
            `plate=None` the whole data set has one joint evidence.
        data: tensor `[N, ...]` or a tuple of such, handed to model and guide in batches.
        estimator: `Importance(num_samples=5000)`.
        seed: of the draws; the caller's random state is left alone.
        device: where data and modules are moved; by default data go where the modules are.
    Returns: an `Estimate`, float64 tensors on the CPU.
    Raises: `PairError` (pair and question do not fit), `RequestError`, `NonFiniteError` (a weight
        is NaN; names datum and site).
    """
    if isinstance(estimator, str):
        if estimator != "importance":
            raise RequestError(f"estimator: '{estimator}' is unknown. Choices: importance")
        estimator = Importance()
    started = time.perf_counter()
    results: dict[str, Tensor] = {}
    worst = 0.0
    with tiled(
        model, guide, data, estimator.num_samples, seed=seed, plate=plate, device=device
    ) as tiles:
        num_tiles = len(tiles.rows()) * len(tiles.columns())
        with Progress("log p(x)", num_tiles, progress, unit="tiles") as bar:
            for start in tiles.rows():
                log_weight, rounding = _weigh(tiles, start, bar)
                worst = max(worst, float(rounding.max()))
                # Beyond the cap a spread within rounding may hide a bad guide as well.
                resolution = torch.where(rounding <= MAX_ROUNDING, rounding, -1.0)
                for name, found in summarize(log_weight, resolution).items():
                    # Rows of one tensor: many small ones kept between large tiles would pin the
                    # allocator's memory, a third of a MiB a datum.
                    if name not in results:
                        size = tiles.num_data if plate is not None else len(found)
                        results[name] = found.new_empty(size)
                    results[name][start : start + len(found)] = found
    return Estimate(
        **{name: tensor.cpu() for name, tensor in results.items()},  # type: ignore[arg-type]
        quantity="log p(x)" if plate is not None else "joint log p(x)",
        estimator=estimator.name,
        num_samples=estimator.num_samples,
        bias_direction="low in expectation",
        khat_threshold=khat_threshold(estimator.num_samples),
        tile=(tiles.data_per_tile, tiles.samples_per_tile),
        seed=seed,
        seconds=time.perf_counter() - started,
        notes=_rounding_note(worst),
    )


def _rounding_note(worst: float) -> tuple[str, ...]:
    if worst <= MAX_ROUNDING:
        return ()
    return (
        f"Rounding of about {worst:.2g} nats in log w limits this result; float64 parameters and "
        "data remove it.",
    )


def _weigh(tiles: Tiles, start: int, bar: Progress) -> tuple[Tensor, Tensor]:
    """log w `[n, K]` float64 of one row of tiles, and each datum's rounding error `[n]`."""
    columns, sizes = [], []
    for column in tiles.columns():
        tile = tiles.tile(start, column)
        record = tiles.score(tile)
        log_weight = record.log_weight
        if not bool((log_weight < math.inf).all()):  # NaN or +inf
            raise NonFiniteError(_blame(record, tile.start))
        columns.append(log_weight.double().reshape(tile.count, -1).T[tile.skip :])
        sizes.append(_rounding(record).reshape(-1)[tile.skip :])
        bar.advance()
    return torch.cat(columns, 1), torch.stack(sizes).amax(0)


def _rounding(record: LogWeights) -> Tensor:
    """How far log w may be off by rounding alone: 64 ulp of its terms, as a root of squares."""
    return 64 * record.ulp.amax(0)


def _blame(record: LogWeights, start: int) -> str:
    wrong = ~(record.log_weight < math.inf).reshape(len(record.log_weight), -1)
    where = int(wrong.any(0).nonzero()[0])
    for part, scores in (("guide", record.log_q), ("model", record.log_p)):
        worst = -math.inf if part == "guide" else math.inf
        for name, value in scores.items():
            column = value.reshape(len(value), -1)[:, where]
            if bool((column.isnan() | (column == worst)).any()):
                kind = "a NaN" if bool(column.isnan().any()) else f"an infinite ({worst})"
                return (
                    f"log w of datum {start + where} is NaN or infinite: site '{name}' of the "
                    f"{part} has {kind} log-density; check its parameters"
                )
    return f"log w of datum {start + where} is NaN: infinite log-densities cancel"


def summarize(log_weight: Tensor, resolution: Tensor) -> dict[str, Tensor]:
    """Value, error, ESS, k-hat and ELBO of each row of log-weights `[n, K]`, float64."""
    num_samples = log_weight.shape[1]
    largest = log_weight.amax(1, keepdim=True)
    weights = (log_weight - largest.nan_to_num(neginf=0.0)).exp()
    total, squares = weights.sum(1), weights.square().sum(1)
    ess = total.square() / squares
    constant = largest.squeeze(1) - log_weight.amin(1) <= resolution
    if num_samples == 1:
        std_error = torch.full_like(total, math.nan)
    else:
        std_error = (1 / ess - 1 / num_samples).clamp_min(0).sqrt()
        std_error = torch.where(constant, 0.0, std_error)
    return {
        "value": largest.squeeze(1) + total.log() - math.log(num_samples),
        "std_error": std_error,
        "ess": ess,
        "khat": pareto_khat(log_weight, resolution=resolution),
        "elbo": log_weight.mean(1),
    }
