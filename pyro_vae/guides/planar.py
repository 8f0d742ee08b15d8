"""The planar flow guide."""

from __future__ import annotations

from pydantic import PositiveInt
from pyro.distributions.transforms.planar import ConditionedPlanar

from pyro_vae.guides.base import Guide, GuideModule
from pyro_vae.guides.flows import OwnSamplesModule
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class Planar(Guide, name="planar"):
    """z <- z + u tanh(w'z + b), `depth` times from a Gaussian; u, w, b of x (arXiv:1505.05770).

    u is moved so that w'u > -1, which keeps each step invertible.
    """

    density = "own samples"
    depth: PositiveInt = 4

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return PlanarModule(shapes, encoder, self.depth, 2 * shapes.latent_dim + 1)


class PlanarModule(OwnSamplesModule):
    def transforms(self, steps):
        dim = self.shapes.latent_dim
        for step in steps.unbind(-2):
            u, w, bias = step.split([dim, dim, 1], -1)
            yield ConditionedPlanar((bias, u, w))
