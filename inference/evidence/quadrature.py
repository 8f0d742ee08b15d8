"""log p(x) as an integral over one or two latents, on a grid that is refined until it stands still.

The trapezoidal rule converges faster than any power of the spacing where the integrand is smooth
and dies out (Trefethen and Weideman 2014, SIAM Review 56).
"""

from __future__ import annotations

import math
import time
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from inference.errors import PairError
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.space import Data, GaussianStart
from inference.progress import Progress
from inference.tiles import even_share, numbers_per_tile

MOST_POINTS = 2**20  # of one datum
RANGE, SPACING = 8.0, 0.5  # of the first grid, in the guide's standard deviations


class Quadrature(Estimator):
    """log p(x) = log int p(x, z(u)) |dz/du| du for one or two numbers u, by the trapezoidal rule.

    Points lie around the guide's draws, and the grid grows and narrows until two refinements in a
    row move the result by less than `tolerance` nats. The error is the last one's, no estimate of
    chance.
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
                    data = space.prepared(tiles.rows_of(tile))
                    *found, points = self._refined(space, data)
                    parts.append(found)
                    most = max(most, points)
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

    def _refined(self, space: GaussianStart, data: Data) -> tuple[Tensor, Tensor, int]:
        """The integral and its last change, `[data]`, and the points of the last grid."""
        *_, loc, scale = data
        spacing, before, calm = SPACING, None, 0
        change = torch.full_like(loc[..., 0], math.inf, dtype=torch.float64)
        while True:
            side = torch.arange(-RANGE, RANGE + spacing / 2, spacing, dtype=torch.float64)
            grid = torch.cartesian_prod(*[side] * space.num_dims).reshape(-1, space.num_dims)
            if len(grid) > MOST_POINTS:
                worst = int(change.argmax())
                raise PairError(
                    f"quadrature: an integral still moves by {float(change[worst]):.2g} nats "
                    f"with {MOST_POINTS:,} points; use estimator='ais'"
                )
            value, loc, scale = self._on_grid(space, data, grid.to(loc), spacing, loc, scale)
            if before is not None:
                change = (value - before).abs()
                calm = calm + 1 if bool((change <= self.tolerance).all()) else 0
                if calm == 2:
                    return value, change, len(grid)
            before, spacing = value, 0.7 * spacing

    def _on_grid(
        self,
        space: GaussianStart,
        data: Data,
        grid: Tensor,
        spacing: float,
        loc: Tensor,
        scale: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The integral on a grid, and the mean and standard deviation of what is integrated."""
        numbers = space.inner.scorer.pair.event_numel * len(loc)
        most = max(1, numbers_per_tile(loc.device) // numbers)
        log_f, points = [], []
        for part in grid.split(even_share(len(grid), most)):
            u = loc + scale * part.unsqueeze(1)
            log_f.append(space.ends(u, *data).target)
            points.append(u.double())
        heights, u = torch.cat(log_f), torch.cat(points)
        cell = space.num_dims * math.log(spacing) + scale.double().log().sum(-1)
        share = heights.softmax(0).unsqueeze(-1)
        mean = (share * u).sum(0)
        deviation = (share * (u - mean).square()).sum(0).sqrt()
        # A peak between points is not lost: the next grid is no finer than a quarter of a cell.
        deviation = deviation.clamp_min(0.25 * spacing * scale.double())
        return heights.logsumexp(0) + cell, mean.to(loc), deviation.to(scale)
