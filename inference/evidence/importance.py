"""Importance-weighted estimates of log p(x), any Pyro pair, in tiles.

References: Rezende, Mohamed, Wierstra, arXiv:1401.4082 (appendix E); Burda, Grosse,
Salakhutdinov, arXiv:1509.00519.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from inference.errors import NonFiniteError, RequestError
from inference.evidence import streaming
from inference.evidence.estimate import Estimate
from inference.evidence.smoothing import khat_threshold
from inference.log_weights import LogWeights
from inference.pair import Data
from inference.progress import Progress
from inference.tiles import Tile, Tiles, tiled

MANY_ULP = 64  # how far log w may be off by rounding alone, in units of its terms' last place
FINISHED_AT_ONCE = 64  # data; the tail's fit costs many small operations


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
            stop = 0
            for state in _stream(tiles, bar):
                worst = max(worst, float(state.rounding.max()))
                start, stop = stop, stop + len(state.peak)
                for name, found in streaming.finish(state).items():
                    # Rows of one tensor: many small ones kept between large tiles would pin the
                    # allocator's memory, a third of a MiB a datum.
                    if name not in results:
                        size = tiles.num_data if plate is not None else len(found)
                        results[name] = found.new_empty(size)
                    results[name][start:stop] = found
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
    if worst <= streaming.MAX_ROUNDING:
        return ()
    return (
        f"Rounding of about {worst:.2g} nats in log w limits this result; float64 parameters and "
        "data remove it.",
    )


def _stream(tiles: Tiles, bar: Progress) -> Iterator[streaming.Moments]:
    """All log-weights in order of data, a good number of data at a time."""
    waiting: list[streaming.Moments] = []
    for start in tiles.rows():
        state: streaming.Moments | None = None
        for column in tiles.columns():
            log_weight, ulp = _weigh(tiles, tiles.tile(start, column))
            if state is None:
                state = streaming.init(log_weight.shape[1], tiles.num_samples, log_weight.device)
            state = streaming.update(state, log_weight.T, MANY_ULP * ulp.amax(0))
            bar.advance()
        waiting.append(state)  # type: ignore[arg-type]  # there is at least one column
        if sum(len(each.peak) for each in waiting) >= FINISHED_AT_ONCE:
            yield streaming.join(waiting)
            waiting = []
    if waiting:
        yield streaming.join(waiting)


def _weigh(tiles: Tiles, tile: Tile) -> tuple[Tensor, Tensor]:
    """log w `[samples, data]` float64 of one tile, and the size of its terms' last place."""
    record = tiles.score(tile)
    log_weight = record.log_weight
    if not bool((log_weight < math.inf).all()):  # NaN or +inf
        raise NonFiniteError(_blame(record, tile.start))
    log_weight = log_weight.reshape(tile.count, -1)
    ulp = record.ulp.reshape(tile.count, -1)
    return log_weight[:, tile.skip :], ulp[:, tile.skip :]


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
