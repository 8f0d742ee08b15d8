"""A guide of couplings over an amortized Gaussian, whose density can be evaluated anywhere."""

from __future__ import annotations

import pyro.distributions as dist
from pydantic import PositiveInt

from pyro_vae.coupling import Coupling
from pyro_vae.guides.base import Guide, GuideModule
from pyro_vae.guides.mean_field import MeanFieldModule
from pyro_vae.monotone import Steps
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class CouplingGuide(Guide, name="coupling"):
    """z = f(u), u ~ N(m(x), diag s(x)^2), f of `depth` couplings (arXiv:1605.08803).

    f is the same for every x, so one inversion of z serves every component of a VampPrior.
    `steps`: affine maps, or rational-quadratic splines (arXiv:1906.04032).
    """

    depth: PositiveInt = 4
    hidden: PositiveInt = 128
    steps: Steps = "affine"

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return CouplingGuideModule(shapes, encoder, self)


class CouplingGuideModule(MeanFieldModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: CouplingGuide):
        super().__init__(shapes, encoder, 2 * shapes.latent_dim)
        self.flow = Coupling(
            shapes.latent_dim,
            depth=spec.depth,
            hidden=spec.hidden,
            steps=spec.steps,
            owner="guide 'coupling'",
        )

    def distribution(self, parameters):
        base = super().distribution(parameters)
        return dist.TransformedDistribution(base, [self.flow.bijection()])
