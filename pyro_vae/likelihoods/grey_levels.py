"""What distributions over levels share: x = level / (levels - 1), or the level itself."""

from __future__ import annotations

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.likelihoods.base import LikelihoodModule


class LevelsModule(LikelihoodModule):
    """A likelihood of `levels` grey levels."""

    support = "levels"

    def __init__(self, shapes, levels: int):
        super().__init__(shapes)
        self.levels = levels


class GreyLevels(TorchDistribution):
    """Of one pixel. `names`: its parameters, `[..., a size of their own]`; `top` = levels - 1.

    `unit`: what the highest level's x is, 1 for grey values and `top` for codes.
    """

    names: tuple[str, ...] = ()
    top: int
    unit: int = 1

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self):
        return _Grid(self.top, self.unit)

    def index(self, value: Tensor) -> Tensor:
        """The level of each value."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * (self.top / self.unit)).round()

    def value(self, level: Tensor) -> Tensor:
        return level * self.unit / self.top

    def expand(self, batch_shape, _instance=None):
        new: GreyLevels = type(self).__new__(type(self)) if _instance is None else _instance
        for name in self.names:
            part = getattr(self, name)
            setattr(new, name, part.expand(torch.Size(batch_shape) + part.shape[-1:]))
        new.top, new.unit = self.top, self.unit
        super(GreyLevels, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new


class _Grid(constraints.Constraint):
    is_discrete = True

    def __init__(self, top: int, unit: int):
        self.top, self.unit = top, unit
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        level = value * (self.top / self.unit)
        return (level >= 0) & (level <= self.top) & ((level - level.round()).abs() < 1e-3)

    def __repr__(self):
        return f"GreyLevels({self.top + 1} from 0 to {self.unit})"
