"""A learned flow as a prior."""

from __future__ import annotations

from typing import Literal

import pyro.distributions as dist
from pydantic import PositiveInt

from pyro_vae.autoregressive import Autoregressive
from pyro_vae.coupling import Coupling
from pyro_vae.monotone import Steps, monotone
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule
from pyro_vae.priors.standard_normal import StandardNormalModule


class Flow(Prior, name="flow"):
    """p(z) of z = f(u), u ~ N(0, I), f learned, of `depth` steps; N(0, I) at the start.

    `kind`: `coupling` (arXiv:1605.08803), or `autoregressive` with a parallel density, whose draws
    are made one dimension at a time (arXiv:1611.02731, arXiv:1705.07057). `steps`: affine maps, or
    rational-quadratic splines (arXiv:1906.04032). Networks have two layers of `hidden`.
    """

    kind: Literal["coupling", "autoregressive"] = "coupling"
    depth: PositiveInt = 4
    hidden: PositiveInt = 128
    steps: Steps = "affine"

    def build(self, shapes: Shapes) -> PriorModule:
        return FlowModule(shapes, self)


class FlowModule(PriorModule):
    flow: Coupling | Autoregressive

    def __init__(self, shapes: Shapes, spec: Flow):
        super().__init__(shapes)
        self.base = StandardNormalModule(shapes)
        dim, owner = shapes.latent_dim, "prior 'flow'"
        if spec.kind == "coupling":
            self.flow = Coupling(
                dim, depth=spec.depth, hidden=spec.hidden, steps=spec.steps, owner=owner
            )
        else:
            self.flow = Autoregressive(
                dim,
                depth=spec.depth,
                hidden=(spec.hidden, spec.hidden),
                step=monotone(spec.steps),
                owner=owner,
            )

    def distribution(self, y=None):
        forth = self.flow.bijection()
        # The autoregressive way forth is parallel: it is what densities need.
        drawn = forth.inv if isinstance(self.flow, Autoregressive) else forth
        return dist.TransformedDistribution(self.base.distribution(y), [drawn])
