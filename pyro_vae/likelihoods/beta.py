"""The Beta likelihood for values inside (0, 1)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pydantic import Field

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.unit_interval import InsideModule
from pyro_vae.part import Shapes


class Beta(Likelihood, name="beta"):
    """p(x|z) = prod_d Beta(x_d; m_d c_d, (1 - m_d) c_d), mean m and concentration c.

    x lies inside (0, 1); grey levels must be dequantized (`data.dequantize=uniform`).
    `most`: the largest c, which a constant pixel would drive up without end.
    """

    support = "inside"
    most: float = Field(default=1e4, gt=1)

    def param_shape(self, data_shape):
        return (2, *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return BetaModule(shapes, self.most)


class BetaModule(InsideModule):
    def __init__(self, shapes: Shapes, most: float):
        super().__init__(shapes)
        self.most = most

    def forward(self, outputs):
        raw_mean, raw = self.halves(outputs)
        concentration = raw.clamp(-5.0, math.log(self.most)).exp()
        mean = raw_mean.sigmoid().clamp(1e-4, 1 - 1e-4)
        pixels = dist.Beta(mean * concentration, (1 - mean) * concentration)
        return pixels.to_event(len(self.shapes.data))

    def initial_output(self, x):
        mean = x.mean(0).clamp(0.01, 0.99)
        # Var = m (1 - m) / (c + 1)
        variance = x.var(0, correction=0).clamp_min(1e-4)
        concentration = (mean * (1 - mean) / variance - 1).clamp(0.5, 100.0)
        return torch.stack([mean.logit(), concentration.log()])
