"""Importance weights of simulated data, with the true latents among the draws.

For log p(x) from above by one exact posterior draw: Grosse, Ghahramani, Adams, arXiv:1511.02543.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from inference.errors import PairError
from inference.evidence import streaming
from inference.evidence.importance import stream
from inference.evidence.kept import Kept
from inference.evidence.points import free_of
from inference.evidence.proposals import points_of
from inference.evidence.weighing import Weighing
from inference.particles import Given
from inference.precision import products
from inference.progress import Progress
from inference.tiles import Tiles, numbers_per_tile


def both_sides(
    weighing: Weighing, true: Tensor, bar: Progress | None, kept: Kept
) -> dict[str, Tensor]:
    """Bounds by K weights of each datum, from draws z_k ~ q(z|x) and the true z* ~ p(z|x).

        lower = log 1/K sum_k w_k,   upper = log 1/K (w* + sum_{k=2..K} w_k)

    The draws behind `upper` have the density prod_k q(z_k) times their mean weight over p(x) (which
    of the K is the true one does not matter), so that E[1/p^] = 1/p(x) and E[upper] >= log p(x).

    Args:
        true: `[N]`, log w*.
    Returns: `value`, `upper`, `std_error`, `elbo`, `[N]`.
    """
    tiles = weighing.tiles
    parts = []
    for first, state in stream(
        weighing, bar, done=lambda first: kept.has(f"weighed/{first}"), gather=_Gather
    ):
        if state is None:
            found = kept.get_named(f"weighed/{first}", tiles.device)
        else:
            whole = streaming.finish(state.moments)
            upper = torch.logaddexp(state.rest, true[first : first + len(state.rest)])
            found = {name: whole[name] for name in ("value", "std_error", "elbo")}
            found["upper"] = upper - math.log(tiles.num_samples)
            kept.put_named(f"weighed/{first}", found)
        parts.append(found)
    return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}


def log_weight_of(tiles: Tiles, latents: Mapping[str, Tensor]) -> Tensor:
    """log w `[N]` of given latents, one of each datum; they have no dimension of samples.

    Raises: `PairError` where the guide cannot be scored at latents that it did not draw.
    """
    pair, scorer = tiles.pair, tiles.scorer
    few = tiles.arguments if pair.whole else tuple(a[: pair.few] for a in tiles.arguments)
    record = scorer(few, 2)
    if record.auxiliary:
        raise PairError(
            f"auxiliary site '{next(iter(record.auxiliary))}' of the guide: the true latents do "
            "not tell its value, so they have no weight; use estimator='importance'"
        )
    points = points_of(record, pair, folded=scorer.folded)
    values = {}
    for name, example in free_of(record, pair).items():
        # Latents of a run without samples, in the layout of a run with them.
        value = latents[name].to(tiles.device, example.dtype)
        depth = 0 if scorer.folded else pair.max_plate_nesting + 1
        missing = max(0, depth - (value.dim() - record.model_fn[name].event_dim))
        values[name] = value.reshape((1,) * missing + tuple(value.shape))
    u = points.join(values, 1) if values else None
    size = max(1, numbers_per_tile(tiles.device) // pair.event_numel)
    if pair.whole:
        size = tiles.num_data
    found = []
    for start in range(0, tiles.num_data, size):
        data = tuple(a[start : start + size] for a in tiles.arguments)
        part = {} if u is None else points.split(u[:, start : start + size])
        try:
            with products(tiles.precision):
                at = scorer.with_guide(Given(part)(pair.guide))(data, 1)
        except (NotImplementedError, KeyError) as error:  # a flow without an inverse
            raise PairError(
                "the guide's density is known at its own draws only "
                f"({type(error).__name__}: {str(error).splitlines()[0]}), so the true latents have "
                "no weight; use by=AIS(start='gaussian')"
            ) from None
        found.append(at.log_weight.reshape(-1))
    return torch.cat(found)


class _State(NamedTuple):
    """Moments of all K weights, and the log of the sum of all but the first, `[N]`."""

    num_samples: int
    moments: streaming.Moments
    rest: Tensor

    @property
    def peak(self) -> Tensor:
        return self.moments.peak


class _Gather:
    """How log-weights that stream by are gathered."""

    @staticmethod
    def init(num_data: int, num_samples: int, device: torch.device) -> _State:
        rest = torch.full((num_data,), -math.inf, dtype=torch.float64, device=device)
        return _State(num_samples, streaming.init(num_data, num_samples, device), rest)

    @staticmethod
    def update(state: _State, log_weight: Tensor, rounding: Tensor) -> _State:
        moments = streaming.update(state.moments, log_weight, rounding)
        others = log_weight[:, 1:] if int(state.moments.seen[0]) == 0 else log_weight
        rest = state.rest
        if others.shape[1]:
            rest = torch.logaddexp(rest, others.logsumexp(1))
        return _State(state.num_samples, moments, rest)
