"""The planar flow guide."""

from __future__ import annotations

import math

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.bijection import Bijection
from pyro_vae.guides.base import Guide, GuideModule
from pyro_vae.guides.flows import SHARE, OwnSamplesModule
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class Planar(Guide, name="planar"):
    """z <- z + u tanh(w'z + b), `depth` times from a Gaussian; u, w, b of x (arXiv:1505.05770).

        log|det| = log(1 + w'u (1 - tanh^2(w'z + b)))

    u is moved along w so that w'u > -1, which keeps each step invertible (appendix A.1 there).
    """

    density = "own samples"
    depth: PositiveInt = 4

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return PlanarModule(shapes, encoder, self.depth, 2 * shapes.latent_dim + 1)


class PlanarModule(OwnSamplesModule):
    def step(self, numbers):
        dim = self.shapes.latent_dim
        return PlanarStep(*numbers.split([dim, dim, 1], -1))


class PlanarStep(Bijection):
    """One step of `u`, `w [..., L]` and `b [..., 1]`."""

    def __init__(self, u: Tensor, w: Tensor, b: Tensor):
        super().__init__()
        wu = (w * u).sum(-1, keepdim=True)
        # Above -1. Unlike the paper's it is 0 at 0, so that small numbers make a small step.
        wanted = SHARE * (softplus(wu + math.log(math.expm1(1))) - 1)
        tiny = torch.finfo(w.dtype).tiny  # u stays where w is 0
        self.u = u + (wanted - wu) * w / (w.square().sum(-1, keepdim=True) + tiny)
        self.w, self.b, self.wu = w, b, wanted

    def forth(self, x):
        bend = ((self.w * x).sum(-1, keepdim=True) + self.b).tanh()
        log_det = torch.log1p(self.wu * (1 - bend.square())).squeeze(-1)
        return x + self.u * bend, log_det
