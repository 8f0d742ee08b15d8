"""The Dirichlet guide."""

from __future__ import annotations

import math

from pyro_vae.guides.base import Guide, GuideModule, full_precision
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes
from pyro_vae.simplex import LEAST_CONCENTRATION
from pyro_vae.simplex import Dirichlet as Distribution

LOG_BOUNDS = (math.log(LEAST_CONCENTRATION), math.log(1e5))


class Dirichlet(Guide, name="dirichlet"):
    """q(z|x) = Dirichlet(a(x)), a = exp(linear) within [0.1, 1e5].

    Draws are reparametrized implicitly (arXiv:1805.08498; arXiv:1901.02739 in a VAE).
    """

    support = "simplex"

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return DirichletModule(shapes, encoder, shapes.latent_dim)


class DirichletModule(GuideModule):
    def encode(self, x, given=None):
        return full_precision(self.encoder(x)).clamp(*LOG_BOUNDS).exp()

    def distribution(self, parameters):
        return Distribution(parameters)
