"""Priors on the unit sphere."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule
from pyro_vae.spherical import SphericalUniform
from pyro_vae.von_mises_fisher import VonMisesFisher


class Hyperspherical(Prior, name="hyperspherical"):
    """p(z) on the unit sphere of R^D, D = latent_dim: uniform, or von Mises-Fisher, learned.

    Densities are with respect to the sphere's surface. `von_mises_fisher` learns its mean, which
    begins at random, and its concentration, which begins at 1 (arXiv:1804.00891).
    """

    support = "sphere"
    fewest_dims = 2
    distribution: Literal["uniform", "von_mises_fisher"] = "uniform"

    def build(self, shapes: Shapes) -> PriorModule:
        if self.distribution == "uniform":
            return SphericalUniformModule(shapes)
        return VonMisesFisherModule(shapes)


class SphericalUniformModule(PriorModule):
    like: Tensor

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.register_buffer("like", torch.zeros(shapes.latent), persistent=False)

    def distribution(self, y=None):
        return SphericalUniform(self.like)


class VonMisesFisherModule(PriorModule):
    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.direction = nn.Parameter(normalize(torch.randn(shapes.latent), dim=-1))
        self.log_concentration = nn.Parameter(torch.zeros(()))

    def distribution(self, y=None):
        return VonMisesFisher(normalize(self.direction, dim=-1), self.log_concentration.exp())
