"""Levels of latents, each Gaussian given the one above."""

from __future__ import annotations

import copy
from typing import Annotated, Any

import pyro.distributions as dist
from pydantic import model_validator
from torch import nn

from pyro_vae.component import OneOf
from pyro_vae.guides.base import positive
from pyro_vae.levels import names
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior, PriorModule


class Hierarchical(Prior, name="hierarchical"):
    """p(z) = p(z_M) prod_{l<M} N(z_l; m_l(z_{l+1}), diag s_l(z_{l+1})^2) (arXiv:1401.4082).

    z_1, the level next to the data, has the first length of `latent_dim`. `top` is p(z_M), of one
    level. `network` makes m_l and log s_l. The decoder sees z_1, with `skip` all levels.
    """

    levels = "many"
    top: Annotated[Any, OneOf(Prior.registry)] = "standard_normal"
    network: Annotated[Any, OneOf(Network.registry)] = "mlp"
    skip: bool = False

    @model_validator(mode="after")
    def _top_fits(self):
        if self.top.levels != "one" or self.top.support != "real" or self.top.labelled:
            raise ValueError(
                f"top: '{self.top.name}'; expected a prior of one level of real latents without a "
                "label, such as standard_normal, gaussian_mixture or vamp"
            )
        return self

    @property
    def needs_guide_density(self) -> bool:  # type: ignore[override]
        return self.top.needs_guide_density

    @property
    def leaves_out(self) -> bool:  # type: ignore[override]
        return self.top.leaves_out

    def build(self, shapes: Shapes) -> PriorModule:
        return HierarchicalModule(shapes, self)


class HierarchicalModule(PriorModule):
    def __init__(self, shapes: Shapes, spec: Hierarchical):
        super().__init__(shapes)
        self.skip = spec.skip
        top = Shapes(shapes.data, shapes.levels[-1:], seen=shapes.seen, classes=shapes.classes)
        self.top = spec.top.build(top)
        pairs = zip(shapes.levels[:-1], shapes.levels[1:], strict=True)
        self.below = nn.ModuleList(
            spec.network.make((above,), (2 * below,)) for below, above in pairs
        )
        for net in self.below:  # levels begin near N(0, I)
            net.shrink_outputs()  # type: ignore[operator]

    def bind(self, vae) -> None:
        self.top.bind(vae)

    def initialize(self, x) -> None:
        self.top.initialize(x)

    def for_data(self, x):
        other = copy.copy(self)
        other._modules = {**self._modules, "top": self.top.for_data(x)}
        return other

    @property
    def decoded(self):
        return self.shapes.latent if self.skip else self.shapes.levels[:1]

    def handed(self, z):
        return z if self.skip else z[..., : self.shapes.levels[0]]

    def given_above(self, level: int, above) -> dist.Normal:
        """p(z_level | z_above), by index from 0."""
        loc, raw = self.below[level](above).chunk(2, -1)
        return dist.Normal(loc, positive(raw))

    def steps(self, y=None):
        sites = names(self.shapes.levels)
        found = [(sites[-1], lambda drawn: self.top.distribution(y))]
        for level in reversed(range(len(sites) - 1)):

            def step(drawn, level=level):
                return self.given_above(level, drawn[sites[level + 1]]).to_event(1)

            found.append((sites[level], step))
        return found
