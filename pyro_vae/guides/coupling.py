"""A guide whose density can be evaluated anywhere: couplings over an amortized Gaussian."""

from __future__ import annotations

import pyro.distributions as dist
from pydantic import PositiveInt

from pyro_vae.coupling import Coupling, Steps
from pyro_vae.errors import SpecError
from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class CouplingGuide(Guide, name="coupling"):
    """z = f(u), u ~ N(m(x), diag s(x)^2), f of `depth` couplings (arXiv:1605.08803).

    f is the same for every x, so one inversion of z serves every component of a VampPrior.
    `steps`: affine, or rational-linear splines (arXiv:1906.04032).
    """

    depth: PositiveInt = 4
    hidden: PositiveInt = 128
    steps: Steps = "affine"

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        if shapes.latent_dim < 2:
            raise SpecError(
                "guide 'coupling' needs 2 or more latents, one half to move the other; got "
                f"{shapes.latent_dim}"
            )
        return CouplingGuideModule(shapes, encoder, self)


class CouplingGuideModule(GuideModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: CouplingGuide):
        super().__init__(shapes, encoder, 2 * shapes.latent_dim)
        self.flow = Coupling(shapes.latent_dim, spec.depth, spec.hidden, spec.steps)

    def encode(self, x, given=None):
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, positive(raw)

    def distribution(self, parameters):
        base = dist.Normal(*parameters).to_event(1)
        return dist.TransformedDistribution(base, [self.flow.transform()])
