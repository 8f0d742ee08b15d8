"""The relaxed one-hot prior."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule
from pyro_vae.relaxed_one_hot import RelaxedRows
from pyro_vae.simplex import LEAST_TEMPERATURE


class Relaxed(Prior, name="relaxed"):
    """p(z): L = latent_dim rows softmax((a_l + g) / tau) of C = `categories`, g ~ Gumbel.

    tau is `temperature`; the logits a are 0, or where `learned` begin there. The latent is the
    relaxed row itself and the decoder sees it, so log p(x) is that of the relaxed model and no
    bound on that of the discrete one (arXiv:1611.00712, arXiv:1611.01144).
    """

    support = "relaxed"
    categories: int = Field(default=10, ge=2)
    temperature: float = Field(default=0.5, ge=LEAST_TEMPERATURE)
    learned: bool = False

    def latent_shape(self, latent_dim):
        return (*super().latent_shape(latent_dim), self.categories)

    def build(self, shapes: Shapes) -> PriorModule:
        return RelaxedModule(shapes, self)


class RelaxedModule(PriorModule):
    logits: Tensor

    def __init__(self, shapes: Shapes, spec: Relaxed):
        super().__init__(shapes)
        self.temperature = spec.temperature
        if spec.learned:
            self.logits = nn.Parameter(torch.zeros(shapes.latent))
        else:
            self.register_buffer("logits", torch.zeros(shapes.latent), persistent=False)

    def distribution(self, y=None):
        return RelaxedRows(self.temperature, self.logits)
