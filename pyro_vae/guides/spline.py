"""The autoregressive neural spline guide."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from pyro_vae.autoregressive import Autoregressive
from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.monotone import RationalQuadraticSpline
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class Spline(Guide, name="spline"):
    """z = m(x) + s(x) f(u; h(x)), u ~ N(0, I), f of `depth` autoregressive splines.

    Rational-quadratic splines of `bins` pieces on [-`bound`, `bound`], the identity beyond
    (arXiv:1906.04032). Sampling is parallel; a density elsewhere is found one dimension at a time.
    """

    density = "sequential"
    depth: PositiveInt = 2
    hidden: tuple[PositiveInt, ...] = (200,)
    context: PositiveInt = 64
    bins: int = Field(default=8, ge=2, le=200)
    bound: float = Field(default=5.0, gt=0)

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return SplineModule(shapes, encoder, self)


class SplineModule(GuideModule):
    zero: Tensor

    def __init__(self, shapes: Shapes, encoder: Network, spec: Spline):
        dim = shapes.latent_dim
        super().__init__(shapes, encoder, 2 * dim + spec.context)
        self.sizes = [dim, dim, spec.context]
        self.flow = Autoregressive(
            dim,
            depth=spec.depth,
            hidden=spec.hidden,
            step=RationalQuadraticSpline(spec.bins, spec.bound),
            context=spec.context,
            owner="guide 'spline'",
        )
        self.register_buffer("zero", torch.zeros(dim), persistent=False)

    def encode(self, x, given=None):
        loc, raw, context = self.encoder(x).split(self.sizes, -1)
        return loc, positive(raw), context

    def distribution(self, parameters):
        loc, scale, context = parameters
        base = dist.Normal(self.zero.expand_as(loc), torch.ones_like(loc)).to_event(1)
        # Each remembers its last draw: without that, its density would be found by inverting.
        place = dist.transforms.AffineTransform(loc, scale, event_dim=1, cache_size=1)
        return dist.TransformedDistribution(base, [self.flow.bijection(context), place])
