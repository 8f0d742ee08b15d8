"""Independent pixels of which a mask marks some: the others are integrated out."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class MarkedPixels(TorchDistribution):
    """log p(x_marked) = sum over marked d of log p_d(x_d).

    Args:
        pixels: a distribution with batch shape `[..., *data]` and no event shape.
        mask: `[..., *data]`, true or 1 where a value is known.
        event_dim: number of data dimensions.
        safe: a value that the support holds. It stands where nothing is marked, for a density of 0
            there would make gradients NaN, whatever is multiplied with them.

    Draws are 0 where nothing is marked; the mean is that of all pixels.
    """

    arg_constraints: ClassVar = {}

    def __init__(self, pixels, mask: Tensor, event_dim: int, safe: float):
        self.pixels, self.kept, self.safe = pixels, mask.bool(), safe
        shape = torch.broadcast_shapes(mask.shape, pixels.batch_shape)
        cut = len(shape) - event_dim
        super().__init__(shape[:cut], shape[cut:], validate_args=False)

    @constraints.dependent_property
    def support(self):
        return MarkedSupport(self.pixels.support, self.kept, self.event_dim, self.safe)

    def expand(self, batch_shape, _instance=None):
        pixels = self.pixels.expand(torch.Size(batch_shape) + self.event_shape)
        return MarkedPixels(pixels, self.kept, self.event_dim, self.safe)

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.pixels.log_prob(torch.where(self.kept, value, self.safe))
        return torch.where(self.kept, log_prob, 0.0).sum(tuple(range(-self.event_dim, 0)))

    def sample(self, sample_shape=()) -> Tensor:
        pixels = self.pixels.expand(self.batch_shape + self.event_shape)
        return torch.where(self.kept, pixels.sample(torch.Size(sample_shape)), 0.0)

    @property
    def mean(self) -> Tensor:
        return self.pixels.mean.expand(self.batch_shape + self.event_shape)


class MarkedSupport(constraints.Constraint):
    """The support `each` of every marked value; anything where nothing is marked."""

    def __init__(self, each, kept: Tensor, event_dim: int, safe: float):
        self._each, self._kept, self._safe = each, kept, safe
        self.is_discrete, self.event_dim = each.is_discrete, event_dim
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        inside = self._each.check(torch.where(self._kept, value, self._safe))
        return inside.flatten(-self.event_dim).all(-1)

    def __repr__(self):
        return f"{self._each} where marked"
