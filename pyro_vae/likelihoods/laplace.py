"""The Laplace likelihood."""

from __future__ import annotations

import pyro.distributions as dist

from pyro_vae.likelihoods.base import LikelihoodModule
from pyro_vae.likelihoods.location_scale import LocationScale, LocationScaleModule
from pyro_vae.part import Shapes


class Laplace(LocationScale, name="laplace"):
    """p(x|z) = prod_d exp(-|x_d - loc_d| / b_d) / (2 b_d): "L1 loss" with its constants.

    b is `sigma` of `LocationScale`: the mean absolute deviation.
    """

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return LaplaceModule(shapes, self)


class LaplaceModule(LocationScaleModule):
    def density(self, loc, log_scale):
        return dist.Laplace(loc, log_scale.exp()).to_event(self.event_dim)

    def spread(self, deviation, dim):
        return deviation.abs().mean(dim)
