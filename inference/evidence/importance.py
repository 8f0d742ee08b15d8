"""Importance-weighted estimates of log p(x), any Pyro pair, in tiles.

References: Rezende, Mohamed, Wierstra, arXiv:1401.4082 (appendix E); Burda, Grosse,
Salakhutdinov, arXiv:1509.00519.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from inference.errors import NonFiniteError, RequestError
from inference.evidence import streaming
from inference.evidence.estimate import Estimate
from inference.evidence.smoothing import khat_threshold
from inference.evidence.weighing import Weighing, check_engine
from inference.pair import Data
from inference.progress import Progress, working
from inference.record import LogWeights
from inference.tiles import Tile, Tiles, tiled

MANY_ULP = 64  # how far log w may be off by rounding alone, in units of its terms' last place
COMPARED = 100  # data whose float32 values tell what another precision costs
# Weights, and data, that join the state together: that and the fit of the tail take many small
# operations.
WEIGHTS_AT_ONCE = 2**18
DATA_AT_ONCE = 64


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
        estimator: `Importance(num_samples=5000)`.
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
    if isinstance(estimator, str):
        if estimator != "importance":
            raise RequestError(f"estimator: '{estimator}' is unknown. Choices: importance")
        estimator = Importance()
    check_engine(engine)
    started = time.perf_counter()
    results: dict[str, Tensor] = {}
    worst = 0.0
    notes: tuple[str, ...] = ()
    with tiled(
        model,
        guide,
        data,
        estimator.num_samples,
        seed=seed,
        plate=plate,
        device=device,
        precision=precision,
    ) as tiles:
        with working("preparing log p(x)", progress):
            weighing = Weighing(tiles, weights, engine)
        num_tiles = len(tiles.rows()) * len(tiles.columns())
        with Progress("log p(x)", num_tiles, progress, unit="tiles") as bar:
            stop = 0
            for state in stream(weighing, bar):
                worst = max(worst, float(state.rounding.max()))
                start, stop = stop, stop + len(state.peak)
                for name, found in streaming.finish(state).items():
                    # Rows of one tensor: many small ones kept between large tiles would pin the
                    # allocator's memory, a third of a MiB a datum.
                    if name not in results:
                        size = tiles.num_data if plate is not None else len(found)
                        results[name] = found.new_empty(size)
                    results[name][start:stop] = found
        if precision in ("bfloat16", "tf32"):
            notes = (_precision_note(tiles, results["value"], precision),)
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
        engine=weighing.engine,
        engine_reason=weighing.reason,
        precision=precision,
        notes=_rounding_note(worst) + notes,
    )


def _precision_note(tiles: Tiles, value: Tensor, precision: str) -> str:
    """What the precision costs: the shift of the first data's mean, with the same draws."""
    single = dataclasses.replace(tiles, precision="float32")
    found = [
        streaming.finish(state)["value"]
        for state in stream(Weighing(single, weights, "eager"), None, COMPARED)
    ]
    reference = torch.cat(found)
    shift = float((value[: len(reference)] - reference).mean())
    return (
        f"{precision} moves the mean of the first {len(reference)} data by {shift:+.2g} nats "
        "against float32 with the same draws."
    )


def _rounding_note(worst: float) -> tuple[str, ...]:
    if worst <= streaming.MAX_ROUNDING:
        return ()
    return (
        f"Rounding of about {worst:.2g} nats in log w limits this result; float64 parameters and "
        "data remove it.",
    )


def stream(
    weighing: Weighing, bar: Progress | None = None, num_data: int | None = None
) -> Iterator[streaming.Moments]:
    """All log-weights in order of data, a good number of data at a time.

    With `num_data`, the tiles that hold the first so many. What is yielded is filled anew
    afterwards.
    """
    tiles = weighing.tiles
    starts = [s for s in tiles.rows() if num_data is None or s < num_data]
    size = min(tiles.data_per_tile, tiles.num_data)
    columns = list(tiles.columns())
    # Rows of tiles together where all of their samples fit, else one row, some columns at a time.
    rows = max(1, min(DATA_AT_ONCE, WEIGHTS_AT_ONCE // tiles.num_samples) // size)
    wide = len(columns) if rows > 1 else max(1, WEIGHTS_AT_ONCE // (size * tiles.samples_per_tile))
    most = min(rows, len(starts)) * size
    state = streaming.init(most, tiles.num_samples, tiles.device)
    nothing = streaming.init(most, tiles.num_samples, tiles.device)
    # Small tensors that stay, made between large ones that come and go, would scatter over the
    # allocator's memory, and the large ones soon find no place between them: these are kept.
    width = min(wide * tiles.samples_per_tile, tiles.num_samples)
    log_weight = torch.empty(most, width, dtype=torch.float64, device=tiles.device)
    ulp = torch.empty_like(log_weight)
    for block in _batches(starts, rows):
        streaming.keep(state, nothing)
        for chunk in _batches(columns, wide):
            filled = 0
            for start in block:
                seen = 0
                for column in chunk:
                    found = _weigh(weighing, tiles.tile(start, column))
                    count, num = found[0].shape
                    place = slice(filled, filled + num), slice(seen, seen + count)
                    log_weight[place], ulp[place] = (each.T for each in found)
                    seen += count
                    if bar is not None:
                        bar.advance()
                filled += num
            part = streaming.part(state, 0, filled)
            rounding = MANY_ULP * ulp[:filled, :seen].amax(1)
            streaming.keep(part, streaming.update(part, log_weight[:filled, :seen], rounding))
        if not bool((part.peak < math.inf).all()):  # NaN or +inf
            _raise_blame(tiles, block)
        yield part


def _batches(values: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    return (values[i : i + size] for i in range(0, len(values), size))


def weights(record: LogWeights) -> tuple[Tensor, Tensor]:
    return record.log_weight, record.ulp


def _weigh(weighing: Weighing, tile: Tile) -> tuple[Tensor, Tensor]:
    """log w `[samples, data]` float64 of one tile, and the size of its terms' last place."""
    log_weight, ulp = (part.reshape(tile.count, -1) for part in weighing(tile))
    return log_weight[:, tile.skip :], ulp[:, tile.skip :]


def _raise_blame(tiles: Tiles, starts: Sequence[int]) -> None:
    """Find the weight that is NaN or infinite, through the handlers with the same draws."""
    for start in starts:
        for column in tiles.columns():
            tile = tiles.tile(start, column)
            record = tiles.score(tile)
            if not bool((record.log_weight < math.inf).all()):
                raise NonFiniteError(_blame(record, tile.start))
    raise NonFiniteError(f"log w of a datum from {starts[0]} on is NaN or infinite")


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
