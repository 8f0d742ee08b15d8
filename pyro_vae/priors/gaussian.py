"""A Gaussian prior with learned moments."""

from __future__ import annotations

import math
from typing import Literal

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Tensor, nn

from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class Gaussian(Prior, name="gaussian"):
    """p(z) = N(z; m, S), learned; S is `diagonal` or `full`, and begins as the identity.

    Decoders that begin with a linear layer can take up m and S themselves; others, and guides of
    limited families, are served by it. Scales stay above `min_scale`.
    """

    covariance: Literal["diagonal", "full"] = "diagonal"
    min_scale: float = Field(default=1e-2, gt=0, lt=1)

    def build(self, shapes: Shapes) -> PriorModule:
        if self.covariance == "full" and shapes.latent_dim > 1:
            return FullGaussianModule(shapes, self.min_scale)
        return GaussianModule(shapes, self.min_scale)


class GaussianModule(PriorModule):
    def __init__(self, shapes: Shapes, min_scale: float):
        super().__init__(shapes)
        self.min_scale = min_scale
        self.loc = nn.Parameter(torch.zeros(shapes.latent_dim))
        self.log_scale = nn.Parameter(torch.full((shapes.latent_dim,), math.log(1 - min_scale)))

    @property
    def scale(self) -> Tensor:
        return self.log_scale.exp() + self.min_scale

    def distribution(self, y=None):
        return dist.Normal(self.loc, self.scale).to_event(1)


class FullGaussianModule(GaussianModule):
    """S = T T', T lower triangular; its rows scale with its diagonal."""

    rows: Tensor
    columns: Tensor

    def __init__(self, shapes: Shapes, min_scale: float):
        super().__init__(shapes, min_scale)
        rows, columns = torch.tril_indices(shapes.latent_dim, shapes.latent_dim, -1)
        self.below = nn.Parameter(torch.zeros(len(rows)))
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def distribution(self, y=None):
        tril = torch.diag_embed(self.scale)
        tril[self.rows, self.columns] = self.below * self.scale[self.rows]
        return dist.MultivariateNormal(self.loc, scale_tril=tril)
