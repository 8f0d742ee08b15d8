"""Counts with more zeros than a count distribution has."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

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
        return ZeroInflatedCounts(self.counts.pixels(rest, log_exposure), gate.double())

    def initialize(self, x):
        self.counts.initialize(x)

    def initial_output(self, x, exposure=None):
        zeros = (x == 0).float().mean(0).clamp(0.01, 0.99)
        return torch.stack([(0.5 * zeros).logit(), self.counts.initial_output(x, exposure)])


class ZeroInflatedCounts(TorchDistribution):
    """`counts` with probability 1 - sigmoid(`gate`), else 0.

    Pyro's own cannot be expanded once it was drawn from, and scores by another formula then.
    """

    arg_constraints: ClassVar = {}
    support = constraints.nonnegative_integer

    def __init__(self, counts, gate: Tensor):
        self.counts, self.gate = counts, gate
        shape = torch.broadcast_shapes(counts.batch_shape, gate.shape)
        super().__init__(shape, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        return ZeroInflatedCounts(self.counts.expand(batch_shape), self.gate.expand(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = logsigmoid(-self.gate) + self.counts.log_prob(value)
        zero = torch.logaddexp(logsigmoid(self.gate), log_prob)
        return torch.where(value == 0, zero, log_prob)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            drawn = self.counts.expand(self.batch_shape).sample(torch.Size(sample_shape))
            return torch.where(torch.rand_like(drawn) < self.gate.sigmoid(), 0.0, drawn)

    @property
    def mean(self) -> Tensor:
        return (-self.gate).sigmoid() * self.counts.mean
