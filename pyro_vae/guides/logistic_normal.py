"""The logistic-normal guide."""

from __future__ import annotations

from pyro_vae.bounds import bounded
from pyro_vae.guides.base import LOG_SCALE_BOUNDS, Guide, GuideModule, full_precision
from pyro_vae.logistic_normal import LogisticNormal as Distribution
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes

# So that fewer than one entry of a draw in 1,000 is below 1e-30 and held there: of what is held, a
# prior takes no note, and a guide that no prior holds back would grow ever wider.
MOST_LOC, MOST_LOG_SCALE = 15.0, 2.0


class LogisticNormal(Guide, name="logistic_normal"):
    """q(z|x): z = softmax(h), h ~ N(m(x), diag s(x)^2) (ProdLDA, arXiv:1703.01488).

    |m| <= 15, s <= e^2.
    """

    support = "simplex"

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return LogisticNormalModule(shapes, encoder, 2 * shapes.latent_dim)


class LogisticNormalModule(GuideModule):
    def encode(self, x, given=None):
        loc, raw = full_precision(self.encoder(x)).chunk(2, -1)
        log_scale = bounded(raw, LOG_SCALE_BOUNDS[0], MOST_LOG_SCALE, self.training)
        return bounded(loc, -MOST_LOC, MOST_LOC, self.training), log_scale.exp()

    def distribution(self, parameters):
        return Distribution(*parameters)
