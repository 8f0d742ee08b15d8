"""The Laplace prior for sparse codes."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Tensor

from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class Laplace(Prior, name="laplace"):
    """p(z) = prod_l exp(-|z_l| / b) / (2 b), b = `scale`: sparse coding.

    By default the standard deviation b sqrt 2 is 1. Olshausen and Field 1996, Nature 381, 607-609.
    """

    scale: float = Field(default=math.sqrt(0.5), gt=0)

    def build(self, shapes: Shapes) -> PriorModule:
        return LaplaceModule(shapes, self.scale)


class LaplaceModule(PriorModule):
    loc: Tensor

    def __init__(self, shapes: Shapes, scale: float):
        super().__init__(shapes)
        self.scale = scale
        self.register_buffer("loc", torch.zeros(shapes.latent_dim), persistent=False)

    def distribution(self, y=None):
        return dist.Laplace(self.loc, torch.full_like(self.loc, self.scale)).to_event(1)
