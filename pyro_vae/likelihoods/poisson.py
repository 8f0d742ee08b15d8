"""The Poisson likelihood for counts."""

from __future__ import annotations

import pyro.distributions as dist
import torch

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes

MOST = 20.0  # of a log rate: e^20 counts


class Poisson(Likelihood, name="poisson"):
    """p(x|z) = prod_d Poisson(x_d; e r_d), log r = decoder(z), exposure e (1 unless given)."""

    support = "count"

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return PoissonModule(shapes)


class PoissonModule(LikelihoodModule):
    support = "count"

    def forward(self, outputs):
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # under autocast
        rate = outputs.clamp(-MOST, MOST).exp()
        return dist.Poisson(rate).to_event(len(self.shapes.data))

    def initial_output(self, x):
        return x.float().mean(0).clamp_min(1e-3).log()
