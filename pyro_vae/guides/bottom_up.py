"""The guide of a hierarchy that infers each level from the one below."""

from __future__ import annotations

from typing import Annotated, Any

import pyro.distributions as dist
from torch import nn

from pyro_vae.component import OneOf
from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.levels import names
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class BottomUp(Guide, name="bottom_up"):
    """q(z|x) = q(z_1|x) prod_{l>1} q(z_l | z_{l-1}), diagonal Gaussians (arXiv:1509.00519).

    `network` makes each level from the one below; the encoder makes the first. q(z_M|x) has no
    closed form, so that a VampPrior on top does not fit.
    """

    levels = "many"
    knows_top = False
    network: Annotated[Any, OneOf(Network.registry)] = "mlp"

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return BottomUpModule(shapes, encoder, self)


class BottomUpModule(GuideModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: BottomUp):
        super().__init__(shapes, encoder, 2 * shapes.levels[0])
        pairs = zip(shapes.levels[:-1], shapes.levels[1:], strict=True)
        self.above = nn.ModuleList(
            spec.network.make((below,), (2 * above,)) for below, above in pairs
        )
        for net in self.above:  # levels begin near N(0, I)
            net.shrink_outputs()  # type: ignore[operator]

    def encode(self, x, given=None):
        loc, raw = self.encoder(x).chunk(2, -1)
        return loc, positive(raw)

    def steps(self, parameters):
        sites = names(self.shapes.levels)
        found: list = [(sites[0], lambda drawn: dist.Normal(*parameters).to_event(1))]
        for level, network in enumerate(self.above):

            def step(drawn, level=level, network=network):
                loc, raw = network(drawn[sites[level]]).chunk(2, -1)
                return dist.Normal(loc, positive(raw)).to_event(1)

            found.append((sites[level + 1], step))
        return found
