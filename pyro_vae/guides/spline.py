"""The autoregressive neural spline guide."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from pyro.distributions.transforms import ConditionalSplineAutoregressive, Permute
from pyro.nn import ConditionalAutoRegressiveNN
from torch import nn

from pyro_vae.errors import SpecError
from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class Spline(Guide, name="spline"):
    """u ~ N(0, I) through autoregressive rational-linear splines given h(x), then m(x) + s(x) u.

    Splines of `bins` pieces on [-`bound`, `bound`], the identity beyond (arXiv:1906.04032,
    arXiv:2001.05168). Sampling is parallel; a density elsewhere is found one dimension at a time.
    """

    density = "sequential"
    depth: PositiveInt = 2
    hidden: tuple[PositiveInt, ...] = (200,)
    context: PositiveInt = 64
    bins: int = Field(default=8, ge=2)
    bound: float = Field(default=4.0, gt=0)

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        if not 2 <= shapes.latent_dim <= min(self.hidden, default=0):
            raise SpecError(
                f"guide 'spline' needs 2 or more latents and hidden layers at least as wide; got "
                f"{shapes.latent_dim} latents and hidden {self.hidden}"
            )
        return SplineModule(shapes, encoder, self)


class SplineModule(GuideModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: Spline):
        dim = shapes.latent_dim
        super().__init__(shapes, encoder, 2 * dim + spec.context)
        self.sizes = [dim, dim, spec.context]
        order: Any = torch.arange(dim)  # without one, Pyro draws an order at random
        bins = spec.bins
        self.flows = nn.ModuleList(
            ConditionalSplineAutoregressive(
                dim,
                ConditionalAutoRegressiveNN(
                    dim,
                    spec.context,
                    list(spec.hidden),
                    param_dims=[bins, bins, bins - 1, bins],
                    permutation=order.clone(),
                ),
                count_bins=bins,
                bound=spec.bound,
            )
            for _ in range(spec.depth)
        )
        self.register_buffer("reverse", order.flip(0), persistent=False)
        self.register_buffer("zero", torch.zeros(dim), persistent=False)

    def encode(self, x, given=None):
        loc, raw, context = self.encoder(x).split(self.sizes, -1)
        return loc, positive(raw), context

    def distribution(self, parameters):
        loc, scale, context = parameters
        transforms: list = []
        for flow in self.flows:
            transforms += [flow.condition(context), Permute(self.reverse)]
        transforms[-1] = dist.transforms.AffineTransform(loc, scale, event_dim=1)
        base = dist.Normal(self.zero.expand_as(loc), 1.0).to_event(1)
        return dist.TransformedDistribution(base, transforms)
