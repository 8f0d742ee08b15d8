"""log p(x) of discrete latents, by all their values."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from inference.errors import NonFiniteError, PairError
from inference.evidence.blame import blame, first_wrong
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.finite import check_listed, check_own, ends_at_a_count, is_finite, values_of
from inference.evidence.points import Points
from inference.evidence.proposals import points_of, prior_of
from inference.evidence.unmasked import Unmasked
from inference.marks import Unmarked
from inference.particles import Given
from inference.progress import Progress
from inference.record import LogWeights
from inference.supports import in_a_line, plain_fn
from inference.tiles import Tiles, even_share, numbers_per_tile


class Enumerate(Estimator):
    """log p(x) = log sum_z p(x, z) over all values of discrete latents; exact.

    Every number of a datum's latents takes every value of its support: at most `most_values`
    combinations. Where supports end at a total_count of each datum's own, all go to the largest:
    what lies beyond a datum's own has no probability. The guide is not used.
    Raises: `PairError` for latents without a finite support, or with one that depends on other
        latents, and for more combinations; `NonFiniteError` where p(x, z) is no number.
    """

    name: Literal["enumerate"] = "enumerate"
    most_values: PositiveInt = 2**16

    def run(self, request: Request) -> Estimate:
        request.check_precision(self.name)
        started = time.perf_counter()
        model = Unmasked()(Unmarked()(request.model))
        with request.tiled(1, whole_rows=True, model=model, guide=prior_of(model)) as tiles:
            share = max(1, numbers_per_tile(tiles.device) // tiles.pair.event_numel)
            values, points, counts = self._values(tiles, share)
            found = []
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
                        check_listed(record, counts)
                        parts.append(_log_p(record, start).logsumexp(0))
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

    def _values(self, tiles: Tiles, most: int) -> tuple[Tensor, Points, dict[str, int]]:
        """All combinations `[M, D]`, how one lies in the sites, and how many values each site has.

        `most`: data that are looked at together.
        """
        pair, scorer = tiles.pair, tiles.scorer
        few = tiles.arguments if pair.whole else tuple(a[: pair.few] for a in tiles.arguments)
        record = scorer(few, 2)
        if not record.latents:
            raise PairError(
                "enumerate: the model has no latents, so there is nothing to sum over; use "
                "estimator='importance', whose weights are then all equal and exact"
            )
        points = points_of(record, pair, folded=scorer.folded)
        for name in record.latents:
            if not is_finite(record.model_fn[name]):
                _refuse(name, record, points.num_dims)
        supports = {name: values_of(record, name) for name in record.latents}
        if any(ends_at_a_count(record.model_fn[name]) for name in supports):
            size = tiles.num_data if pair.whole else max(1, most // 2)
            for start in range(0, tiles.num_data, size):
                record = scorer(tuple(a[start : start + size] for a in tiles.arguments), 2)
                for name in supports:
                    check_own(name, record, points)
                    supports[name] = max(supports[name], values_of(record, name), key=len)
        units: list[Tensor] = []  # of each number (or vector) of a datum, its values [S, e]
        for name, support in supports.items():
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
        values = torch.cat([unit[index[:, i]] for i, unit in enumerate(units)], 1)
        return values, points, {name: len(support) for name, support in supports.items()}


def _log_p(record: LogWeights, first: int) -> Tensor:
    """log p(x, z) `[values, data]`; 0 is the density of what the latents never are.

    Raises: `NonFiniteError` for one that is NaN or infinite.
    """
    prior: Tensor = sum(record.log_p[name] for name in record.latents)  # type: ignore[assignment]
    total: Tensor = sum(record.log_p.values())  # type: ignore[assignment]
    log_p = torch.where(prior == -math.inf, -math.inf, total).reshape(len(total), -1)
    where = first_wrong(log_p)
    if where is not None:
        raise NonFiniteError(blame(replace(record, log_q={}), where, first))
    return log_p


def _refuse(name: str, record: LogWeights, num_dims: int) -> None:
    """Raises: `PairError` naming the site, and what fits a pair of `num_dims` numbers a datum."""
    discrete = [n for n in record.latents if record.model_fn[n].support.is_discrete]
    others = ""
    if not discrete:
        others = ", or 'quadrature' for one or two numbers" if num_dims <= 2 else ", or 'ais'"
    elif all(is_finite(record.model_fn[n]) for n in discrete):
        others = (
            f"; or leave '{discrete[0]}' out of the guide and mark it in the model "
            "(infer={'enumerate': 'parallel'}), which sums over it there"
        )
    fn = plain_fn(record.model_fn[name])
    raise PairError(
        f"enumerate: site '{name}' draws from {type(fn).__name__} on {in_a_line(fn.support)}, "
        f"which is no finite set; use estimator='importance'{others}"
    )
