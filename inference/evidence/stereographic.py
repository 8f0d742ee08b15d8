"""The sphere as a plane: stereographic projection."""

from __future__ import annotations

import math

import torch
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import Transform, constraints


class Stereographic(Transform):
    """u in R^(d-1) to a unit vector z in R^d, from the pole e_d.

        z = (2 u, |u|^2 - 1) / (|u|^2 + 1),   log |dz/du| = (d - 1) log(2 / (1 + |u|^2))

    |dz/du| is the ratio of the sphere's surface to the plane's, as densities on the sphere are
    meant. The pole itself is infinitely far away, so that densities have heavy tails in u.
    """

    domain = constraints.real_vector
    codomain = sphere
    bijective = True

    def _call(self, x: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return torch.cat([2 * x, square - 1], -1) / (square + 1)

    def _inverse(self, y: Tensor) -> Tensor:
        # (1 - z_d) loses its digits near the pole; |rest|^2 = (1 - z_d)(1 + z_d) keeps them.
        rest, last = y[..., :-1], y[..., -1:]
        square = rest.square().sum(-1, keepdim=True)
        near = square / (1 + last).clamp_min(torch.finfo(y.dtype).tiny)
        below = torch.where(last > 0, near, 1 - last)
        return rest / below.clamp_min(torch.finfo(y.dtype).tiny)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return x.shape[-1] * (math.log(2) - (1 + x.square().sum(-1)).log())

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] + 1))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        return torch.Size((*shape[:-1], shape[-1] - 1))
