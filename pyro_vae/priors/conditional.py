"""A Gaussian for each label."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import nn

from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class Conditional(Prior, name="conditional"):
    """p(z|y) = N(z; m_y, diag s_y^2), learned for each label y (e.g. arXiv:1611.05148).

    With label `condition` it is the prior of a conditional VAE; with `cluster` a Gaussian mixture
    whose component is summed over. `spread` is the standard deviation of the initial means; scales
    stay above `min_scale`.
    """

    labelled = True
    spread: float = Field(default=1.0, ge=0)
    min_scale: float = Field(default=1e-2, gt=0)

    def build(self, shapes: Shapes) -> PriorModule:
        return ConditionalModule(shapes, self)


class ConditionalModule(PriorModule):
    def __init__(self, shapes: Shapes, spec: Conditional):
        super().__init__(shapes)
        self.min_scale = spec.min_scale
        self.loc = nn.Parameter(spec.spread * torch.randn(shapes.classes, *shapes.latent))
        self.log_scale = nn.Parameter(torch.zeros(shapes.classes, *shapes.latent))

    def distribution(self, y=None):
        scale = self.log_scale.exp() + self.min_scale
        return dist.Normal(self.loc[y], scale[y]).to_event(1)
