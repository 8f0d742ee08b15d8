"""How labels and masks join what a network is handed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Joining:
    """`extras` beside inputs of `shape`: behind the flattened inputs, or as channels of a picture.

    An extra has the inputs' shape (a mask), or is a vector (a label as one-hot): among `pictures`
    a vector fills one channel with each of its numbers.
    """

    inputs: tuple[int, ...]
    extras: tuple[tuple[int, ...], ...]
    pictures: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what comes out."""
        if not self.extras:
            return self.inputs
        if not self.pictures:
            return (sum(math.prod(shape) for shape in (self.inputs, *self.extras)),)
        channels = sum(self._channels(shape) for shape in (self.inputs, *self.extras))
        return (channels, *self.inputs[-2:])

    def _channels(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[:-2]) if shape == self.inputs else math.prod(shape)

    def __call__(self, inputs: Tensor, extras: Sequence[Tensor]) -> Tensor:
        """`[..., *inputs]` and `[..., *extra]` to `[..., *shape]`; leading dimensions broadcast."""
        if not self.extras:
            return inputs
        parts = []
        for x, shape in zip((inputs, *extras), (self.inputs, *self.extras), strict=True):
            x = x.to(inputs.dtype)
            lead = x.shape[: x.dim() - len(shape)]
            if not self.pictures:
                parts.append(x.reshape(*lead, -1))
            elif shape == self.inputs:
                parts.append(x.reshape(*lead, -1, *self.inputs[-2:]))
            else:
                x = x.reshape(*lead, -1, 1, 1)
                parts.append(x.expand(*x.shape[:-2], *self.inputs[-2:]))
        last = 3 if self.pictures else 1
        shape = torch.broadcast_shapes(*(p.shape[:-last] for p in parts))
        return torch.cat([p.expand(*shape, *p.shape[-last:]) for p in parts], -last)
