"""A normalizing flow as prior."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from torch import Tensor

from pyro_vae.coupling import Coupling, Steps
from pyro_vae.errors import SpecError
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class Flow(Prior, name="flow"):
    """p(z) of z = f(u), u ~ N(0, I), f of `depth` couplings (arXiv:1611.02731, arXiv:1605.08803).

    Draws and densities are both parallel. It begins as N(0, I). `steps`: affine, or
    rational-linear splines (arXiv:1906.04032).
    """

    depth: PositiveInt = 4
    hidden: PositiveInt = 128
    steps: Steps = "affine"

    def build(self, shapes: Shapes) -> PriorModule:
        if shapes.latent_dim < 2:
            raise SpecError(
                "prior 'flow' needs 2 or more latents, one half to move the other; got "
                f"{shapes.latent_dim}"
            )
        return FlowModule(shapes, self)


class FlowModule(PriorModule):
    loc: Tensor

    def __init__(self, shapes: Shapes, spec: Flow):
        super().__init__(shapes)
        self.flow = Coupling(shapes.latent_dim, spec.depth, spec.hidden, spec.steps)
        self.register_buffer("loc", torch.zeros(shapes.latent_dim), persistent=False)

    def distribution(self, y=None):
        base = dist.Normal(self.loc, 1.0).to_event(1)
        return dist.TransformedDistribution(base, [self.flow.transform()])
