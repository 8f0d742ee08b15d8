"""What guides on the sphere share: a direction and a concentration."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pyro_vae.guides.base import Guide, GuideModule, full_precision
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes
from pyro_vae.spherical import Rotational

# Bounds of log (kappa / D): up to kappa = 1e5 D, where directions are known to 0.003 radian.
LOG_BOUNDS = (-7.0, 11.5)


class Directional(Guide):
    """q(z|x) around the direction mu(x) = h / |h|, with concentration kappa(x) = D exp(linear).

    The encoder puts out D + 1 numbers. At kappa = D the mean of z lies about half-way to the
    sphere, for every D: training begins between knowing nothing and a point. A subclass names its
    `rotational` distribution.
    """

    support = "sphere"

    @property
    def rotational(self) -> type[Rotational]:
        raise NotImplementedError(f"{type(self).__name__} must name its rotational distribution")

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return DirectionalModule(shapes, encoder, self.rotational)


class DirectionalModule(GuideModule):
    def __init__(self, shapes: Shapes, encoder: Network, rotational: type[Rotational]):
        super().__init__(shapes, encoder, shapes.latent_dim + 1)
        self.rotational = rotational

    def encode(self, x, given=None):
        dim = self.shapes.latent_dim
        direction, raw = full_precision(self.encoder(x)).split([dim, 1], -1)
        kappa = dim * raw.squeeze(-1).clamp(*LOG_BOUNDS).exp()
        return unit(direction), kappa

    def distribution(self, parameters):
        return self.rotational(*parameters)


def unit(direction: Tensor) -> Tensor:
    """The direction as a unit vector; no direction at all is that of (1, 1, ...)."""
    none = (direction == 0).all(-1, keepdim=True)
    return normalize(torch.where(none, 1 / math.sqrt(direction.shape[-1]), direction), dim=-1)
