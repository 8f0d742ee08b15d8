"""Densities inside (0, 1): what they share."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.likelihoods.base import LikelihoodModule


def inside(x: Tensor) -> Tensor:
    """x, with 0 and 1 moved to a number inside (0, 1).

    Dequantized levels lie inside, but float32 rounds some few to 0 or 1. Other numbers are left as
    they are: the least above 0 is 2^-24 / levels, that next to 1 is 1 - 2^-24.
    """
    x = torch.where(x == 0, 2.0**-40, x)
    return torch.where(x == 1, 1 - 0.5 * torch.finfo(x.dtype).eps, x)


class InsideModule(LikelihoodModule):
    """Two numbers a pixel: decoder outputs `[..., 2, *data]`."""

    support = "inside"
    safe = 0.5
