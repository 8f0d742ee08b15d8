"""The mixture guide."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pydantic import Field

from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class MixtureGuide(Guide, name="mixture"):
    """q(z|x) = sum_c w_c(x) N(z; m_c(x), diag s_c(x)^2).

    Draws are reparametrized implicitly, through the distribution function of the mixture
    (arXiv:1806.01851, arXiv:1805.08498). Components begin `spread` standard deviations apart.
    """

    components: int = Field(default=3, ge=2)
    spread: float = Field(default=1.0, ge=0)

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return MixtureGuideModule(shapes, encoder, self)


class MixtureGuideModule(GuideModule):
    start: torch.Tensor

    def __init__(self, shapes: Shapes, encoder: Network, spec: MixtureGuide):
        self_outputs = spec.components * (2 * shapes.latent_dim + 1)
        super().__init__(shapes, encoder, self_outputs)
        self.components = spec.components
        # Equal components would stay equal.
        apart = spec.spread * torch.randn(spec.components, shapes.latent_dim)
        self.register_buffer("start", apart)

    def encode(self, x, given=None):
        dim, count = self.shapes.latent_dim, self.components
        loc, raw, logits = self.encoder(x).split([count * dim, count * dim, count], -1)
        scale = positive(raw.unflatten(-1, (count, dim)))
        return loc.unflatten(-1, (count, dim)) + self.start * scale, scale, logits

    def distribution(self, parameters):
        return dist.MixtureOfDiagNormals(*parameters)
