"""Relaxed codes: rows of the simplex close to its corners."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.simplex import held


class RelaxedRows(TorchDistribution):
    r"""L independent relaxed one-hot rows: z_l = softmax((a_l + g_l) / \tau), g ~ Gumbel.

        p(z) = \prod_l (C-1)! \tau^{C-1} \prod_c (e^{a_lc} z_lc^{-\tau-1}) /
               (\sum_c e^{a_lc} z_lc^{-\tau})^C

    with respect to Lebesgue's measure on the first C - 1 coordinates of each row. It is evaluated
    from log z; entries of draws below 1e-30 are held there, where torch's
    `RelaxedOneHotCategorical` draws zeros whose density is no number. P(z_c is largest) is
    softmax(a)_c at every temperature.

    Args:
        temperature: tau > 0. logits: `[..., L, C]`, a.
    References: Maddison et al., arXiv:1611.00712; Jang et al., arXiv:1611.01144.
    """

    arg_constraints: ClassVar = {"logits": constraints.independent(constraints.real_vector, 1)}
    support = constraints.independent(constraints.simplex, 1)
    has_rsample = True

    def __init__(self, temperature: float, logits: Tensor, validate_args=None):
        self.temperature = temperature
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-2], logits.shape[-2:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(RelaxedRows, _instance)
        new.temperature = self.temperature
        new.logits = self.logits.expand(torch.Size(batch_shape) + self.event_shape)
        super(RelaxedRows, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=()) -> Tensor:
        logits = self.logits.expand(self._extended_shape(sample_shape))
        tiny = torch.finfo(logits.dtype).tiny
        gumbel = -torch.empty_like(logits).exponential_().clamp_min(tiny).log()
        return held(((logits + gumbel) / self.temperature).softmax(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        count, tau, log_z = self.event_shape[-1], self.temperature, value.log()
        score = (self.logits - tau * log_z).log_softmax(-1) - log_z
        constant = math.lgamma(count) + (count - 1) * math.log(tau)
        return score.sum((-2, -1)) + self.event_shape[0] * constant
