"""Strided convolutions down to a vector, and their mirror image up to a picture."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pyro_vae.errors import SpecError
from pyro_vae.networks.base import ACTIVATIONS, Activation, Network, dense, glorot


class Conv(Network, name="conv"):
    """Convolutions of kernel 3 that halve the picture at each layer, or double it (decoder).

    A picture comes in as `[height, width]` or `[channels, height, width]`; an encoder has pictures
    at its input, a decoder at its output.
    """

    channels: tuple[PositiveInt, ...] = Field(default=(32, 64), min_length=1)
    hidden: PositiveInt = 256
    activation: Activation = "relu"
    role: Literal["auto", "encoder", "decoder"] = "auto"

    def build(self, in_shape, out_shape) -> nn.Module:
        role = self.role
        if role == "auto":
            role = "encoder" if len(in_shape) >= 2 else "decoder"
        picture = in_shape if role == "encoder" else out_shape
        if len(picture) < 2:
            raise SpecError(
                f"network 'conv' maps from or to pictures [..., height, width]; got shapes "
                f"{in_shape} and {out_shape}; mlp, gated_mlp and linear fit"
            )
        image = (math.prod(picture[:-2]), *picture[-2:])
        sizes = [image[1:]]
        for _ in self.channels:
            sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
        if min(sizes[-2]) < 2:
            raise SpecError(
                f"channels {self.channels} halve a {image[1]} x {image[2]} picture "
                f"{len(self.channels)} times, which is below one pixel; use fewer layers"
            )
        if role == "encoder":
            return self._encoder(image, sizes, math.prod(out_shape))
        return self._decoder(math.prod(in_shape), image, sizes)

    def _encoder(self, image, sizes, num_outputs: int) -> nn.Module:
        layers: list[nn.Module] = [Picture(image)]
        widths = [image[0], *self.channels]
        for i in range(len(self.channels)):
            conv = glorot(nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1))
            layers += [conv, ACTIVATIONS[self.activation]()]
        flat = widths[-1] * math.prod(sizes[-1])
        layers += [nn.Flatten(), dense(flat, self.hidden), ACTIVATIONS[self.activation]()]
        return nn.Sequential(*layers, dense(self.hidden, num_outputs))

    def _decoder(self, num_inputs: int, image, sizes) -> nn.Module:
        widths = [image[0], *self.channels]
        start = (widths[-1], *sizes[-1])
        layers: list[nn.Module] = [nn.Flatten()]
        layers += [dense(num_inputs, self.hidden), ACTIVATIONS[self.activation]()]
        layers += [dense(self.hidden, math.prod(start)), Picture(start)]
        for i in reversed(range(len(self.channels))):
            # An odd size comes back through output_padding 0, an even one through 1.
            extra = tuple(1 - side % 2 for side in sizes[i])
            up = nn.ConvTranspose2d(
                widths[i + 1], widths[i], 3, stride=2, padding=1, output_padding=extra
            )
            layers += [ACTIVATIONS[self.activation](), glorot(up)]
        return nn.Sequential(*layers)


class Picture(nn.Module):
    """Give each row the shape [channels, height, width]."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(-1, *self.shape)
