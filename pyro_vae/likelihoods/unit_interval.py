"""Densities inside (0, 1): what they share."""

from __future__ import annotations

from torch import Tensor

from pyro_vae.likelihoods.base import LikelihoodModule

# The nearest numbers to 0 and 1. Dequantized levels lie inside (0, 1); float32 rounds some few to 0
# or 1, and only those are moved: the least number above 0 is 2^-24 / levels.
NEAR_0, NEAR_1 = 2.0**-40, 1 - 2.0**-24


def inside(x: Tensor) -> Tensor:
    """x, with 0 and 1 moved to the nearest numbers inside."""
    return x.clamp(NEAR_0, NEAR_1)


class InsideModule(LikelihoodModule):
    """Two numbers a pixel: decoder outputs `[..., 2, *data]`."""

    support = "inside"
    safe = 0.5
