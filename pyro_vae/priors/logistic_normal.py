"""The logistic-normal prior."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn

from pyro_vae.logistic_normal import LogisticNormal as Distribution
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class LogisticNormal(Prior, name="logistic_normal"):
    """p(z): z = softmax(h), h ~ N(m, diag s^2); by default close to a Dirichlet.

    Laplace's approximation to Dirichlet(a, ..., a), in the basis of the softmax: m = 0 and
    s^2 = (1 - 1/K) / a, a = `concentration` (ProdLDA, arXiv:1703.01488). Where `learned`, m and s
    begin there.
    """

    support = "simplex"
    fewest_dims = 2
    concentration: float = Field(default=1.0, gt=0)
    learned: bool = False

    def build(self, shapes: Shapes) -> PriorModule:
        return LogisticNormalModule(shapes, self)


class LogisticNormalModule(PriorModule):
    loc: Tensor
    log_scale: Tensor

    def __init__(self, shapes: Shapes, spec: LogisticNormal):
        super().__init__(shapes)
        count = shapes.latent_dim
        variance = (1 - 1 / count) / spec.concentration
        start = {
            "loc": torch.zeros(count),
            "log_scale": torch.full((count,), 0.5 * math.log(variance)),
        }
        for name, value in start.items():
            if spec.learned:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)

    def distribution(self, y=None):
        return Distribution(self.loc, self.log_scale.exp())
