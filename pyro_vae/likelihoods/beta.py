"""The Beta likelihood for values inside (0, 1)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pydantic import Field

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.in_float64 import InFloat64
from pyro_vae.likelihoods.unit_interval import InsideModule, inside
from pyro_vae.part import Shapes

# Of both parameters: below, some of the mass would lie nearer to 1 than float32 can tell.
LEAST = 0.5


class Beta(Likelihood, name="beta"):
    """p(x|z) = prod_d Beta(x_d; m_d c_d, (1 - m_d) c_d), mean m and concentration c.

    x lies inside (0, 1); grey levels must be dequantized (`data.dequantize=uniform`), and the few
    that float32 rounds to 0 or 1 are moved to the nearest number inside. `most`: the largest c,
    which a constant pixel would drive up without end. m c and (1 - m) c stay at or above 1/2.
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
        raw_mean, raw = self.channels(outputs)
        c = self.bounded(raw, math.log(2 * LEAST), math.log(self.most)).double().exp()
        m = raw_mean.double().sigmoid()
        # In float64: terms of c log c cancel.
        pixels = dist.Beta((m * c).clamp_min(LEAST), ((1 - m) * c).clamp_min(LEAST))
        return BetaPixels(pixels, raw.dtype).to_event(self.event_dim)

    def initial_output(self, x):
        mean = x.mean(0).clamp(0.01, 0.99)
        # Var = m (1 - m) / (c + 1)
        variance = x.var(0, correction=0).clamp_min(1e-4)
        c = (mean * (1 - mean) / variance - 1).clamp(0.5, min(100.0, self.most))
        return torch.stack([mean.logit(), c.log()])


class BetaPixels(InFloat64):
    def log_prob(self, value):
        return super().log_prob(inside(value))
