"""The multilayer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

from pydantic import PositiveInt
from torch import nn

from pyro_vae.networks.base import ACTIVATIONS, Activation, Network, dense


class MLP(Network, name="mlp"):
    """Dense layers with one activation; Glorot-uniform weights (Burda et al., arXiv:1509.00519)."""

    hidden: tuple[PositiveInt, ...] = (300, 300)
    activation: Activation = "tanh"

    def build(self, in_shape, out_shape) -> nn.Module:
        widths = [math.prod(in_shape), *self.hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for num_inputs, num_outputs in pairwise(widths):
            layers += [dense(num_inputs, num_outputs), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers, dense(widths[-1], math.prod(out_shape)))
