"""Densities that float32 would round off."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class InFloat64(TorchDistribution):
    """A distribution of numbers whose parameters are float64, seen as one of `dtype`.

    For terms that are large and nearly cancel: log Gamma(10^4) is 8 x 10^4, of which float32 keeps
    two decimals, and every pixel adds its error.
    """

    arg_constraints: ClassVar = {}

    def __init__(self, inner, dtype: torch.dtype):
        self.inner, self.dtype = inner, dtype
        super().__init__(inner.batch_shape, validate_args=False)

    @constraints.dependent_property
    def support(self):
        return self.inner.support

    def expand(self, batch_shape, _instance=None):
        return type(self)(self.inner.expand(batch_shape), self.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.inner.log_prob(value.double()).to(self.dtype)

    def sample(self, sample_shape=()) -> Tensor:
        return self.inner.sample(torch.Size(sample_shape)).to(self.dtype)

    @property
    def mean(self) -> Tensor:
        return self.inner.mean.to(self.dtype)
