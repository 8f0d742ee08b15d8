"""log p(x) as an integral over one or two latents, on a grid that is refined until it stands still.

The trapezoidal rule converges faster than any power of the spacing where the integrand is smooth
and dies out (Trefethen and Weideman 2014, SIAM Review 56).
"""

from __future__ import annotations

import math
import time
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from inference.errors import PairError
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.space import Data, GaussianStart, LatentSpace
from inference.evidence.tempering import seeded
from inference.progress import Progress
from inference.tiles import even_share, numbers_per_tile

MOST_POINTS = 2**20  # of one datum
MOST_AT_FIRST = 2**15
PRIOR_RANGE = 5.0  # of the first grid, in the prior's standard deviations
HEIGHTS_AT_ONCE = 2**22  # data x points
RANGE, SPACING = 8.0, 0.5  # of the first grid, in the guide's standard deviations


class Box(NamedTuple):
    """Where a grid lies, `[data, D]`: its ends, and the integrand's standard deviation."""

    low: Tensor
    high: Tensor
    deviation: Tensor

    def of(self, part: slice) -> Box:
        return Box(*(tensor[part] for tensor in self))


class Found(NamedTuple):
    """What a grid tells, `[data]`."""

    value: Tensor
    rounding: Tensor  # nats by which the integrand may be off
    wide_enough: Tensor  # does nothing of weight lie at the grid's edge?
    box: Box  # for the next grid


class Quadrature(Estimator):
    """log p(x) = log int p(x, z(u)) |dz/du| du for one or two numbers u, by the trapezoidal rule.

    Points lie around the draws of the guide and, where that takes no more than `MOST_AT_FIRST`
    points, of the prior: a mode that the guide misses is then seen. The grid grows where there is
    weight at its edge, shrinks to where there is any, and narrows until two refinements in a row
    move the result by less than `tolerance` nats (or less than the arithmetic can tell: float32 of
    many pixels). The error is the last change, or the rounding where that is larger: no estimate of
    chance. A peak between the points of the first grid, or beyond them, is not seen.
    Raises: `PairError` for more than two numbers a datum, for discrete latents, and where the grid
        never stands still.
    """

    name: Literal["quadrature"] = "quadrature"
    tolerance: float = Field(default=1e-7, gt=0, allow_inf_nan=False)

    def run(self, request: Request) -> Estimate:
        request.check_precision(self.name)
        started = time.perf_counter()
        with request.tiled(100, whole_rows=True) as tiles:
            space = GaussianStart(tiles.scorer, tiles.arguments)
            if space.num_dims > 2:
                raise PairError(
                    f"quadrature: a datum has {space.num_dims} latent numbers, and a grid is for "
                    "one or two; use estimator='ais'"
                )
            parts, most = [], 0
            rows = tiles.rows()
            with Progress("quadrature", len(rows), request.progress, unit="tiles") as bar:
                for start in rows:
                    tile = tiles.tile(start)
                    data = tiles.rows_of(tile)
                    tiles.check(data)
                    seeded(tiles, tile, "quadrature")
                    held = request.kept.get(f"weighed/{start}", tiles.device)
                    if held is None:
                        *data, loc, scale = space.prepared(data)  # type: ignore[assignment]
                        box = _first(space.inner, tuple(data), loc.double(), scale.double())
                        value, change, points = self._refined(space.inner, tuple(data), box)
                        held = [value, change, torch.tensor([points])]
                        request.kept.put(f"weighed/{start}", held)
                    parts.append(held[:2])
                    most = max(most, int(held[2]))
                    bar.advance()
            value, change = (torch.cat(p).cpu() for p in zip(*parts, strict=True))
        return Estimate(
            value=value,
            std_error=change,
            elbo=torch.full_like(value, math.nan),
            quantity=request.quantity,
            estimator=self.name,
            num_samples=most,
            bias_direction="exact up to the grid's last change",
            tile=(tiles.data_per_tile, tiles.samples_per_tile),
            seed=request.seed,
            seconds=time.perf_counter() - started,
            precision=request.precision,
        )

    def _refined(self, space: LatentSpace, data: Data, box: Box) -> tuple[Tensor, Tensor, int]:
        """The integral and its last change, `[data]`, and the points of the last grid."""
        spacing, before, calm = SPACING, None, 0
        change = torch.full_like(box.low[:, 0], math.inf)
        while True:
            sides = (box.high - box.low) / (spacing * box.deviation)
            counts = [max(5, int(c)) for c in sides.amax(0).ceil() + 1]
            if math.prod(counts) > MOST_POINTS:
                worst = int(change.argmax())
                raise PairError(
                    f"quadrature: an integral still moves by {float(change[worst]):.2g} nats "
                    f"with {MOST_POINTS:,} points; use estimator='ais'"
                )
            num_data = len(box.low)
            if math.prod(counts) * num_data > HEIGHTS_AT_ONCE and self._can_split(space, num_data):
                halves = slice(None, num_data // 2), slice(num_data // 2, None)
                found = [
                    self._refined(space, tuple(a[half] for a in data), box.of(half))
                    for half in halves
                ]
                value, change = (torch.cat(p) for p in zip(*(f[:2] for f in found), strict=True))
                return value, change, max(f[2] for f in found)
            grid = self._on_grid(space, data, counts, box)
            if before is not None:
                still = grid.value == before  # -inf, too
                change = torch.where(still, 0.0, (grid.value - before).abs())
                close = change <= grid.rounding.clamp_min(self.tolerance)
                calm = calm + 1 if bool((close & grid.wide_enough).all()) else 0
                if calm == 2:
                    beyond = torch.where(grid.rounding > self.tolerance, grid.rounding, 0.0)
                    return grid.value, torch.maximum(change, beyond), math.prod(counts)
            before, box = grid.value, grid.box
            if bool(grid.wide_enough.all()):
                spacing = 0.7 * spacing

    @staticmethod
    def _can_split(space: LatentSpace, num_data: int) -> bool:
        return num_data > 1 and not space.scorer.pair.whole

    def _on_grid(self, space: LatentSpace, data: Data, counts: list[int], box: Box) -> Found:
        num_data, num_dims = box.low.shape
        device = box.low.device
        sides = [torch.linspace(0, 1, c, dtype=torch.float64, device=device) for c in counts]
        grid = torch.cartesian_prod(*sides).reshape(-1, num_dims)  # [M, D]
        width = box.high - box.low
        dtype = next(iter(space.points.places.values())).dtype
        most = max(1, numbers_per_tile(device) // (space.scorer.pair.event_numel * num_data))
        log_f, ulps = [], []
        for part in grid.split(even_share(len(grid), most)):
            u = (box.low + width * part.unsqueeze(1)).to(dtype)
            record, volume = space.record(u, data)
            log_p: Tensor = sum(record.log_p.values())  # type: ignore[assignment]
            log_f.append(log_p.reshape(len(u), -1) + volume)
            ulps.append(record.ulp.reshape(len(u), -1))
        # What is not a number counts for nothing, as it does where chains meet it.
        heights = torch.cat(log_f).nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        cells = width / (torch.tensor(counts, device=device) - 1)
        total = heights.logsumexp(0)
        share = torch.where(total > -math.inf, heights - total, -math.inf).exp()  # [M, data]
        mean = share.T @ grid
        deviation = width * (share.T @ grid.square() - mean.square()).clamp_min(0).sqrt()
        rounding = (share * torch.cat(ulps).nan_to_num(0, 0, 0)).sum(0)
        low, high = box.low.clone(), box.high.clone()
        wide_enough = torch.ones_like(total, dtype=torch.bool)
        for d in range(num_dims):
            slabs = share.reshape(*counts, num_data).movedim(d, 0)
            slabs = slabs.reshape(counts[d], -1, num_data).sum(1)
            # Beyond an edge where slabs weigh m there may be as many again, each as heavy.
            matters = slabs * counts[d] > 0.1 * self.tolerance  # [counts[d], data]
            first = matters.double().argmax(0)
            last = counts[d] - 1 - matters.flip(0).double().argmax(0)
            matters_at_all = matters.any(0)
            inward = torch.stack([box.low[:, d] + (first - 1) * cells[:, d],
                                  box.low[:, d] + (last + 1) * cells[:, d]])  # fmt: skip
            outward = box.low[:, d] - width[:, d] / 2, box.high[:, d] + width[:, d] / 2
            low[:, d] = torch.where(matters[0], outward[0], inward[0])
            high[:, d] = torch.where(matters[-1], outward[1], inward[1])
            low[:, d] = torch.where(matters_at_all, low[:, d], box.low[:, d])
            high[:, d] = torch.where(matters_at_all, high[:, d], box.high[:, d])
            wide_enough &= ~(matters[0] | matters[-1])
        # A peak between points is not lost: the next grid is no finer than a quarter of a cell.
        deviation = torch.maximum(deviation, 0.25 * cells)
        return Found(total + cells.log().sum(-1), rounding, wide_enough, Box(low, high, deviation))


def _first(space: LatentSpace, data: Data, loc: Tensor, scale: Tensor) -> Box:
    """Around the guide's draws, and around the prior's if those are not too far for its spacing."""
    narrow = Box(loc - RANGE * scale, loc + RANGE * scale, scale)
    drawn = space.draw(data, 100).double()
    center, reach = drawn.mean(0), PRIOR_RANGE * drawn.std(0)
    wide = Box(
        torch.minimum(narrow.low, center - reach), torch.maximum(narrow.high, center + reach), scale
    )
    counts = ((wide.high - wide.low) / (SPACING * scale)).amax(0).ceil() + 1
    return wide if bool(counts.prod() <= MOST_AT_FIRST) else narrow
