"""The Gaussian guide whose covariance is of low rank plus diagonal."""

from __future__ import annotations

import pyro.distributions as dist
from pydantic import PositiveInt

from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class LowRank(Guide, name="low_rank"):
    """q(z|x) = N(z; m(x), F(x) F(x)' + diag s(x)^2), F of `rank` columns (arXiv:1401.4082, 4.3).

    The encoder puts out (2 + rank) L numbers.
    """

    rank: PositiveInt = 4

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return LowRankModule(shapes, encoder, (2 + self.rank) * shapes.latent_dim)


class LowRankModule(GuideModule):
    def encode(self, x, given=None):
        dim = self.shapes.latent_dim
        outputs = self.encoder(x)
        loc, raw, factor = outputs.split([dim, dim, outputs.shape[-1] - 2 * dim], -1)
        scale = positive(raw)
        # Columns scale with s: narrow posteriors keep a moderate correlation.
        return loc, scale, scale.unsqueeze(-1) * factor.unflatten(-1, (dim, -1))

    def distribution(self, parameters):
        loc, scale, factor = parameters
        return dist.LowRankMultivariateNormal(loc, factor, scale.square())
