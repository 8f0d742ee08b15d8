"""The Dirichlet prior."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule
from pyro_vae.simplex import LEAST_CONCENTRATION
from pyro_vae.simplex import Dirichlet as Distribution


class Dirichlet(Prior, name="dirichlet"):
    """p(z) = Gamma(sum_k a_k) / prod_k Gamma(a_k) prod_k z_k^(a_k - 1), z in a simplex.

    Proportions of `latent_dim` topics (Blei et al. 2003, JMLR 3:993). `concentration` is every a_k,
    where `learned` their start, and above 0.1: there one entry in 1,000 is below 1e-30 and held
    there. `logistic_normal` has no such limit.
    """

    support = "simplex"
    fewest_dims = 2
    concentration: float = Field(default=1.0, gt=LEAST_CONCENTRATION)
    learned: bool = False

    def build(self, shapes: Shapes) -> PriorModule:
        return DirichletModule(shapes, self)


class DirichletModule(PriorModule):
    fixed: Tensor

    def __init__(self, shapes: Shapes, spec: Dirichlet):
        super().__init__(shapes)
        self.learned = spec.learned
        if spec.learned:
            above = math.log(spec.concentration - LEAST_CONCENTRATION)
            self.log_above = nn.Parameter(torch.full(shapes.latent, above))
        else:
            fixed = torch.full(shapes.latent, spec.concentration)
            self.register_buffer("fixed", fixed, persistent=False)

    def distribution(self, y=None):
        if self.learned:
            return Distribution(LEAST_CONCENTRATION + self.log_above.exp())
        return Distribution(self.fixed)
