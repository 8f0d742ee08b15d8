"""The VampPrior: a mixture of the guide's posteriors at learned pseudo-inputs."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from pyro_vae.guides.base import GuideModule
from pyro_vae.mixture import Mixture
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule

BOUNDED = ("binary", "levels", "unit", "inside")  # likelihoods of values in [0, 1]


class VampPrior(Prior, name="vamp"):
    """p(z) = 1/K sum_k q(z | u_k), learned pseudo-inputs u_k (arXiv:1705.07120).

    `init`: pseudo-inputs start at random training data (`data`) or at N(0.5, 0.1) noise.
    Under a likelihood of values within [0, 1] they pass through hardtanh to [0, 1], as in the
    paper; under one of real values they are free, wherever the data lie.
    """

    needs_guide_density = True
    components: PositiveInt = 500
    init: Literal["data", "noise"] = "data"

    def build(self, shapes: Shapes) -> PriorModule:
        return VampPriorModule(shapes, self)


class VampPriorModule(PriorModule):
    guide: GuideModule
    logits: Tensor

    def __init__(self, shapes: Shapes, spec: VampPrior):
        super().__init__(shapes)
        self.init = spec.init
        self.pseudo_inputs = nn.Parameter(0.5 + 0.1 * torch.randn(spec.components, *shapes.seen))
        self.register_buffer("logits", torch.zeros(spec.components), persistent=False)
        self.bounded = False

    def bind(self, vae) -> None:
        self.refer("guide", vae.guide_module)
        self.bounded = vae.likelihood.support in BOUNDED

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        if self.init == "data":
            count = len(self.pseudo_inputs)
            rows = torch.randperm(len(x))[torch.arange(count) % len(x)]
            start = x[rows.to(x.device)].to(self.pseudo_inputs)
            # Where data repeat, noise lets pseudo-inputs part: equal ones would stay equal.
            unit = 1.0 if self.bounded else start.std(correction=0)
            start = start + 0.01 * unit * torch.randn_like(start)
            # Off the bounds a little: at exactly 0 or 1 hardtanh may stop the gradient.
            self.pseudo_inputs.copy_(start.clamp(0.01, 0.99) if self.bounded else start)

    def distribution(self, y=None):
        inputs = self.pseudo_inputs.clamp(0, 1) if self.bounded else self.pseudo_inputs
        return Mixture(self.logits, self.guide.top(inputs))
