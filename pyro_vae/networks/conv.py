"""Strided convolutions down to a vector, and their mirror image up to a picture."""

from __future__ import annotations

from pyro_vae.networks.base import ACTIVATIONS, Activation, dense
from pyro_vae.networks.convolutional import Convolutional, halved


class Conv(Convolutional, name="conv"):
    """Convolutions of kernel 3 that halve the picture at each layer, or double it (decoder)."""

    activation: Activation = "relu"

    def down(self, num_inputs, num_outputs):
        return [halved(num_inputs, num_outputs), ACTIVATIONS[self.activation]()]

    def up(self, width):
        return [ACTIVATIONS[self.activation]()]

    def full(self, num_inputs, num_outputs):
        return [dense(num_inputs, num_outputs), ACTIVATIONS[self.activation]()]
