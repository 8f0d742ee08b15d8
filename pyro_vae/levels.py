"""Latents of several levels: each drawn given those before it, and all of them as one vector."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

# A site's name, and its distribution given the draws before it.
Step = tuple[str, Callable[[dict[str, Tensor]], Any]]


def names(levels: Sequence[int]) -> list[str]:
    """Sites from the data up: z1, z2, ..."""
    return [f"z{level + 1}" for level in range(len(levels))]


def draw(steps: Sequence[Step], infer: Any = None) -> Tensor:
    """One sample statement a step; the draws as one latent, levels from the data up."""
    drawn: dict[str, Tensor] = {}
    for name, step in steps:
        drawn[name] = pyro.sample(name, step(drawn), infer=infer)
    if len(drawn) == 1:
        return drawn[name]
    return together(drawn)


def together(drawn: Mapping[str, Tensor]) -> Tensor:
    """Levels `[..., L_l]` as one vector `[..., sum_l L_l]`."""
    parts = [drawn[name] for name in sorted(drawn, key=lambda name: int(name[1:]))]
    shape = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    return torch.cat([part.expand(*shape, part.shape[-1]) for part in parts], -1)


class Chain(TorchDistribution):
    """p(z_1, ..., z_M) = prod_l p(z_l | those drawn before it), of one vector of all levels.

    Args:
        steps: sites `z1`, `z2`, ... in the order in which they are drawn.
        levels: their lengths, from the data up.
        batch_shape: that of the first that is drawn, unless given.
    """

    arg_constraints: ClassVar = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, steps: Sequence[Step], levels: Sequence[int], batch_shape=None):
        self.steps, self.levels = tuple(steps), tuple(levels)
        if batch_shape is None:
            batch_shape = self.steps[0][1]({}).batch_shape
        super().__init__(torch.Size(batch_shape), torch.Size([sum(levels)]), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return Chain(self.steps, self.levels, batch_shape)

    def _draw(self, sample_shape, how: str) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        drawn: dict[str, Tensor] = {}
        for name, step in self.steps:
            drawn[name] = getattr(step(drawn).expand(shape), how)()
        return together(drawn)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            return self._draw(sample_shape, "sample")

    def rsample(self, sample_shape=()) -> Tensor:
        return self._draw(sample_shape, "rsample")

    def log_prob(self, value: Tensor) -> Tensor:
        drawn = dict(zip(names(self.levels), value.split(self.levels, -1), strict=True))
        return sum(step(drawn).log_prob(drawn[name]) for name, step in self.steps)
