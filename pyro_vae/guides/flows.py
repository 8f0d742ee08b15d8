"""What guides with normalizing flows share."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.guides.base import GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class OwnSamplesModule(GuideModule):
    """A Gaussian base, then steps whose numbers the encoder puts out for each datum.

    A subclass writes `transforms`; `per_step` numbers are for each of `depth` steps. Steps without
    an inverse know their density at their own draws only.
    """

    def __init__(self, shapes: Shapes, encoder: Network, depth: int, per_step: int):
        dim = shapes.latent_dim
        super().__init__(shapes, encoder, 2 * dim + depth * per_step)
        self.depth, self.sizes = depth, [dim, dim, depth * per_step]

    def encode(self, x, given=None):
        loc, raw, rest = self.encoder(x).split(self.sizes, -1)
        return loc, positive(raw), rest.unflatten(-1, (self.depth, -1))

    def transforms(self, steps: Tensor) -> Sequence:
        """One transform for each step of `[..., depth, per_step]`."""
        raise NotImplementedError(f"{type(self).__name__} must write transforms(steps)")

    def distribution(self, parameters):
        loc, scale, steps = parameters
        base = dist.Normal(loc, scale).to_event(1)
        return dist.TransformedDistribution(base, list(self.transforms(steps)))
