"""The categorical prior of discrete codes."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from pyro_vae.one_hot import OneHotRows
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class Categorical(Prior, name="categorical"):
    """p(z) = prod_l pi_l'z_l: codes of L = latent_dim one-hot rows of C = `categories`.

    pi is uniform, or where `learned` begins so. One row is a mixture of C clusters.
    """

    support = "one_hot"
    categories: int = Field(default=10, ge=2)
    learned: bool = False

    def latent_shape(self, latent_dim):
        return (*super().latent_shape(latent_dim), self.categories)

    def build(self, shapes: Shapes) -> PriorModule:
        return CategoricalModule(shapes, self)


class CategoricalModule(PriorModule):
    logits: Tensor

    def __init__(self, shapes: Shapes, spec: Categorical):
        super().__init__(shapes)
        if spec.learned:
            self.logits = nn.Parameter(torch.zeros(shapes.latent))
        else:
            self.register_buffer("logits", torch.zeros(shapes.latent), persistent=False)

    def distribution(self, y=None):
        return OneHotRows(self.logits)
