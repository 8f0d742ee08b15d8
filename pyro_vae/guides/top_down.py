"""Guides of a hierarchy that infer from the top down, with or without the prior's own word."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any

import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from torch import nn

from pyro_vae.component import OneOf
from pyro_vae.errors import SpecError
from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.levels import names
from pyro_vae.networks.base import Network, dense
from pyro_vae.part import Shapes


class TopDown(Guide, name="top_down"):
    """q(z|x) = q(z_M|x) prod_{l<M} q(z_l | z_{l+1}, x), diagonal Gaussians (arXiv:1602.02282).

    The encoder makes features d_1 of `width` numbers, a layer of `width` each further d_l. q(z_M|x)
    is a head of d_M; below it a network of (d_l, z_{l+1}) makes q(z_l | z_{l+1}, x).
    """

    levels = "many"
    width: PositiveInt = 100
    network: Annotated[Any, OneOf(Network.registry)] = "mlp"

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return TopDownModule(shapes, encoder, self)


class TopDownModule(GuideModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: TopDown | Ladder):
        super().__init__(shapes, encoder, spec.width)
        count = len(shapes.levels)
        self.up = nn.ModuleList(dense(spec.width, spec.width) for _ in range(count - 1))
        self.head = dense(spec.width, 2 * shapes.levels[-1])
        self.down = nn.ModuleList(self.make_down(shapes, spec))

    def make_down(self, shapes: Shapes, spec) -> list[nn.Module]:
        nets = [
            spec.network.make((spec.width + above,), (2 * level,))
            for level, above in pairwise(shapes.levels)
        ]
        for net in nets:  # levels begin near N(0, I)
            net.shrink_outputs()
        return nets

    def encode(self, x, given=None):
        features = [self.encoder(x).tanh()]
        for layer in self.up:
            features.append(layer(features[-1]).tanh())
        return tuple(features)

    def merged(self, level: int, features, above) -> dist.Normal:
        """q(z_level | z_above, x), by index from 0."""
        shape = torch.broadcast_shapes(features.shape[:-1], above.shape[:-1])
        both = [part.expand(*shape, -1) for part in (features, above)]
        loc, raw = self.down[level](torch.cat(both, -1)).chunk(2, -1)
        return dist.Normal(loc, positive(raw))

    def top_level(self, features):
        loc, raw = self.head(features[-1]).chunk(2, -1)
        return dist.Normal(loc, positive(raw)).to_event(1)

    def top(self, x):
        return self.top_level(self.encode(x))

    def steps(self, parameters):
        sites = names(self.shapes.levels)
        found: list = [(sites[-1], lambda drawn: self.top_level(parameters))]
        for level in reversed(range(len(sites) - 1)):

            def step(drawn, level=level):
                return self.merged(level, parameters[level], drawn[sites[level + 1]]).to_event(1)

            found.append((sites[level], step))
        return found


class Ladder(Guide, name="ladder"):
    """Top down, where q(z_l | z_{l+1}, x) is what x says and what the prior says, multiplied.

        q(z_l | z_{l+1}, x) ~ N(z_l; m^_l(d_l), s^_l(d_l)^2) p(z_l | z_{l+1})

    a product of Gaussians, so precisions add (ladder VAE, arXiv:1602.02282, eqs. 17-20). Needs a
    prior whose levels are Gaussian given the one above.
    """

    levels = "many"
    width: PositiveInt = 100

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return LadderModule(shapes, encoder, self)


class LadderModule(TopDownModule):
    prior: Any

    def make_down(self, shapes, spec):
        return [dense(spec.width, 2 * level) for level in shapes.levels[:-1]]

    def bind(self, vae) -> None:
        if not hasattr(vae.prior, "given_above"):
            raise SpecError(
                f"guide 'ladder' multiplies by Gaussians p(z_l | z_(l+1)), which prior "
                f"'{vae.spec.prior.name}' does not offer; guides that fit: bottom_up, top_down"
            )
        self.refer("prior", vae.prior)

    def merged(self, level, features, above):
        loc, raw = self.down[level](features).chunk(2, -1)
        ours = positive(raw).square().reciprocal()
        prior = self.prior.given_above(level, above)
        theirs = prior.scale.square().reciprocal()
        precision = ours + theirs
        merged = (ours * loc + theirs * prior.loc) / precision
        return dist.Normal(merged, precision.rsqrt())
