"""The logit-normal likelihood for values inside (0, 1)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pydantic import Field

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.unit_interval import InsideModule
from pyro_vae.part import Shapes


class LogitNormal(Likelihood, name="logit_normal"):
    """p(x|z) = prod_d N(logit x_d; m_d, s_d^2) / (x_d (1 - x_d)), x inside (0, 1).

    Grey levels must be dequantized (`data.dequantize=uniform`): at 0 and 1 it has no value.
    `floor`: the least s.
    """

    support = "inside"
    floor: float = Field(default=1e-2, gt=0)

    def param_shape(self, data_shape):
        return (2, *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return LogitNormalModule(shapes, self.floor)


class LogitNormalModule(InsideModule):
    def __init__(self, shapes: Shapes, floor: float):
        super().__init__(shapes)
        self.floor = floor

    def forward(self, outputs):
        loc, raw = self.halves(outputs)
        scale = raw.clamp(math.log(self.floor), 10.0).exp()
        event_dim = len(self.shapes.data)
        return LogitNormalPixels(dist.Normal(loc, scale), event_dim)

    def initial_output(self, x):
        logit = x.clamp(1e-4, 1 - 1e-4).logit()
        return torch.stack([logit.mean(0), logit.std(0, correction=0).clamp_min(0.1).log()])


class LogitNormalPixels(dist.TransformedDistribution):
    """The distribution, with a mean by seven-point Gauss-Hermite quadrature for pictures."""

    def __init__(self, base, event_dim: int):
        super().__init__(base.to_event(event_dim), [dist.transforms.SigmoidTransform()])

    @property
    def mean(self):
        normal = self.base_dist.base_dist
        points, weights = _hermite(normal.loc)
        shape = (-1,) + (1,) * normal.loc.dim()
        values = (normal.loc + math.sqrt(2) * normal.scale * points.reshape(shape)).sigmoid()
        return (values * weights.reshape(shape)).sum(0)


def _hermite(like):
    import numpy as np

    points, weights = np.polynomial.hermite.hermgauss(7)
    return like.new_tensor(points), like.new_tensor(weights / math.sqrt(math.pi))
