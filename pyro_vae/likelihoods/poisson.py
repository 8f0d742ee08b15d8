"""The Poisson likelihood for counts."""

from __future__ import annotations

import pyro.distributions as dist

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.counts import CountModule
from pyro_vae.part import Shapes


class Poisson(Likelihood, name="poisson"):
    """p(x|z) = prod_d Poisson(x_d; e r_d), log r = decoder(z), exposure e (1 unless given)."""

    support = "count"
    takes_exposure = True

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return PoissonModule(shapes)


class PoissonModule(CountModule):
    def pixels(self, outputs, log_exposure):
        return dist.Poisson(self.log_rate(outputs, log_exposure).exp())
