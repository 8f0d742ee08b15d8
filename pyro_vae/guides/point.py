"""A point for each datum, without a spread: the encoder of an autoencoder."""

from __future__ import annotations

import pyro.distributions as dist

from pyro_vae.guides.base import Guide, GuideModule
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class Point(Guide, name="point"):
    """q(z|x) = delta(z - m(x)). No density: under `elbo` z is its most probable value (MAP).

    With objective `reconstruction` the model is a plain autoencoder. log p(x) cannot be estimated
    with this guide, whose draws have no weights.
    """

    density = "none"

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return PointModule(shapes, encoder, shapes.latent_dim)


class PointModule(GuideModule):
    def encode(self, x, given=None):
        return self.encoder(x)

    def distribution(self, parameters):
        return dist.Delta(parameters, event_dim=1)
