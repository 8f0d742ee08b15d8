"""The guide that multiplies an expert for each known value."""

from __future__ import annotations

import math
from typing import Annotated, Any

import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from torch import nn

from pyro_vae.component import OneOf
from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network
from pyro_vae.networks.mlp import MLP
from pyro_vae.part import Shapes


class ProductOfExperts(Guide, name="product_of_experts"):
    """q(z|x, m) ~ N(z; 0, I) N_all(z | x, m) prod_{d known} N(z; mu_d(x_d), diag s_d(x_d)^2).

    A product of Gaussians, so precisions add, and a missing value has no say (arXiv:1802.05335;
    each value with an embedding of its place, arXiv:1809.11142). `network` makes mu_d / s_d^2 and
    log s_d of x_d and `embedding` learned numbers; the encoder makes those of all known values
    together. Not mu_d, whose say would end where an expert grows wide: guides of many values would
    fall to the prior before the decoder had learned to use them.
    """

    needs_mask = True
    embedding: PositiveInt = 8
    network: Annotated[Any, OneOf(Network.registry)] = MLP(hidden=(32,))

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return ProductOfExpertsModule(shapes, encoder, self)


class ProductOfExpertsModule(GuideModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: ProductOfExperts):
        dim = shapes.latent_dim
        super().__init__(shapes, encoder, 2 * dim)
        self.places = nn.Parameter(torch.randn(shapes.num_pixels, spec.embedding))
        self.expert = spec.network.make((1 + spec.embedding,), (2 * dim,))
        self.expert.shrink_outputs()
        # Together, the experts of all values begin with the precision of the prior.
        self.log_share = nn.Parameter(torch.tensor(-math.log(shapes.num_pixels)))

    def encode(self, x, given=None):
        weighted, raw = self.encoder(x).chunk(2, -1)
        total = 1 + positive(raw).square().reciprocal()
        if given is not None:  # else a pseudo-input, of which the encoder alone speaks
            values = given.x.flatten(1).unsqueeze(-1)  # [N, D, 1]
            places = self.places.expand(*values.shape[:-1], -1)
            each, raw = self.expert(torch.cat([values, places], -1)).chunk(2, -1)
            known = given.mask.flatten(1).unsqueeze(-1)
            precision = positive(raw).square().reciprocal() * self.log_share.exp()
            weighted = weighted + (each * known).sum(-2) / math.sqrt(len(self.places))
            total = total + (precision * known).sum(-2)
        return weighted / total, total.rsqrt()

    def distribution(self, parameters):
        return dist.Normal(*parameters).to_event(1)
