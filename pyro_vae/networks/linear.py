"""One linear map; with a Gaussian likelihood the model is probabilistic PCA."""

from __future__ import annotations

import math

from torch import nn

from pyro_vae.networks.base import Network, dense


class Linear(Network, name="linear"):
    """W h + b. Decoder of probabilistic PCA (Tipping and Bishop 1999) under a Gaussian."""

    def build(self, in_shape, out_shape) -> nn.Module:
        return nn.Sequential(nn.Flatten(), dense(math.prod(in_shape), math.prod(out_shape)))
