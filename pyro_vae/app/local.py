"""The guide of a VAE with its encoder's output free for each datum."""

from __future__ import annotations

import copy

import pyro
import torch
from torch import Tensor, nn

import inference
from pyro_vae.errors import RequestError
from pyro_vae.vae import VAE


def local_guide(vae: VAE) -> inference.LocalGuide:
    """q(z | h_n), h_n free, where the amortized guide is q(z | h = encoder(x)).

    What a guide makes of h stays as it is: scales, a Cholesky factor, the context of a flow. Serves
    every guide around one encoder; the Gaussian ones, `inference.gaps` frees by itself.
    Raises: `RequestError` for a guide without one encoder.
    """
    module = vae.guide_module
    if not isinstance(getattr(module, "encoder", None), nn.Module):
        raise RequestError(
            f"guide '{vae.spec.guide.name}': has no module called 'encoder', whose output could be "
            "free for each datum"
        )

    def start(*arguments: Tensor) -> tuple[Tensor, ...]:
        kept: list[Tensor] = []
        hook = module.encoder.register_forward_hook(lambda _, given, output: kept.append(output))
        try:
            with torch.no_grad():
                vae.encode(*arguments)
        finally:
            hook.remove()
        return tuple(kept)

    def program(parameters: tuple[Tensor, ...], *arguments: Tensor) -> Tensor:
        # A copy, for a VampPrior asks the encoder itself about its pseudo-inputs.
        own = copy.copy(module)
        own._modules = {**module._modules, "encoder": _Handed(parameters)}
        with pyro.plate("data", len(arguments[0]), dim=-1):
            return own(arguments[0], vae.read(*arguments))

    return inference.LocalGuide(start, program)


class _Handed(nn.Module):
    """Returns what it was handed, one tensor at each call."""

    def __init__(self, parameters: tuple[Tensor, ...]):
        super().__init__()
        self.rest = iter(parameters)

    def forward(self, *_: Tensor) -> Tensor:
        return next(self.rest)
