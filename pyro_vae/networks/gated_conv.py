"""Gated convolutions, as in the VampPrior and Sylvester papers."""

from __future__ import annotations

from torch import Tensor, nn

from pyro_vae.networks.base import glorot
from pyro_vae.networks.convolutional import Convolutional, halved
from pyro_vae.networks.gated_mlp import GatedDense


class Gate(nn.Module):
    """h = a * sigmoid(b), of a layer whose outputs are a and b side by side."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, inputs: Tensor) -> Tensor:
        value, gate = self.layer(inputs).chunk(2, 1)
        return value * gate.sigmoid()


class GatedConv(Convolutional, name="gated_conv"):
    """As `conv`, of layers h = (A * x + a) sigmoid(B * x + b) (arXiv:1705.07120, 1803.05649)."""

    def down(self, num_inputs, num_outputs):
        return [Gate(halved(num_inputs, 2 * num_outputs))]

    def up(self, width):
        return [Gate(glorot(nn.Conv2d(width, 2 * width, 3, padding=1)))]

    def full(self, num_inputs, num_outputs):
        return [GatedDense(num_inputs, num_outputs)]
