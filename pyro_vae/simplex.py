"""What latents on the simplex share: how small an entry may be."""

from __future__ import annotations

import pyro.distributions as dist
from torch import Tensor

# Draws hold their entries here: the slope 1/z of log z, times what multiplies it, is then a finite
# float32. Below lie less than one in 1,000 entries of a Dirichlet prior of the least concentration,
# and fewer of a relaxed one of the least temperature; log p(x) is off by at most as many nats an
# entry.
SMALLEST = 1e-30
LEAST_CONCENTRATION = 0.1
LEAST_TEMPERATURE = 0.2


def held(z: Tensor) -> Tensor:
    """Draws with entries of `SMALLEST` or more."""
    return z.clamp_min(SMALLEST)


class Dirichlet(dist.Dirichlet):
    """torch's Dirichlet; entries of draws below 1e-30 are held there."""

    def rsample(self, sample_shape=()) -> Tensor:
        return held(super().rsample(sample_shape))
