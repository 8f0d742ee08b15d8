"""A learned mixture of diagonal Gaussians."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from torch import nn

from pyro_vae.mixture import Mixture
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class GaussianMixture(Prior, name="gaussian_mixture"):
    """p(z) = sum_c pi_c N(z; m_c, diag s_c^2), all learned (e.g. arXiv:1611.02648).

    `spread` is the standard deviation of the initial means; scales stay above `min_scale`.
    """

    components: PositiveInt = 10
    spread: float = Field(default=1.0, ge=0)
    min_scale: float = Field(default=1e-2, gt=0)

    def build(self, shapes: Shapes) -> PriorModule:
        return GaussianMixtureModule(shapes, self)


class GaussianMixtureModule(PriorModule):
    def __init__(self, shapes: Shapes, spec: GaussianMixture):
        super().__init__(shapes)
        self.min_scale = spec.min_scale
        self.logits = nn.Parameter(torch.zeros(spec.components))
        self.loc = nn.Parameter(spec.spread * torch.randn(spec.components, *shapes.latent))
        self.log_scale = nn.Parameter(torch.zeros(spec.components, *shapes.latent))

    def distribution(self, y=None):
        scale = self.log_scale.exp() + self.min_scale
        return Mixture(self.logits, dist.Normal(self.loc, scale).to_event(1))
