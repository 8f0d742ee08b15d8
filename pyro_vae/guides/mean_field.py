"""The diagonal Gaussian guide."""

from __future__ import annotations

import pyro.distributions as dist

from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class MeanField(Guide, name="mean_field"):
    """q(z|x) = N(z; m(x), diag s(x)^2), s = exp(linear) (Kingma and Welling, arXiv:1312.6114)."""

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return MeanFieldModule(shapes, encoder, 2 * shapes.latent_dim)


class MeanFieldModule(GuideModule):
    def encode(self, x, given=None):
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, positive(raw)

    def distribution(self, parameters):
        return dist.Normal(*parameters).to_event(1)
