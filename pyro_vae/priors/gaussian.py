"""A Gaussian prior with learned moments."""

from __future__ import annotations

from typing import Literal

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import nn

from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class Gaussian(Prior, name="gaussian"):
    """p(z) = N(z; m, S), learned; S is `diagonal` or `full`, and begins as the identity.

    Decoders that begin with a linear layer can take up m and S themselves; others, and guides of
    limited families, are served by it. Scales stay above `min_scale`.
    """

    covariance: Literal["diagonal", "full"] = "diagonal"
    min_scale: float = Field(default=1e-2, gt=0)

    def build(self, shapes: Shapes) -> PriorModule:
        return GaussianModule(shapes, self)


class GaussianModule(PriorModule):
    def __init__(self, shapes: Shapes, spec: Gaussian):
        super().__init__(shapes)
        dim = shapes.latent_dim
        self.full, self.min_scale = spec.covariance == "full", spec.min_scale
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        if self.full:
            self.below = nn.Parameter(torch.zeros(dim, dim))

    def distribution(self, y=None):
        scale = self.log_scale.exp() + self.min_scale
        if not self.full:
            return dist.Normal(self.loc, scale).to_event(1)
        tril = self.below.tril(-1) + torch.diag_embed(scale)
        return dist.MultivariateNormal(self.loc, scale_tril=tril)
