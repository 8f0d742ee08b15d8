"""Counts with more zeros than a count distribution has."""

from __future__ import annotations

from typing import Annotated, Any

import pyro.distributions as dist
import torch
from pydantic import model_validator

from pyro_vae.component import OneOf
from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes

FITS = ("poisson", "negative_binomial")


class ZeroInflated(Likelihood, name="zero_inflated"):
    """p(x|z) = prod_d g_d [x_d = 0] + (1 - g_d) f(x_d | z), g = sigmoid(decoder(z)) (Lambert 1992).

    `counts` is f: `poisson` or `negative_binomial`.
    """

    support = "count"
    counts: Annotated[Any, OneOf(Likelihood.registry)] = "poisson"

    @model_validator(mode="after")
    def _counts_fit(self):
        if self.counts.name not in FITS:
            raise ValueError(f"counts: '{self.counts.name}'; choices: {', '.join(FITS)}")
        return self

    def param_shape(self, data_shape):
        return (2, *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return ZeroInflatedModule(shapes, self.counts.build(shapes))


class ZeroInflatedModule(LikelihoodModule):
    support = "count"

    def __init__(self, shapes: Shapes, counts: LikelihoodModule):
        super().__init__(shapes)
        self.counts = counts

    def forward(self, outputs):
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # under autocast
        gate, rest = outputs.unbind(-len(self.shapes.data) - 1)
        pixels = self.counts(rest).base_dist
        return dist.ZeroInflatedDistribution(pixels, gate_logits=gate).to_event(
            len(self.shapes.data)
        )

    def initialize(self, x):
        self.counts.initialize(x)

    def initial_output(self, x):
        zeros = (x == 0).float().mean(0).clamp(0.01, 0.99)
        return torch.stack([(0.5 * zeros).logit(), self.counts.initial_output(x)])
