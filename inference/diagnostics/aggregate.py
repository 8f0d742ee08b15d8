"""The aggregate posterior q(z) = 1/N sum_n q(z|x_n) of the data at hand, exactly: no subsample.

It is a mixture of N guides, so each draw is scored under every datum's guide: N^2 K densities.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference.diagnostics.units import follows_other_draws, marginals
from inference.errors import NonFiniteError, PairError, RequestError
from inference.evidence.points import Points
from inference.evidence.proposals import points_of
from inference.pair import Pair
from inference.particles import Given, Scorer
from inference.progress import Progress
from inference.record import LogWeights
from inference.tiles import Tiles, numbers_per_tile

DRAWS_AT_ONCE = 1024  # the guide's network runs once for so many draws
LOOKED_AT = 64  # data that tell whether a density is known at the draws of others


class Others(NamedTuple):
    """log sum_{m != n} q(z_nk|x_m) of draws of datum n: `joint [K, N]`, `units [K, N, D]`."""

    joint: Tensor
    units: Tensor | None


class Aggregate:
    """Scores draws from q(z|x_n) under the guide of every other datum.

    Raises: `RequestError` for one datum; `PairError` where the guide's density is known at its own
        draws only, or q(z|x) is no density of the model's latents alone.
    """

    def __init__(self, tiles: Tiles):
        self.tiles, self.pair = tiles, tiles.pair
        _check(tiles)
        self.scorer = guide_alone(tiles.scorer)
        rows = torch.linspace(0, tiles.num_data - 1, min(tiles.num_data, LOOKED_AT)).long()
        self.few = tuple(a[rows.to(a.device)] for a in tiles.arguments)
        if self.pair.whole:
            self.few = tiles.arguments
        self.record = tiles.scorer(self.few, 2)
        if self.record.auxiliary:
            raise PairError(
                f"auxiliary site '{next(iter(self.record.auxiliary))}' of the guide: q(z|x) is "
                "known at its own draws only, and the aggregate posterior scores each datum's "
                "draws under the guides of all others; use active_units, which scores nothing"
            )
        self.points: Points = points_of(self.record, self.pair, folded=tiles.scorer.folded)
        self._check_density()

    def marginals(self, name: str) -> bool:
        """Is q(z_i|x) known for each number of a site, whatever the other sites draw?"""
        fn = marginals(self.record.guide_fn[name])
        return fn is not None and not follows_other_draws(fn, name, self.record, self.points)

    def log_q(self, u: Tensor, data: tuple[Tensor, ...]) -> LogWeights:
        """The guide of `data` scored at points `[draws, data, D]`."""
        given = Given(self.points.split(u))(self.pair.guide)
        return self.scorer.with_guide(given)(data, len(u))

    def blocks(self, num_draws: int) -> tuple[int, int]:
        """Data and draws at once: the largest array of a block has a tile's size."""
        most = numbers_per_tile(self.tiles.device) // self.points.num_dims
        if self.pair.whole:
            return self.tiles.num_data, max(1, most // self.tiles.num_data)
        draws = min(num_draws, DRAWS_AT_ONCE)
        return min(self.tiles.num_data, max(1, most // draws)), draws

    def others(
        self, u: Tensor, *, units: Collection[str] = (), bar: Progress | None = None
    ) -> Others:
        """Draws `u [K, N, D]` of each datum under all others' guides.

        `units`: sites whose numbers are scored by themselves, too.
        Raises: `NonFiniteError` where a density is NaN.
        """
        num_data = self.tiles.num_data
        flat = u.flatten(0, 1)
        owner = torch.arange(num_data, device=u.device).repeat(len(u))
        joint = u.new_full((len(flat),), -torch.inf, dtype=torch.float64)
        each = torch.full_like(flat, -torch.inf, dtype=torch.float64) if units else None
        size, draws = self.blocks(len(flat))
        for start in range(0, num_data, size):
            data = tuple(a[start : start + size] for a in self.tiles.arguments)
            index = torch.arange(start, start + len(data[0]), device=u.device)
            for first in range(0, len(flat), draws):
                part = slice(first, first + draws)
                own = owner[part, None] == index  # [draws, data]
                points = flat[part, None].expand(-1, len(index), -1)
                record = self.log_q(points, data)
                log_q = joint_log_q(record, self.pair)
                found = log_q.reshape(own.shape).masked_fill(own, -torch.inf)
                joint[part] = torch.logaddexp(joint[part], found.logsumexp(1))
                if each is not None:
                    found = self.unit_log_q(record, points, units)
                    found = found.masked_fill(own[..., None], -torch.inf)
                    each[part] = torch.logaddexp(each[part], found.logsumexp(1).double())
                if bar is not None:
                    bar.advance()
        if bool(joint.isnan().any()) or (each is not None and bool(each.isnan().any())):
            raise NonFiniteError(
                "log q(z|x) of the guide is NaN at another datum's draws: its parameters are, or "
                "the inverse of its flow overflows far from the datum's own"
            )
        shape = u.shape[:2]
        return Others(joint.reshape(shape), None if each is None else each.reshape(u.shape))

    def num_blocks(self, num_draws: int) -> int:
        size, draws = self.blocks(num_draws)
        return -(-self.tiles.num_data // size) * -(-num_draws // draws)

    def unit_log_q(self, record: LogWeights, u: Tensor, sites: Collection[str]) -> Tensor:
        """log q(z_i|x) `[draws, data, D]` by the guide behind a record; 0 but for `sites`."""
        found = []
        for name, value in self.points.split(u).items():
            if name in sites:
                log_q = marginals(record.guide_fn[name]).log_prob(value)
                found.append(self.points.rows(log_q, name, len(u)))
            else:
                found.append(torch.zeros_like(u[..., self.points.places[name].part]))
        return torch.cat(found, -1)

    def _check_density(self) -> None:
        """The guide scored at its own draws, and at those of another datum."""
        u = self.points.join(self.record.latents, 2)
        try:
            again = self.log_q(u.clone(), self.few)
            self.log_q(u.roll(1, 1), self.few)
        except Exception as error:  # whatever a foreign transform says of values it did not make
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise PairError(
                f"site '{next(iter(self.points.places))}': the guide's density is known at its own "
                "draws only, and the aggregate posterior scores each datum's draws under the "
                f"guides of all others; use a guide without planar or radial flows ({said})"
            ) from None
        ours, theirs = joint_log_q(again, self.pair), joint_log_q(self.record, self.pair)
        if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-2):
            most = float((ours - theirs).abs().max())
            raise PairError(
                f"the guide's log q of one and the same draw changes by {most:.2g} nats from call "
                "to call; take what is random out of it (noise, a counter), or use float64 if its "
                "inverse is inexact"
            )


def joint_log_q(record: LogWeights, pair: Pair) -> Tensor:
    """log q(z|x) of all latents together. Factors of the guide are no part of it."""
    total: Any = sum(record.log_q[name] for name in pair.latents)
    return total


def _check(tiles: Tiles) -> None:
    if tiles.num_data < 2:
        raise RequestError("data: one datum; the aggregate posterior needs at least two")
    check_latents(tiles.pair)


def check_latents(pair: Pair) -> None:
    """Raises: `PairError` for pairs whose KL(q(z|x) || p(z)) does not stand by itself."""
    if pair.enumerated:
        raise PairError(
            f"site '{pair.enumerated[0]}' is summed over, so p(z) of the other latents does not "
            "stand by itself; draw it in the guide, or use active_units"
        )
    if not pair.latents:
        raise PairError("the model has no latents, so there is no KL to look at")


def guide_alone(scorer: Scorer) -> Scorer:
    """The guide without the cost of the model: all that it draws is auxiliary."""
    other = copy.copy(scorer)
    other.pair = replace(scorer.pair, model=_nothing)
    return other


def _nothing(*arguments: Tensor) -> None:
    pass
