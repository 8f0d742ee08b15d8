"""The logit-normal likelihood for values inside (0, 1)."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Tensor

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.unit_interval import InsideModule, inside
from pyro_vae.part import Shapes

MOST = 1.5  # of log s: beyond, some of the mass would lie nearer to 1 than float32 can tell
POINTS = 64  # of the quadrature for the mean


class LogitNormal(Likelihood, name="logit_normal"):
    """p(x|z) = prod_d N(logit x_d; m_d, s_d^2) / (x_d (1 - x_d)), x inside (0, 1).

    Atchison and Shen, Biometrika 67 (1980). Grey levels must be dequantized
    (`data.dequantize=uniform`), and the few that float32 rounds to 0 or 1 are moved to the nearest
    number inside. `floor`: the least s.
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
        loc, raw = self.channels(outputs)
        scale = self.bounded(raw, math.log(self.floor), MOST).exp()
        return LogitNormalPixels(loc, scale).to_event(self.event_dim)

    def initial_output(self, x):
        logit = inside(x).logit()
        return torch.stack([logit.mean(0), logit.std(0, correction=0).clamp_min(0.1).log()])


class LogitNormalPixels(dist.TransformedDistribution):
    def __init__(self, loc: Tensor, scale: Tensor):
        super().__init__(dist.Normal(loc, scale), [dist.transforms.SigmoidTransform()])

    def expand(self, batch_shape, _instance=None):
        normal = self.base_dist.expand(batch_shape)
        return LogitNormalPixels(normal.loc, normal.scale)

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        x = inside(value)
        return self.base_dist.log_prob(x.logit()) - x.log() - torch.log1p(-x)

    @property
    def mean(self) -> Tensor:
        """By the mean over quantiles, to three decimals: there is no closed form."""
        normal = dist.Normal(torch.zeros((), dtype=torch.float64), 1.0)
        total = torch.zeros_like(self.base_dist.loc)
        for k in range(POINTS):
            point = float(normal.icdf(torch.tensor((k + 0.5) / POINTS, dtype=torch.float64)))
            total = total + (self.base_dist.loc + self.base_dist.scale * point).sigmoid()
        return total / POINTS
