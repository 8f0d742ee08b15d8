"""The continuous Bernoulli likelihood for values in [0, 1]."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class ContinuousBernoulli(Likelihood, name="continuous_bernoulli"):
    """p(x|z) = prod_d C(p_d) p_d^x_d (1 - p_d)^(1 - x_d), x in [0, 1] (arXiv:1907.06845).

    C(p) = 2 artanh(1 - 2p) / (1 - 2p), at least 2: without it, as grey values under a Bernoulli
    are scored by habit, this is no density. p = sigmoid(decoder(z)) is not the mean.
    """

    support = "unit"

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return ContinuousBernoulliModule(shapes)


class ContinuousBernoulliModule(LikelihoodModule):
    support = "unit"

    def forward(self, outputs):
        return ContinuousBernoulliPixels(self.precise(outputs)).to_event(self.event_dim)

    def initial_output(self, x):
        # The mean as a function of the logit has slope 1/12 at 1/2.
        return 12 * (x.float().mean(0).clamp(0.1, 0.9) - 0.5)


class ContinuousBernoulliPixels(TorchDistribution):
    """log p(x) = (x - 1/2) l - log(sinh(l/2) / (l/2)) in terms of the logit l.

    The same density: C(p) sqrt(p (1 - p)) = (l/2) / sinh(l/2). It is smooth at l = 0, symmetric and
    of small terms, where torch's own, written in p, has p rounded to 1 from l = 17 on.
    """

    arg_constraints: ClassVar = {"logits": constraints.real}
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, validate_args=None):
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(ContinuousBernoulliPixels, _instance)
        new.logits = self.logits.expand(batch_shape)
        super(ContinuousBernoulliPixels, new).__init__(torch.Size(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value - 0.5) * self.logits - _log_sinhc(0.5 * self.logits)

    def sample(self, sample_shape=()) -> Tensor:
        """By the inverse of F(x) = (e^(l x) - 1) / (e^l - 1), for l < 0: l > 0 is its mirror."""
        with torch.no_grad():
            size = self.logits.abs().clamp_min(1e-6)  # below, uniform
            u = torch.rand_like(size.expand(self._extended_shape(sample_shape)))
            x = (torch.log1p(u * torch.expm1(-size)) / -size).clamp(0, 1)
            return torch.where(self.logits > 0, 1 - x, x)

    @property
    def mean(self) -> Tensor:
        """1/2 + (coth(l/2) - 2/l) / 2."""
        half = 0.5 * self.logits
        near = half.abs() < 0.1
        far = torch.where(near, 1.0, half)
        series = half / 3 - half**3 / 45 + 2 * half**5 / 945
        return 0.5 + 0.5 * torch.where(near, series, 1 / far.tanh() - 1 / far)


def _log_sinhc(a: Tensor) -> Tensor:
    """log(sinh(a) / a), which is even in a."""
    near = a.abs() < 0.3
    far = torch.where(near, 1.0, a.abs())
    square = torch.where(near, a, 0.0).square()
    series = torch.zeros_like(a)
    for term in (1 / 467775, -1 / 37800, 1 / 2835, -1 / 180, 1 / 6):  # the next is below 1e-13
        series = square * (series + term)
    # sinh(a) = e^a (1 - e^-2a) / 2
    return torch.where(near, series, far + torch.log1p(-(-2 * far).exp()) - far.log() - math.log(2))
