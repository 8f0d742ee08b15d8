"""log p(x) of discrete latents, by all their values."""

from __future__ import annotations

import math
import time
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from inference.errors import PairError
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.points import Points
from inference.evidence.proposals import points_of, prior_of
from inference.marks import Unmarked
from inference.particles import Given, Scorer
from inference.progress import Progress
from inference.record import LogWeights
from inference.supports import in_a_line, plain_fn
from inference.tiles import even_share, numbers_per_tile


class Enumerate(Estimator):
    """log p(x) = log sum_z p(x, z) over all values of discrete latents; exact.

    Every number of a datum's latents takes every value of its support: at most `most_values`
    combinations. The guide is not used.
    Raises: `PairError` for latents without a finite support, and for more combinations.
    """

    name: Literal["enumerate"] = "enumerate"
    most_values: PositiveInt = 2**16

    def run(self, request: Request) -> Estimate:
        request.check_precision(self.name)
        started = time.perf_counter()
        guide = prior_of(Unmarked()(request.model))
        with request.tiled(
            1, whole_rows=True, model=Unmarked()(request.model), guide=guide
        ) as tiles:
            few = tiles.arguments
            if not tiles.pair.whole:
                few = tuple(a[: tiles.pair.few] for a in few)
            values, points = self._values(tiles.scorer, few)
            found = []
            share = max(1, numbers_per_tile(tiles.device) // tiles.pair.event_numel)
            size = even_share(tiles.num_data, max(1, share // len(values)))
            if tiles.pair.whole:
                size = tiles.num_data
            at_once = even_share(len(values), max(1, share // size))
            starts = range(0, tiles.num_data, size)
            with Progress("enumerate", len(starts), request.progress, unit="tiles") as bar:
                for start in starts:
                    data = tuple(a[start : start + size] for a in tiles.arguments)
                    tiles.check(data)
                    parts = []
                    for part in values.split(at_once):
                        num = 1 if tiles.pair.data_dim is None else len(data[0])
                        u = part.unsqueeze(1).expand(-1, num, -1)
                        given = Given(points.split(u))(tiles.pair.guide)
                        record = tiles.scorer.with_guide(given)(data, len(part))
                        log_p: Tensor = sum(record.log_p.values())  # type: ignore[assignment]
                        parts.append(log_p.reshape(len(part), -1).logsumexp(0))
                    found.append(torch.stack(parts).logsumexp(0))
                    bar.advance()
            value = torch.cat(found).cpu()
        return Estimate(
            value=value,
            std_error=torch.zeros_like(value),
            elbo=torch.full_like(value, math.nan),
            quantity=request.quantity,
            estimator=self.name,
            num_samples=len(values),
            bias_direction="exact",
            tile=(size, at_once),
            seed=request.seed,
            seconds=time.perf_counter() - started,
            precision=request.precision,
        )

    def _values(self, scorer: Scorer, few: tuple[Tensor, ...]) -> tuple[Tensor, Points]:
        """All combinations `[M, D]`, and how a combination lies in the sites."""
        record = scorer(few, 2)
        if not record.latents:
            raise PairError(
                "enumerate: the model has no latents, so there is nothing to sum over; use "
                "estimator='importance', whose weights are then all equal and exact"
            )
        points = points_of(record, scorer.pair, folded=scorer.folded)
        units: list[Tensor] = []  # of each number (or vector) of a datum, its values [S, e]
        for name in record.latents:
            if not _is_finite(record.model_fn[name]):
                _refuse(name, record, points.num_dims)
            support = _support(record.model_fn[name])
            place = points.places[name].part
            units += [support] * ((place.stop - place.start) // support.shape[1])
        count = math.prod(len(unit) for unit in units)
        if count > self.most_values:
            raise PairError(
                f"enumerate: the latents of a datum take {count:,} values together, more than "
                f"{self.most_values:,}; use estimator='importance', or raise most_values"
            )
        index = torch.cartesian_prod(*(torch.arange(len(unit)) for unit in units))
        index = index.reshape(count, len(units)).to(few[0].device)
        return torch.cat([unit[index[:, i]] for i, unit in enumerate(units)], 1), points


def _is_finite(fn) -> bool:
    return bool(getattr(plain_fn(fn), "has_enumerate_support", False))


def _refuse(name: str, record: LogWeights, num_dims: int) -> None:
    """Raises: `PairError` naming the site, and what fits a pair of `num_dims` numbers a datum."""
    discrete = [n for n in record.latents if record.model_fn[n].support.is_discrete]
    others = ""
    if not discrete:
        others = ", or 'quadrature' for one or two numbers" if num_dims <= 2 else ", or 'ais'"
    elif all(_is_finite(record.model_fn[n]) for n in discrete):
        others = (
            f"; or leave '{discrete[0]}' out of the guide and mark it in the model "
            "(infer={'enumerate': 'parallel'}), which sums over it there"
        )
    fn = plain_fn(record.model_fn[name])
    raise PairError(
        f"enumerate: site '{name}' draws from {type(fn).__name__} on {in_a_line(fn.support)}, "
        f"which is no finite set; use estimator='importance'{others}"
    )


def _support(fn) -> Tensor:
    """All values of one number, or of one vector, of a site: `[S, e]`."""
    values = plain_fn(fn).enumerate_support(expand=False)
    return values.reshape(len(values), -1)
