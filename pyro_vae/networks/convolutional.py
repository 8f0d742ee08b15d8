"""What convolutional networks share: pictures halved layer by layer, or doubled."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pyro_vae.errors import SpecError
from pyro_vae.networks.base import Network, dense, glorot

Size = tuple[int, int]


class Convolutional(Network):
    """Layers that halve the picture, then dense ones; or the mirror image (decoder).

    A picture comes in as `[height, width]` or `[channels, height, width]`; an encoder has pictures
    at its input, a decoder at its output (of two that could be one, the larger is). A subclass
    writes `down`, `up` and `full`, each a list of layers.
    """

    channels: tuple[PositiveInt, ...] = Field(default=(32, 64), min_length=1)
    hidden: PositiveInt = 256
    pictures = True
    role: Literal["auto", "encoder", "decoder"] = "auto"

    def down(self, num_inputs: int, num_outputs: int) -> list[nn.Module]:
        """Half the picture, with its nonlinearity."""
        raise NotImplementedError(f"{type(self).__name__} must write down(num_inputs, num_outputs)")

    def up(self, width: int) -> list[nn.Module]:
        """What comes before a picture of `width` channels is doubled, with a nonlinearity."""
        raise NotImplementedError(f"{type(self).__name__} must write up(width)")

    def full(self, num_inputs: int, num_outputs: int) -> list[nn.Module]:
        """A dense layer with its nonlinearity."""
        raise NotImplementedError(f"{type(self).__name__} must write full(num_inputs, num_outputs)")

    def build(self, in_shape, out_shape) -> nn.Module:
        role = self.role
        if role == "auto":
            larger = len(out_shape) < 2 or math.prod(in_shape) > math.prod(out_shape)
            role = "encoder" if len(in_shape) >= 2 and larger else "decoder"
        picture = in_shape if role == "encoder" else out_shape
        if len(picture) < 2:
            raise SpecError(
                f"network '{self.name}' maps from or to pictures [..., height, width]; got shapes "
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
        widths = [image[0], *self.channels]
        layers: list[nn.Module] = [Picture(image)]
        for i in range(len(self.channels)):
            layers += self.down(widths[i], widths[i + 1])
        flat = widths[-1] * math.prod(sizes[-1])
        layers += [nn.Flatten(), *self.full(flat, self.hidden)]
        return nn.Sequential(*layers, dense(self.hidden, num_outputs))

    def _decoder(self, num_inputs: int, image, sizes) -> nn.Module:
        widths = [image[0], *self.channels]
        start = (widths[-1], *sizes[-1])
        layers: list[nn.Module] = [nn.Flatten(), *self.full(num_inputs, self.hidden)]
        layers += [dense(self.hidden, math.prod(start)), Picture(start)]
        for i in reversed(range(len(self.channels))):
            layers += [*self.up(widths[i + 1]), doubled(widths[i + 1], widths[i], sizes[i])]
        return nn.Sequential(*layers)


def halved(num_inputs: int, num_outputs: int) -> nn.Conv2d:
    return glorot(nn.Conv2d(num_inputs, num_outputs, 3, stride=2, padding=1))


def doubled(num_inputs: int, num_outputs: int, size: Size) -> nn.ConvTranspose2d:
    """To a picture of this size, which is twice that of the input, or one less."""
    # An odd size comes back through output_padding 0, an even one through 1.
    extra = (1 - size[0] % 2, 1 - size[1] % 2)
    return glorot(
        nn.ConvTranspose2d(num_inputs, num_outputs, 3, stride=2, padding=1, output_padding=extra)
    )


class Picture(nn.Module):
    """Give each row the shape [channels, height, width]."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.shape = shape

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(-1, *self.shape)
