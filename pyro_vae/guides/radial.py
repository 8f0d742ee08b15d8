"""The radial flow guide."""

from __future__ import annotations

from pydantic import PositiveInt
from pyro.distributions.transforms.radial import ConditionedRadial

from pyro_vae.guides.base import Guide, GuideModule
from pyro_vae.guides.flows import OwnSamplesModule
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class Radial(Guide, name="radial"):
    """z <- z + b (z - c) / (a + |z - c|), `depth` times from a Gaussian; a, b, c of x.

    arXiv:1505.05770; b > -a keeps each step invertible.
    """

    density = "own samples"
    depth: PositiveInt = 4

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return RadialModule(shapes, encoder, self.depth, shapes.latent_dim + 2)


class RadialModule(OwnSamplesModule):
    def transforms(self, steps):
        for step in steps.unbind(-2):
            center, alpha, beta = step.split([self.shapes.latent_dim, 1, 1], -1)
            yield ConditionedRadial((center, alpha, beta))
