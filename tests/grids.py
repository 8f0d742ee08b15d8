"""Points that cover a circle, a sphere or a triangle, and the surface that each stands for."""

import math
from functools import cache

import numpy as np
import torch

DOUBLE = {"dtype": torch.float64}


_leggauss = cache(np.polynomial.legendre.leggauss)


def legendre(low, high, count):
    """Gauss and Legendre's nodes and weights on [low, high]."""
    nodes, weights = _leggauss(count)
    half = (high - low) / 2
    return low + half * torch.from_numpy(nodes + 1), half * torch.from_numpy(weights)


def whole_sphere(dim, wide=800, high=200):
    """The trapezoidal rule around the circle; on the sphere, Gauss and Legendre's in the height."""
    turn = torch.arange(wide, **DOUBLE) * 2 * math.pi / wide
    circle = torch.stack([turn.cos(), turn.sin()], -1)
    if dim == 2:
        return circle, torch.full((wide,), 2 * math.pi / wide, **DOUBLE)
    heights, weights = legendre(-1, 1, high)
    ring = (1 - heights.square()).sqrt()[:, None, None] * circle
    z = torch.cat([ring, heights[:, None, None].expand(-1, wide, 1)], -1).reshape(-1, 3)
    return z, (weights * 2 * math.pi / wide).repeat_interleave(wide)


def triangle(count=400, reach=60.0):
    """Proportions of three, and areas in the plane of the first two.

    z = (s, (1 - s) r, (1 - s)(1 - r)), dz_1 dz_2 = (1 - s) ds dr, with s and r sigmoids of equal
    steps, which crowd at the edges: sums of smooth densities are accurate to rounding.
    """
    step = 2 * reach / count
    line = (torch.arange(count, **DOUBLE) + 0.5) * step - reach
    a, b = torch.meshgrid(line, line, indexing="ij")
    (s, rest), (r, other) = ((u.flatten().sigmoid(), (-u).flatten().sigmoid()) for u in (a, b))
    return torch.stack([s, rest * r, rest * other], -1), rest * (s * rest) * (r * other) * step**2
