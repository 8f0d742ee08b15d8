"""The categorical guide of discrete codes."""

from __future__ import annotations

from pydantic import Field

from pyro_vae.guides.base import Guide, GuideModule, full_precision
from pyro_vae.networks.base import Network
from pyro_vae.one_hot import OneHotRows, is_listed
from pyro_vae.part import Shapes


class Categorical(Guide, name="categorical"):
    """q(z|x) = prod_l softmax(a_l(x))'z_l: L = latent_dim independent rows of C = `categories`.

    Up to 4,096 = C^L values the site is marked for enumeration: training sums over all of them, so
    that the ELBO has no noise and every engine runs it; a step costs C^L passes of the decoder.
    Beyond, the gradient is a score function (arXiv:1401.0118) and very noisy: use small learning
    rates, several particles and the eager engine, or the `relaxed` prior and guide.
    """

    support = "one_hot"
    categories: int = Field(default=10, ge=2)

    def latent_shape(self, latent_dim):
        return (latent_dim, self.categories)

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return CategoricalModule(shapes, encoder, shapes.latent_dim)


class CategoricalModule(GuideModule):
    def encode(self, x, given=None):
        return full_precision(self.encoder(x)).unflatten(-1, self.shapes.latent)

    def distribution(self, parameters):
        return OneHotRows(parameters)

    def infer(self):
        return {"enumerate": "parallel"} if is_listed(self.shapes.latent) else {}
