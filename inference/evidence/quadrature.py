"""log p(x) as an integral over one or two latents, on a grid that is refined until it stands still.

The trapezoidal rule converges faster than any power of the spacing where the integrand is smooth
and dies out (Trefethen and Weideman 2014, SIAM Review 56).
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import max_pool1d, max_pool2d

from inference.errors import NonFiniteError, PairError
from inference.evidence.blame import blame
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


class Wrong(NamedTuple):
    """A point `[1, data, D]` where the integrand of one of the data is no number."""

    u: Tensor
    where: int


class Found(NamedTuple):
    """What a grid tells, `[data]`."""

    value: Tensor
    rounding: Tensor  # nats by which the integrand may be off
    wide_enough: Tensor  # does nothing of weight lie at the grid's edge?
    box: Box  # for the next grid
    wrong: Wrong | None  # a point that counts and has no number


class Quadrature(Estimator):
    """log p(x) = log int p(x, z(u)) |dz/du| du for one or two numbers u, by the trapezoidal rule.

    Points lie around the draws of the guide and, where that takes no more than `MOST_AT_FIRST`
    points, of the prior: a mode that the guide misses is then seen. The grid grows where there is
    weight at its edge, shrinks to where there is any, and narrows until two refinements in a row
    move the result by less than `tolerance` nats (or less than the arithmetic can tell: float32 of
    many pixels). The error is the last change, or the rounding where that is larger: no estimate of
    chance. A peak between the points of the first grid, or beyond them, is not seen.
    Raises: `PairError` for more than two numbers a datum, for discrete latents, and where the grid
        never stands still; `NonFiniteError` where p(x, z) is no number beside where it counts.
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
                        given = space.prepared(data)
                        _check_laid(space, given, start)
                        *known, loc, scale = given
                        box = _first(space.inner, tuple(known), loc.double(), scale.double())
                        value, change, points = self._refined(space.inner, tuple(known), box, start)
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

    def _refined(
        self, space: LatentSpace, data: Data, box: Box, first: int
    ) -> tuple[Tensor, Tensor, int]:
        """The integral and its last change, `[data]`, and the points of the last grid.

        `first`: the index of the first datum.
        """
        spacing, before, calm = SPACING, None, 0
        grid: Found | None = None
        change = torch.full_like(box.low[:, 0], math.inf)
        while True:
            sides = (box.high - box.low) / (spacing * box.deviation)
            _check_sides(sides, first)
            counts = [max(5, int(c)) for c in sides.amax(0).ceil() + 1]
            if math.prod(counts) > MOST_POINTS:
                if grid is not None:
                    _check_numbers(grid, space, data, first)
                worst = int(change.argmax())
                raise PairError(
                    f"quadrature: an integral still moves by {float(change[worst]):.2g} nats "
                    f"with {MOST_POINTS:,} points; use estimator='ais'"
                )
            num_data = len(box.low)
            if math.prod(counts) * num_data > HEIGHTS_AT_ONCE and self._can_split(space, num_data):
                half = num_data // 2
                found = [
                    self._refined(space, tuple(a[part] for a in data), box.of(part), first + skip)
                    for part, skip in ((slice(None, half), 0), (slice(half, None), half))
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
                    _check_numbers(grid, space, data, first)
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
        # What is no number counts for nothing, as it does where chains meet it.
        found = torch.cat(log_f)
        broken = ~(found < math.inf)
        heights = torch.where(broken, -math.inf, found)
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
        box_after = Box(low, high, deviation)
        value = total + cells.log().sum(-1)
        wrong = None
        place = self._beside_weight(broken, share, counts) if bool(broken.any()) else None
        if place is not None:
            point, where = place
            wrong = Wrong((box.low + width * grid[point]).unsqueeze(0).to(dtype), where)
        return Found(value, rounding, wide_enough, box_after, wrong)

    def _beside_weight(
        self, broken: Tensor, share: Tensor, counts: list[int]
    ) -> tuple[int, int] | None:
        """The first point and datum where a height is no number beside one that has weight.

        Far from all weight, where numbers overflow, that says nothing; where none has weight, it
        says all. `broken`, `share`: `[M, data]`.
        """
        num_points, num_data = share.shape
        weighty = (share * num_points > 0.1 * self.tolerance).double()
        pool = max_pool1d if len(counts) == 1 else max_pool2d
        near = pool(weighty.T.reshape(num_data, 1, *counts), 3, stride=1, padding=1)
        alone = share.sum(0) == 0
        wrong = broken & ((near.reshape(num_data, num_points).T > 0) | alone)
        if not bool(wrong.any()):
            return None
        where = int(wrong.any(0).nonzero()[0])
        return int(wrong[:, where].nonzero()[0]), where


def _check_laid(space: GaussianStart, data: Data, first: int) -> None:
    """Raises: `NonFiniteError` where the guide's draws, which tell where a grid lies, are none."""
    loc, scale = data[-2:]
    unknown = ~(loc.isfinite() & scale.isfinite()).all(-1)
    if bool(unknown.any()):
        where = int(unknown.nonzero()[0])
        record = space.suspect(loc.unsqueeze(0), data, where)
        raise NonFiniteError(blame(record, where, first))


def _check_sides(sides: Tensor, first: int) -> None:
    """Raises: `PairError` where a grid would have no end."""
    endless = ~sides.isfinite().all(-1)
    if bool(endless.any()):
        raise PairError(
            f"quadrature: no grid can be laid for datum {first + int(endless.nonzero()[0])}: its "
            "integrand does not die out, or the guide's draws for it are all the same; use "
            "estimator='ais'"
        )


def _check_numbers(found: Found, space: LatentSpace, data: Data, first: int) -> None:
    """Raises: `NonFiniteError` where the integrand is no number beside points that have weight."""
    if found.wrong is not None:
        record, _ = space.record(found.wrong.u, data)
        record = replace(record, log_q={})  # that of the prior, which is part of log p
        raise NonFiniteError(blame(record, found.wrong.where, first))


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
