"""The relaxed one-hot guide."""

from __future__ import annotations

from pydantic import Field

from pyro_vae.guides.base import Guide, GuideModule, full_precision
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes
from pyro_vae.relaxed_one_hot import RelaxedRows
from pyro_vae.simplex import LEAST_TEMPERATURE


class Relaxed(Guide, name="relaxed"):
    """q(z|x): L = latent_dim rows softmax((a_l(x) + g) / tau) of C = `categories`, g ~ Gumbel.

    tau is `temperature`, 2/3 by default (arXiv:1611.00712, arXiv:1611.01144). The bound takes the
    density of the relaxed rows in q as in the prior; the KL of the discrete ones would bound
    nothing.
    """

    support = "relaxed"
    categories: int = Field(default=10, ge=2)
    temperature: float = Field(default=0.6667, ge=LEAST_TEMPERATURE)

    def latent_shape(self, latent_dim):
        return (latent_dim, self.categories)

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return RelaxedModule(shapes, encoder, self.temperature)


class RelaxedModule(GuideModule):
    def __init__(self, shapes: Shapes, encoder: Network, temperature: float):
        super().__init__(shapes, encoder, shapes.latent_dim)
        self.temperature = temperature

    def encode(self, x, given=None):
        return full_precision(self.encoder(x)).unflatten(-1, self.shapes.latent)

    def distribution(self, parameters):
        return RelaxedRows(self.temperature, parameters)
