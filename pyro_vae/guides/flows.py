"""What guides share whose flows have no inverse at hand."""

from __future__ import annotations

from collections.abc import Sequence

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.bijection import Bijection
from pyro_vae.guides.base import GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes

# The share of what keeps a step invertible that is used, so that no log-determinant is infinite.
SHARE = 0.999


class OwnSamplesModule(GuideModule):
    """z_0 ~ N(m(x), diag s(x)^2), then `depth` steps whose numbers are of x.

    A subclass writes `steps`. The encoder puts out 2 L + `depth` * `per_step` numbers.
    """

    def __init__(self, shapes: Shapes, encoder: Network, depth: int, per_step: int):
        dim = shapes.latent_dim
        super().__init__(shapes, encoder, 2 * dim + depth * per_step)
        self.depth, self.sizes = depth, [dim, dim, depth * per_step]

    def encode(self, x, given=None):
        loc, raw, rest = self.encoder(x).split(self.sizes, -1)
        return loc, positive(raw), rest.unflatten(-1, (self.depth, -1))

    def step(self, numbers: Tensor) -> Bijection:
        """The step of `numbers [..., per_step]`; all 0, it moves nothing or next to nothing."""
        raise NotImplementedError(f"{type(self).__name__} must write step(numbers)")

    def distribution(self, parameters):
        loc, scale, numbers = parameters
        steps: Sequence[Bijection] = [self.step(one) for one in numbers.unbind(-2)]
        return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(1), steps)
