"""The logistic-normal guide."""

from __future__ import annotations

from pyro_vae.guides.base import Guide, GuideModule, full_precision, positive
from pyro_vae.logistic_normal import LogisticNormal as Distribution
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class LogisticNormal(Guide, name="logistic_normal"):
    """q(z|x): z = softmax(h), h ~ N(m(x), diag s(x)^2) (ProdLDA, arXiv:1703.01488)."""

    support = "simplex"

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return LogisticNormalModule(shapes, encoder, 2 * shapes.latent_dim)


class LogisticNormalModule(GuideModule):
    def encode(self, x, given=None):
        loc, raw = full_precision(self.encoder(x)).chunk(2, -1)
        return loc, positive(raw)

    def distribution(self, parameters):
        return Distribution(*parameters)
