"""The continuous Bernoulli likelihood for values in [0, 1]."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class ContinuousBernoulli(Likelihood, name="continuous_bernoulli"):
    """p(x|z) = prod_d C(p_d) p_d^x_d (1 - p_d)^(1 - x_d), x in [0, 1] (arXiv:1907.06845).

    C(p) = 2 artanh(1 - 2p) / (1 - 2p), at least 2: without it, as grey values under a Bernoulli
    are scored by habit, this is no density. The mean is not p.
    """

    support = "unit"

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return ContinuousBernoulliModule(shapes)


class ContinuousBernoulliModule(LikelihoodModule):
    support = "unit"

    def forward(self, outputs):
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # under autocast
        return dist.ContinuousBernoulli(logits=outputs).to_event(len(self.shapes.data))

    def initial_output(self, x):
        # The mean runs from 0 to 1 with the logit l as 1/(1 - e^-l) - 1/l; near 1/2 by l/12.
        return 12 * (x.float().mean(0).clamp(0.1, 0.9) - 0.5)
