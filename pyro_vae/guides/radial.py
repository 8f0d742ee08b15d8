"""The radial flow guide."""

from __future__ import annotations

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.bijection import Bijection
from pyro_vae.guides.base import Guide, GuideModule
from pyro_vae.guides.flows import SHARE, OwnSamplesModule
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class Radial(Guide, name="radial"):
    """z <- z + b (z - c) / (a + |z - c|), `depth` times from a Gaussian; a, b, c of x.

        log|det| = (L - 1) log(1 + b h) + log(1 + a b h^2),   h = 1 / (a + |z - c|)

    a > 0 and b > -a keep each step invertible (arXiv:1505.05770, appendix A.2).
    """

    density = "own samples"
    depth: PositiveInt = 4

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return RadialModule(shapes, encoder, self.depth, shapes.latent_dim + 2)


class RadialModule(OwnSamplesModule):
    def step(self, numbers):
        return RadialStep(*numbers.split([self.shapes.latent_dim, 1, 1], -1))


class RadialStep(Bijection):
    """One step about `center [..., L]`; a = softplus(`raw_a`), b about softplus(`raw_b`) - a."""

    def __init__(self, center: Tensor, raw_a: Tensor, raw_b: Tensor):
        super().__init__()
        self.center = center
        self.a = softplus(raw_a)
        self.b = SHARE * (softplus(raw_b) - self.a)

    def forth(self, x):
        away = x - self.center
        h = (self.a + away.norm(dim=-1, keepdim=True)).reciprocal()
        log_det = (x.shape[-1] - 1) * torch.log1p(self.b * h)
        log_det = log_det + torch.log1p(self.a * self.b * h.square())
        return x + self.b * h * away, log_det.squeeze(-1)
