"""The family of networks: declarations that build a map from one shape to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pyro_vae.component import Component
from pyro_vae.errors import SpecError, Unfinished
from pyro_vae.networks.joining import Joining

Activation = Literal["tanh", "relu", "elu", "silu", "gelu", "softplus", "leaky_relu"]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "leaky_relu": nn.LeakyReLU,
}


class Network(Component, family="network"):
    """A map from `in_shape` to `out_shape`. Write `build` for one batch dimension, no more.

    `build(in_shape, out_shape)` returns a module that maps `[n, *in_shape]` to `[n, *out_shape]`
    (or to anything with as many elements per row). `pictures`: inputs are taken as pictures
    `[..., height, width]`, so that what joins them comes as channels.
    """

    pictures: ClassVar[bool] = False
    bayesian: ClassVar[bool] = False  # are its weights latents? Then it makes their sites, too

    def build(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> nn.Module:
        raise Unfinished(f"{type(self).__name__} must write build(in_shape, out_shape)")

    def joining(self, in_shape: tuple[int, ...], extras: Sequence[tuple[int, ...]]) -> Joining:
        """How what comes beside the inputs joins them."""
        return Joining(in_shape, tuple(extras), self.pictures and len(in_shape) >= 2)

    def make(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Net:
        """The built map, with leading dimensions and initialization taken care of."""
        body = self.build(in_shape, out_shape)
        if not isinstance(body, nn.Module):
            raise SpecError(
                f"network '{self.name}': build returned a {type(body).__name__}; expected an "
                "nn.Module"
            )
        return Net(body, in_shape, out_shape)


class Net(nn.Module):
    """Any leading dimensions in front of `in_shape`: `[..., *in_shape]` to `[..., *out_shape]`."""

    def __init__(self, body: nn.Module, in_shape: tuple[int, ...], out_shape: tuple[int, ...]):
        super().__init__()
        self.body = body
        self.in_shape = tuple(in_shape)
        self.out_shape = tuple(out_shape)

    def forward(self, inputs: Tensor) -> Tensor:
        leading = inputs.shape[: inputs.dim() - len(self.in_shape)]
        if inputs.shape[len(leading) :] != self.in_shape:
            raise ValueError(
                f"a network for inputs [..., {', '.join(map(str, self.in_shape))}] was given "
                f"{tuple(inputs.shape)}"
            )
        outputs = self.body(inputs.reshape(-1, *self.in_shape))
        if outputs.numel() != math.prod(leading) * math.prod(self.out_shape):
            raise ValueError(
                f"{type(self.body).__name__} returned {tuple(outputs.shape)} for "
                f"{math.prod(leading)} rows; expected rows of shape {self.out_shape}"
            )
        return outputs.reshape(*leading, *self.out_shape)

    @torch.no_grad()
    def set_output_bias(self, value: Tensor) -> bool:
        """Let the last layer's bias put out `value [*out_shape]`, or its mean per channel.

        Returns whether a bias was found that fits; a network without one keeps its start.
        """
        last = getattr(self._last_layer(), "bias", None)
        if not isinstance(last, nn.Parameter):
            return False
        if last.numel() == value.numel():
            last.copy_(value.reshape(last.shape))
        elif value.numel() % last.numel() == 0:
            last.copy_(value.reshape(last.numel(), -1).mean(1).reshape(last.shape))
        else:
            return False
        return True

    @torch.no_grad()
    def shrink_outputs(self, factor: float = 0.1) -> None:
        """Begin with outputs near 0: a scale near 1, a mean near 0, a step near the identity."""
        weight = getattr(self._last_layer(), "weight", None)
        if isinstance(weight, nn.Parameter):
            weight.mul_(factor)

    def _last_layer(self) -> nn.Module | None:
        """The last layer with weights of its own."""
        layers = [
            m for m in self.body.modules() if next(m.parameters(recurse=False), None) is not None
        ]
        return layers[-1] if layers else None


def dense(num_inputs: int, num_outputs: int, *, he: bool = False) -> nn.Linear:
    """A linear layer with Glorot-uniform (or He-normal) weights and zero biases."""
    layer = glorot(nn.Linear(num_inputs, num_outputs))
    if he:
        nn.init.kaiming_normal_(layer.weight)
    return layer


def glorot(layer):
    """The layer with Glorot-uniform weights and zero biases."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
