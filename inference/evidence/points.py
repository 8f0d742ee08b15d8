"""How the numbers of several sites lie side by side in points `[chains, data, D]`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.errors import PairError
from inference.pair import Pair
from inference.record import LogWeights


@dataclass(frozen=True)
class Place:
    """One site's numbers in a point.

    `shape`: of the site's value without chains and data. `axis`: of the data in that value; None
    where all data are one.
    """

    part: slice
    shape: tuple[int, ...]
    axis: int | None
    dtype: torch.dtype


class Points:
    """Values of sites, in their own layout, as points and back.

    Args:
        values: an example of each, `[chains, ...]`; where data are repeated for every chain
            (`folded`), rows run over data, then chains.
        axes: of the data in each value.
    """

    def __init__(
        self, values: Mapping[str, Tensor], axes: Mapping[str, int | None], *, folded: bool
    ):
        self.folded = folded
        self.places: dict[str, Place] = {}
        start = 0
        for name, value in values.items():
            axis = axes[name]
            lead = {axis} if folded else {0, axis}
            shape = tuple(size for i, size in enumerate(value.shape) if i not in lead)
            part = slice(start, start + math.prod(shape))
            self.places[name] = Place(part, shape, axis, value.dtype)
            start = part.stop
        self.num_dims = start

    def join(self, values: Mapping[str, Tensor], num_chains: int) -> Tensor:
        """The point that holds these values."""
        parts = [self.rows(values[name], name, num_chains) for name in self.places]
        return torch.cat(parts, -1)

    def split(self, u: Tensor) -> dict[str, Tensor]:
        """The values that a point holds."""
        return {name: self._full(u[..., place.part], place) for name, place in self.places.items()}

    def rows(self, value: Tensor, name: str, num_chains: int) -> Tensor:
        """`[chains, data, numbers]` of a value, or of what has its batch shape."""
        axis = self.places[name].axis
        if self.folded:
            rows = value.movedim(axis, 0)  # type: ignore[arg-type]
            return rows.reshape(-1, num_chains, rows[:1].numel()).transpose(0, 1)
        if axis is None:
            return value.reshape(num_chains, 1, -1)
        rows = value.movedim(axis, 1)
        return rows.reshape(num_chains, rows.shape[1], -1)

    def value(self, rows: Tensor, name: str) -> Tensor:
        """The site's value that holds `[chains, data, numbers]`."""
        return self._full(rows, self.places[name])

    def _full(self, part: Tensor, place: Place) -> Tensor:
        if not place.dtype.is_floating_point:  # whole numbers, beside others that are not
            part = part.to(place.dtype)
        if self.folded:
            rows = part.transpose(0, 1).reshape(-1, *place.shape)
            return rows.movedim(0, place.axis)  # type: ignore[arg-type]
        if place.axis is None:
            return part.reshape(len(part), *place.shape)
        return part.reshape(*part.shape[:2], *place.shape).movedim(1, place.axis)


def free_of(record: LogWeights, pair: Pair) -> dict[str, Tensor]:
    """The latents that are drawn, and not summed over all their values."""
    return {n: value for n, value in record.latents.items() if n not in pair.enumerated}


def axes_of(
    values: Mapping[str, Tensor], event_dims: Mapping[str, int], pair: Pair
) -> dict[str, int | None]:
    """The axis of the data in each value; None where all data are one.

    Raises: `PairError` for a pair that draws its data itself.
    """
    if pair.subsampling == "own":
        raise PairError(
            f"plate '{pair.plate}' draws {pair.subsample_size} of its data itself; drop "
            "subsample_size for this call, or use estimator='importance' from the guide"
        )
    if pair.data_dim is None:
        return dict.fromkeys(values)
    return {n: value.dim() - event_dims[n] + pair.data_dim for n, value in values.items()}
