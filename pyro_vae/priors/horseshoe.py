"""The horseshoe prior for sparse codes."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.exponential_integral import log_scaled_e1
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class Horseshoe(Prior, name="horseshoe"):
    """z_l = scale lambda_l e_l, lambda_l ~ half-Cauchy(1), e_l ~ N(0, 1): many near 0, some far.

    The scales lambda are integrated out, so that z is the only latent:

        p(z_l) = e^u E_1(u) / (scale sqrt(2 pi^3)),   u = z_l^2 / (2 scale^2)

    (Carvalho, Polson and Scott 2010, Biometrika 97, 465-480). The density has a pole at 0 and no
    moments.
    """

    scale: float = Field(default=1.0, gt=0)

    def build(self, shapes: Shapes) -> PriorModule:
        return HorseshoeModule(shapes, self.scale)


class HorseshoeModule(PriorModule):
    zero: Tensor

    def __init__(self, shapes: Shapes, scale: float):
        super().__init__(shapes)
        self.scale = scale
        self.register_buffer("zero", torch.zeros(shapes.latent_dim), persistent=False)

    def distribution(self, y=None):
        return HorseshoeDistribution(torch.full_like(self.zero, self.scale)).to_event(1)


class HorseshoeDistribution(TorchDistribution):
    """The marginal of one number, `scale [...]`."""

    arg_constraints: ClassVar = {"scale": constraints.positive}
    support = constraints.real
    has_rsample = True

    def __init__(self, scale: Tensor, validate_args=None):
        self.scale = scale
        super().__init__(scale.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        new.scale = self.scale.expand(batch_shape)
        super(HorseshoeDistribution, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=()) -> Tensor:
        scale = self.scale.expand(torch.Size(sample_shape) + self.batch_shape)
        spread = torch.empty_like(scale).cauchy_().abs()
        return scale * spread * torch.randn_like(scale)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        u = 0.5 * (value / self.scale).square()
        # The pole at 0 is integrable; neither end is more than a number can hold.
        u = u.clamp(torch.finfo(u.dtype).tiny, torch.finfo(u.dtype).max)
        return log_scaled_e1(u) - self.scale.log() - 0.5 * math.log(2 * math.pi**3)
