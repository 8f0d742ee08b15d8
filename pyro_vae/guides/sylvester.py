"""The Sylvester flow guide."""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor

from pyro_vae.bijection import Bijection
from pyro_vae.errors import SpecError
from pyro_vae.guides.base import Guide, GuideModule
from pyro_vae.guides.flows import SHARE, OwnSamplesModule
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class Sylvester(Guide, name="sylvester"):
    """z <- z + Q R tanh(S Q'z + b), `depth` times from a Gaussian (arXiv:1803.05649).

        log|det| = sum_i log(1 + R_ii S_ii (1 - tanh^2(S Q'z + b)_i))

    R and S are upper triangular of size `units` (all L by default) and Q [L, units] has orthonormal
    columns, of `reflections` Householder reflections; all are of x. The diagonals of R and S pass
    through tanh, so that each step is invertible.
    """

    density = "own samples"
    depth: PositiveInt = 4
    units: PositiveInt | None = None
    reflections: PositiveInt = 4

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        if self.units is not None and self.units > shapes.latent_dim:
            raise SpecError(
                f"guide 'sylvester' has units={self.units}, more than its {shapes.latent_dim} "
                "latents; give as many or fewer"
            )
        return SylvesterModule(shapes, encoder, self)


class SylvesterModule(OwnSamplesModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: Sylvester):
        dim = shapes.latent_dim
        units = spec.units or dim
        # The triangles of R and S share a square; a diagonal, b and the reflections follow.
        parts = [units**2, units, units, spec.reflections * dim]
        super().__init__(shapes, encoder, spec.depth, sum(parts))
        self.units, self.reflections, self.parts = units, spec.reflections, parts

    def step(self, numbers):
        square, diagonal, bias, mirrors = numbers.split(self.parts, -1)
        square = square.unflatten(-1, (self.units, self.units))
        r = square.triu(1) + torch.diag_embed(SHARE * square.diagonal(dim1=-2, dim2=-1).tanh())
        s = square.tril(-1).mT + torch.diag_embed(diagonal.tanh())
        mirrors = mirrors.unflatten(-1, (self.reflections, self.shapes.latent_dim))
        return SylvesterStep(orthonormal(mirrors, self.units), r, s, bias)


def orthonormal(mirrors: Tensor, columns: int) -> Tensor:
    """The first columns of a product of Householder reflections: `[..., H, L]` to `[..., L, C]`."""
    identity = torch.eye(mirrors.shape[-1], dtype=mirrors.dtype, device=mirrors.device)
    found = identity[:, :columns]
    for v in mirrors.unbind(-2):
        v = v + 1e-3 * identity[0]  # no reflection along 0, where an encoder begins
        v = v / v.norm(dim=-1, keepdim=True)
        found = found - 2 * v.unsqueeze(-1) * (v.unsqueeze(-2) @ found)
    return found


class SylvesterStep(Bijection):
    """One step of Q `[..., L, units]`, R and S `[..., units, units]` and b `[..., units]`."""

    def __init__(self, q: Tensor, r: Tensor, s: Tensor, b: Tensor):
        super().__init__()
        self.q, self.r, self.s, self.b = q, r, s, b

    def forth(self, x):
        bend = (_times(self.s, _times(self.q.mT, x)) + self.b).tanh()
        diagonals = self.r.diagonal(dim1=-2, dim2=-1) * self.s.diagonal(dim1=-2, dim2=-1)
        log_det = torch.log1p(diagonals * (1 - bend.square())).sum(-1)
        return x + _times(self.q, _times(self.r, bend)), log_det


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)
