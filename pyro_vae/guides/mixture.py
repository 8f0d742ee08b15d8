"""The mixture guide."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from pyro_vae.gaussian_mixture import DiagonalGaussianMixture
from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class MixtureGuide(Guide, name="mixture"):
    """q(z|x) = sum_c w_c(x) N(z; m_c(x), diag s_c(x)^2).

    Draws are reparametrized implicitly, weights too (arXiv:1805.08498). Components begin `spread`
    standard deviations apart; far apart, the gradient of their weights has a large variance.
    """

    components: int = Field(default=3, ge=2)
    spread: float = Field(default=1.0, ge=0)

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return MixtureGuideModule(shapes, encoder, self)


class MixtureGuideModule(GuideModule):
    start: Tensor

    def __init__(self, shapes: Shapes, encoder: Network, spec: MixtureGuide):
        dim, count = shapes.latent_dim, spec.components
        super().__init__(shapes, encoder, count * (2 * dim + 1))
        self.sizes = [count * dim, count * dim, count]
        # Kept with the weights, for the encoder learns beside it.
        self.register_buffer("start", spec.spread * torch.randn(count, dim))

    def encode(self, x, given=None):
        loc, raw, logits = self.encoder(x).split(self.sizes, -1)
        shape = self.start.shape
        scale = positive(raw.unflatten(-1, shape))
        return logits, loc.unflatten(-1, shape) + self.start * scale, scale

    def distribution(self, parameters):
        return DiagonalGaussianMixture(*parameters)
