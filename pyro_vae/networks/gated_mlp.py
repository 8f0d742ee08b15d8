"""The gated multilayer perceptron of the VampPrior paper."""

from __future__ import annotations

import math
from itertools import pairwise

from pydantic import PositiveInt
from torch import Tensor, nn

from pyro_vae.networks.base import Network, dense


class GatedDense(nn.Module):
    """h = (A x + a) * sigmoid(B x + b), He-normal weights."""

    def __init__(self, num_inputs: int, num_outputs: int):
        super().__init__()
        self.value_and_gate = dense(num_inputs, 2 * num_outputs, he=True)

    def forward(self, inputs: Tensor) -> Tensor:
        value, gate = self.value_and_gate(inputs).chunk(2, -1)
        return value * gate.sigmoid()


class GatedMLP(Network, name="gated_mlp"):
    """Dense layers h = (A x + a) * sigmoid(B x + b) (Tomczak and Welling, arXiv:1705.07120)."""

    hidden: tuple[PositiveInt, ...] = (300, 300)

    def build(self, in_shape, out_shape) -> nn.Module:
        widths = [math.prod(in_shape), *self.hidden]
        layers = [GatedDense(*pair) for pair in pairwise(widths)]
        return nn.Sequential(nn.Flatten(), *layers, dense(widths[-1], math.prod(out_shape)))
