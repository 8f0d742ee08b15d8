"""Counts with more zeros than a count distribution has."""

from __future__ import annotations

from typing import Literal

import pyro.distributions as dist
import torch

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.counts import CountModule
from pyro_vae.part import Shapes


class ZeroInflated(Likelihood, name="zero_inflated"):
    """p(x|z) = prod_d g_d [x_d = 0] + (1 - g_d) f(x_d | z), (logit g, f's outputs) = decoder(z).

    Lambert, Technometrics 34 (1992). `counts` is f, with its exposure.
    """

    support = "count"
    takes_exposure = True
    counts: Literal["poisson", "negative_binomial"] = "poisson"

    def param_shape(self, data_shape):
        return (2, *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return ZeroInflatedModule(shapes, Likelihood.resolve(self.counts).build(shapes))


class ZeroInflatedModule(CountModule):
    def __init__(self, shapes: Shapes, counts: CountModule):
        super().__init__(shapes)
        self.counts = counts

    def pixels(self, outputs, log_exposure):
        gate, rest = self.channels(outputs)
        counts = self.counts.pixels(rest, log_exposure)
        return dist.ZeroInflatedDistribution(counts, gate_logits=gate.double())

    def initialize(self, x):
        self.counts.initialize(x)

    def initial_output(self, x, exposure=None):
        zeros = (x == 0).float().mean(0).clamp(0.01, 0.99)
        return torch.stack([(0.5 * zeros).logit(), self.counts.initial_output(x, exposure)])
