"""Importance-weighted estimates of log p(x), any Pyro pair, in tiles.

References: Rezende, Mohamed, Wierstra, arXiv:1401.4082 (appendix E); Burda, Grosse,
Salakhutdinov, arXiv:1509.00519.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from inference.errors import NonFiniteError
from inference.evidence import streaming
from inference.evidence.blame import blame, first_wrong
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.kept import Kept
from inference.evidence.proposals import Defensive, Widened, prior_of
from inference.evidence.smoothing import khat_threshold
from inference.evidence.weighing import Weighing
from inference.evidence.weighted import WeightedEstimate
from inference.progress import Progress, working
from inference.record import LogWeights
from inference.tiles import Tile, Tiles

MANY_ULP = 64  # how far log w may be off by rounding alone, in units of its terms' last place
COMPARED = 100  # data whose float32 values tell what another precision costs
# Weights, and data, that join the state together: that and the fit of the tail take many small
# operations.
WEIGHTS_AT_ONCE = 2**18
DATA_AT_ONCE = 64


class Importance(Estimator):
    """log p(x) ~ log 1/K sum_k p(x, z_k) / q(z_k|x),   z_k ~ q(z|x).

    Low in expectation, by about var(w)/(2K); unbiased on the weight scale. Its error is
    s^2 = 1/ESS - 1/K with ESS = (sum w)^2 / sum w^2.

    Flagged are data whose weights have a heavy tail: their k-hat is above its threshold, or unknown
    for want of samples. Discrete latents with few values have few distinct weights and no tail;
    there k-hat is unknown, and flagged are data with ESS < K/10. A value that the guide gives too
    little is so seen once it is drawn; one that is never drawn is not seen.

    Args:
        num_samples: K.
        proposal: what q is. `guide`; `prior`: p(z); `defensive`: the mixture a q + (1 - a) p(z)
            with a = `guide_share`, whose weights are bounded; `widened`: the guide, its Gaussians
            `width` times as wide.
    """

    name: Literal["importance"] = "importance"
    num_samples: PositiveInt = 5000
    proposal: Literal["guide", "prior", "defensive", "widened"] = "guide"
    guide_share: float = Field(default=0.5, gt=0, lt=1)
    width: float = Field(default=1.5, gt=0, allow_inf_nan=False)

    def run(self, request: Request) -> Estimate:
        started = time.perf_counter()
        results: dict[str, Tensor] = {}
        worst = 0.0
        notes: tuple[str, ...] = ()
        with request.tiled(self.num_samples, guide=self._guide(request)) as tiles:
            if self.proposal == "defensive":
                scorer = Defensive(tiles.scorer, self.guide_share, tiles.arguments)
                tiles = dataclasses.replace(tiles, scorer=scorer)  # type: ignore[arg-type]
            with working("preparing log p(x)", request.progress):
                weighing = Weighing(tiles, weights, request.engine)
            num_tiles = len(tiles.rows()) * len(tiles.columns())
            with Progress("log p(x)", num_tiles, request.progress, unit="tiles") as bar:
                stop = 0
                for block in finished(weighing, bar, request.kept):
                    worst = max(worst, float(block.pop("rounding").max()))
                    start, stop = stop, stop + len(block["value"])
                    for name, found in block.items():
                        # Rows of one tensor: many small ones kept between large tiles would pin
                        # the allocator's memory, a third of a MiB a datum.
                        if name not in results:
                            size = tiles.num_data if request.plate is not None else len(found)
                            results[name] = found.new_empty(size)
                        results[name][start:stop] = found
            if request.precision in ("bfloat16", "tf32"):
                notes = (_precision_note(tiles, results["value"], request.precision),)
        held = {name: tensor.cpu() for name, tensor in results.items()}
        return WeightedEstimate(
            **held,  # type: ignore[arg-type]
            quantity=request.quantity,
            estimator=self.name,
            num_samples=self.num_samples,
            bias_direction="low in expectation",
            khat_threshold=khat_threshold(self.num_samples),
            proposal=self._words(),
            tile=(tiles.data_per_tile, tiles.samples_per_tile),
            seed=request.seed,
            seconds=time.perf_counter() - started,
            engine=weighing.engine,
            engine_reason=weighing.reason,
            precision=request.precision,
            notes=_rounding_note(worst) + notes,
        )

    def _words(self) -> str:
        """Where draws come from."""
        return {
            "guide": "the guide",
            "prior": "the prior",
            "defensive": f"guide ({self.guide_share:.0%}) and prior",
            "widened": f"the guide, {self.width:g} times as wide",
        }[self.proposal]

    def _guide(self, request: Request) -> Callable | None:
        if self.proposal == "prior":
            return prior_of(request.model)
        return Widened(self.width)(request.guide) if self.proposal == "widened" else None


def _precision_note(tiles: Tiles, value: Tensor, precision: str) -> str:
    """What the precision costs: the shift of the first data's mean, with the same draws."""
    single = dataclasses.replace(tiles, precision="float32")
    found = [
        streaming.finish(state)["value"]
        for _, state in stream(Weighing(single, weights, "eager"), None, COMPARED)
        if state is not None
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


def finished(weighing: Weighing, bar: Progress, kept: Kept) -> Iterator[dict[str, Tensor]]:
    """What `streaming.judged` says of all data, and their rounding, a good number at a time."""
    device = weighing.tiles.device
    for first, state in stream(weighing, bar, done=lambda first: kept.has(f"weighed/{first}")):
        if state is None:
            yield kept.get_named(f"weighed/{first}", device)
        else:
            found = {**streaming.judged(state), "rounding": state.rounding}
            kept.put_named(f"weighed/{first}", found)
            yield found


def stream(
    weighing: Weighing,
    bar: Progress | None = None,
    num_data: int | None = None,
    done: Callable[[int], bool] = lambda first: False,
    gather: Any = streaming,
) -> Iterator[tuple[int, Any | None]]:
    """The first datum's index and all log-weights, in order of data, a good number at a time.

    With `num_data`, the tiles that hold the first so many; None in the place of what is `done`.
    `gather` has `init` and `update` as `streaming` has; its states have their `peak`. What is
    yielded is filled anew afterwards.
    """
    tiles = weighing.tiles
    starts = [s for s in tiles.rows() if num_data is None or s < num_data]
    size = min(tiles.data_per_tile, tiles.num_data)
    columns = list(tiles.columns())
    # Rows of tiles together where all of their samples fit, else one row, some columns at a time.
    rows = max(1, min(DATA_AT_ONCE, WEIGHTS_AT_ONCE // tiles.num_samples) // size)
    wide = len(columns) if rows > 1 else max(1, WEIGHTS_AT_ONCE // (size * tiles.samples_per_tile))
    most = min(rows, len(starts)) * size
    state = gather.init(most, tiles.num_samples, tiles.device)
    nothing = gather.init(most, tiles.num_samples, tiles.device)
    # Small tensors that stay, made between large ones that come and go, would scatter over the
    # allocator's memory, and the large ones soon find no place between them: these are kept.
    width = min(wide * tiles.samples_per_tile, tiles.num_samples)
    log_weight = torch.empty(most, width, dtype=torch.float64, device=tiles.device)
    ulp = torch.empty_like(log_weight)
    for block in _batches(starts, rows):
        if done(block[0]):
            if bar is not None:
                bar.advance(len(block) * len(columns))
            yield block[0], None
            continue
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
            streaming.keep(part, gather.update(part, log_weight[:filled, :seen], rounding))
        if not bool((part.peak < math.inf).all()):  # NaN or +inf
            _raise_blame(tiles, block)
        yield block[0], part


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
            where = first_wrong(record.log_weight)
            if where is not None:
                raise NonFiniteError(blame(record, where, tile.start))
    raise NonFiniteError(f"log w of a datum from {starts[0]} on is NaN or infinite")
