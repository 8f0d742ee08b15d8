"""Residual convolutions."""

from __future__ import annotations

from pydantic import PositiveInt
from torch import Tensor, nn

from pyro_vae.networks.base import ACTIVATIONS, Activation, dense, glorot
from pyro_vae.networks.convolutional import Convolutional, halved


class Block(nn.Module):
    """h + C2 f(C1 f(h)); C2 begins at 0, so that the block begins as the identity."""

    def __init__(self, width: int, activation: Activation):
        super().__init__()
        last = glorot(nn.Conv2d(width, width, 3, padding=1))
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(
            ACTIVATIONS[activation](),
            glorot(nn.Conv2d(width, width, 3, padding=1)),
            ACTIVATIONS[activation](),
            last,
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.layers(inputs)


class ResNet(Convolutional, name="resnet"):
    """`blocks` residual blocks at each size of the picture (arXiv:1603.05027), no batch norm."""

    blocks: PositiveInt = 2
    activation: Activation = "elu"

    def down(self, num_inputs, num_outputs):
        return [halved(num_inputs, num_outputs), *self._blocks(num_outputs)]

    def up(self, width):
        return [*self._blocks(width), ACTIVATIONS[self.activation]()]

    def full(self, num_inputs, num_outputs):
        f = ACTIVATIONS[self.activation]
        return [f(), dense(num_inputs, num_outputs), f()]

    def _blocks(self, width: int) -> list[nn.Module]:
        return [Block(width, self.activation) for _ in range(self.blocks)]
