"""The inverse autoregressive flow guide."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from pyro.distributions.transforms import ConditionalAffineAutoregressive, Permute
from pyro.nn import ConditionalAutoRegressiveNN
from torch import nn

from pyro_vae.errors import SpecError
from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class IAF(Guide, name="iaf"):
    """z = f_T(...f_1(z_0; h)...; h), z_0 ~ N(m(x), diag s(x)^2), h = h(x) (arXiv:1606.04934).

    Each f_t is affine and autoregressive, with the gated update of the paper
    (z <- g z + (1 - g) m, g = sigmoid); the order of dimensions is reversed between steps.
    Sampling is parallel; a density at another point is found one dimension at a time.
    """

    density = "sequential"
    depth: PositiveInt = 2
    hidden: tuple[PositiveInt, ...] = (200,)
    context: PositiveInt = 64

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        if not 2 <= shapes.latent_dim <= min(self.hidden, default=0):
            raise SpecError(
                f"guide 'iaf' needs 2 or more latents and hidden layers at least as wide; got "
                f"{shapes.latent_dim} latents and hidden {self.hidden}"
            )
        return IAFModule(shapes, encoder, self)


class IAFModule(GuideModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: IAF):
        dim = shapes.latent_dim
        super().__init__(shapes, encoder, 2 * dim + spec.context)
        self.sizes = [dim, dim, spec.context]
        order: Any = torch.arange(dim)  # without one, Pyro draws an order at random
        self.flows = nn.ModuleList(
            ConditionalAffineAutoregressive(
                ConditionalAutoRegressiveNN(
                    dim, spec.context, list(spec.hidden), permutation=order.clone()
                ),
                stable=True,
            )
            for _ in range(spec.depth)
        )
        self.register_buffer("reverse", order.flip(0), persistent=False)

    def encode(self, x, given=None):
        loc, raw, context = self.encoder(x).split(self.sizes, -1)
        return loc, positive(raw), context

    def distribution(self, parameters):
        loc, scale, context = parameters
        transforms: list = []
        for flow in self.flows:
            transforms += [flow, Permute(self.reverse)]
        base = dist.Normal(loc, scale).to_event(1)
        return dist.ConditionalTransformedDistribution(base, transforms[:-1]).condition(context)
