"""The standard normal prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class StandardNormal(Prior, name="standard_normal"):
    """p(z) = N(z; 0, I) (Kingma and Welling, arXiv:1312.6114)."""

    def build(self, shapes: Shapes) -> PriorModule:
        return StandardNormalModule(shapes)


class StandardNormalModule(PriorModule):
    loc: Tensor

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.register_buffer("loc", torch.zeros(shapes.latent), persistent=False)

    def distribution(self, y=None):
        return dist.Normal(self.loc, torch.ones_like(self.loc)).to_event(self.loc.dim())
