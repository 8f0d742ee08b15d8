"""The Sylvester flow guide."""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.distributions import Transform, constraints

from pyro_vae.guides.base import Guide, GuideModule
from pyro_vae.guides.flows import OwnSamplesModule
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class Sylvester(Guide, name="sylvester"):
    """z <- z + Q R tanh(S Q'z + b), `depth` times from a Gaussian (arXiv:1803.05649).

    R and S are upper triangular of size `units` (at most L; all L by default) and Q [L, units] has
    orthonormal columns: `reflections` Householder reflections. All are of x. The diagonals of R
    and S pass through tanh, so that each step is invertible.
    """

    density = "own samples"
    depth: PositiveInt = 4
    units: PositiveInt | None = None
    reflections: PositiveInt = 4

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return SylvesterModule(shapes, encoder, self)


class SylvesterModule(OwnSamplesModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: Sylvester):
        dim = shapes.latent_dim
        self_units = min(spec.units or dim, dim)
        sizes = [self_units**2, self_units, self_units, spec.reflections * dim]
        super().__init__(shapes, encoder, spec.depth, sum(sizes))
        self.units, self.reflections, self.parts = self_units, spec.reflections, sizes

    def transforms(self, steps):
        dim, units = self.shapes.latent_dim, self.units
        for step in steps.unbind(-2):
            square, diagonal, bias, mirrors = step.split(self.parts, -1)
            square = square.unflatten(-1, (units, units))
            # One square holds both: R above its diagonal, S below, transposed.
            r = square.triu(1) + torch.diag_embed(square.diagonal(dim1=-2, dim2=-1).tanh())
            s = square.tril(-1).transpose(-1, -2) + torch.diag_embed(diagonal.tanh())
            q = orthonormal(mirrors.unflatten(-1, (self.reflections, dim)), units)
            yield SylvesterStep(q, r, s, bias)


def orthonormal(mirrors: Tensor, columns: int) -> Tensor:
    """The first columns of a product of Householder reflections: `[..., H, L]` to `[..., L, C]`."""
    dim = mirrors.shape[-1]
    found = torch.eye(dim, dtype=mirrors.dtype, device=mirrors.device)[:, :columns]
    for v in mirrors.unbind(-2):
        v = v + torch.eye(dim, dtype=v.dtype, device=v.device)[0] * 1e-3  # none is 0
        v = v / v.norm(dim=-1, keepdim=True)
        found = found - 2 * v.unsqueeze(-1) * (v.unsqueeze(-2) @ found)
    return found


class SylvesterStep(Transform):
    """One step; without an inverse."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, q: Tensor, r: Tensor, s: Tensor, bias: Tensor):
        super().__init__(cache_size=1)
        self.q, self.r, self.s, self.bias = q, r, s, bias

    def _inside(self, z: Tensor) -> Tensor:
        turned = (z.unsqueeze(-2) @ self.q).squeeze(-2)
        return ((self.s @ turned.unsqueeze(-1)).squeeze(-1) + self.bias).tanh()

    def _call(self, x):
        moved = self.q @ (self.r @ self._inside(x).unsqueeze(-1))
        return x + moved.squeeze(-1)

    def _inverse(self, y):
        raise KeyError("a Sylvester step knows its density at its own draws only")

    def log_abs_det_jacobian(self, x, y):
        slope = 1 - self._inside(x).square()
        diagonals = self.r.diagonal(dim1=-2, dim2=-1) * self.s.diagonal(dim1=-2, dim2=-1)
        return torch.log1p(slope * diagonals).sum(-1)
