"""The negative binomial likelihood for counts that vary more than Poisson ones."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import nn

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.counts import CountModule
from pyro_vae.part import Shapes

MOST = 10.0  # of |log t|


class NegativeBinomial(Likelihood, name="negative_binomial"):
    """p(x|z) = prod_d NB(x_d; mean e m_d, variance e m_d + (e m_d)^2 / t_d), log m = decoder(z).

    A Poisson whose rate is Gamma distributed; t, one learned number a dimension, is its shape, and
    e the exposure (1 unless given), as for gene counts (Lopez et al. 2018, Nature Methods 15).
    """

    support = "count"
    takes_exposure = True

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return NegativeBinomialModule(shapes)


class NegativeBinomialModule(CountModule):
    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.log_shape = nn.Parameter(torch.zeros(shapes.data))

    def pixels(self, outputs, log_exposure):
        log_shape = self.bounded(self.log_shape, -MOST, MOST).double()
        # The log odds of one more count are log e m - log t.
        log_odds = self.log_rate(outputs, log_exposure) - log_shape
        return dist.NegativeBinomial(log_shape.exp(), logits=log_odds)

    @torch.no_grad()
    def initialize(self, x):
        # Var = m + m^2 / t
        mean = x.mean(0).clamp_min(1e-3)
        over = (x.var(0, correction=0) - mean).clamp_min(1e-2 * mean)
        self.log_shape.copy_((mean.square() / over).clamp(1e-2, 1e2).log())
