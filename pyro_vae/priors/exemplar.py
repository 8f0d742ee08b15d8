"""The exemplar prior: a mixture of the guide's posteriors at training data."""

from __future__ import annotations

import copy

import torch
from pydantic import Field
from torch import Tensor

from pyro_vae.errors import RequestError
from pyro_vae.guides.base import GuideModule
from pyro_vae.mixture import Mixture
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class Exemplar(Prior, name="exemplar"):
    """p(z) = 1/C sum_c q(z | x_c), x_c of the training data; in training, for x, those unequal x.

    Exemplars are `components` random rows of the training data, kept with the weights. With the
    datum itself among them, each posterior would be its own prior (arXiv:2004.04795). A module in
    evaluation mode has them all. Data that get fresh noise in each batch equal no exemplar, so that
    nothing would be left out: binarization anew is refused, and dequantization anew must not be
    used. Raises: `RequestError` at `initialize`.
    """

    needs_guide_density = True
    leaves_out = True
    components: int = Field(default=500, ge=2)

    def build(self, shapes: Shapes) -> PriorModule:
        return ExemplarModule(shapes, self.components)


class ExemplarModule(PriorModule):
    guide: GuideModule
    exemplars: Tensor
    left_out: Tensor | None = None

    def __init__(self, shapes: Shapes, components: int):
        super().__init__(shapes)
        self.register_buffer("exemplars", torch.zeros(components, *shapes.seen))
        self.binary = False

    def bind(self, vae) -> None:
        self.refer("guide", vae.guide_module)
        self.binary = vae.likelihood.support == "binary"

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        if self.binary and not bool(((x == 0) | (x == 1)).all()):
            raise RequestError(
                "prior 'exemplar' leaves out what equals the datum, but these training data are "
                "grey under a likelihood of 0 and 1, to be binarized anew for each batch; binarize "
                "them once"
            )
        count = len(self.exemplars)
        rows = torch.randperm(len(x))[torch.arange(count) % len(x)]
        self.exemplars.copy_(x[rows.to(x.device)])

    def for_data(self, x: Tensor) -> ExemplarModule:
        if not self.training:
            return self
        other = copy.copy(self)  # the same tensors
        other.__dict__["left_out"] = x
        return other

    def distribution(self, y=None):
        logits = self.exemplars.new_zeros(len(self.exemplars))
        if self.left_out is not None:
            # How many numbers of a row differ from an exemplar's.
            apart = torch.cdist(self.left_out.flatten(1), self.exemplars.flatten(1), p=0.0)
            same = apart == 0
            # Where every exemplar equals the datum none can be left out.
            same = same & ~same.all(-1, keepdim=True)
            logits = logits.masked_fill(same, -torch.inf)
        return Mixture(logits, self.guide.top(self.exemplars))
