"""Autoregressive flows: each number is moved as those before it tell."""

from __future__ import annotations

from typing import Any

import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

from pyro_vae.bijection import Bijection
from pyro_vae.errors import SpecError
from pyro_vae.monotone import Monotone


class Autoregressive(nn.Module):
    """`depth` steps y_l = f(x_l; raw_l(x_1, ..., x_{l-1}, h)) of `[..., L]`; the identity at first.

    The raw numbers come from a masked network (MADE, arXiv:1502.03509) of layers `hidden`, with
    context h `[..., context]` where it has one; the order of numbers is reversed between steps. The
    way forth is parallel, the way back one number at a time (arXiv:1606.04934).
    Raises: `SpecError` for fewer than 2 numbers, or more than a layer is wide, naming `owner`.
    """

    def __init__(
        self,
        dim: int,
        *,
        depth: int,
        hidden: tuple[int, ...],
        step: Monotone,
        context: int = 0,
        owner: str,
    ):
        super().__init__()
        if not 2 <= dim <= min(hidden, default=0):
            raise SpecError(
                f"{owner} needs 2 or more latents and hidden layers at least as wide; got "
                f"{dim} latents and hidden {hidden}"
            )
        self.map = step
        order: Any = torch.arange(dim)  # without one, Pyro draws an order at random
        self.networks = nn.ModuleList()
        for _ in range(depth):
            network = ConditionalAutoRegressiveNN(
                dim, context, list(hidden), [step.num_raw], permutation=order.clone()
            )
            for parameter in network.layers[-1].parameters():
                nn.init.zeros_(parameter)
            self.networks.append(network)

    def bijection(self, context: Tensor | None = None) -> Bijection:
        """The flow as a transform of a distribution's draws, given h `[..., context]`."""
        return _AutoregressiveBijection(self, context)

    def forth(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """f(x), and log|det df/dx|."""
        log_det = x.new_zeros(x.shape[:-1])
        for step, network in enumerate(self.networks):
            x = x.flip(-1) if step else x
            x, log_slope = self.map.forth(_raw(network, x, context), x)
            log_det = log_det + log_slope.sum(-1)
        return x, log_det

    def back(self, y: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """The x of which y = f(x), and log|det df/dx|."""
        log_det = y.new_zeros(y.shape[:-1])
        for step, network in reversed(list(enumerate(self.networks))):
            x = torch.zeros_like(y)
            for _ in range(y.shape[-1]):  # each pass makes one more number right
                x, log_slope = self.map.back(_raw(network, x, context), y)
            log_det = log_det + log_slope.sum(-1)
            y = x.flip(-1) if step else x
        return y, log_det


def _raw(network: nn.Module, x: Tensor, context: Tensor | None) -> Tensor:
    """The numbers of each map `[..., L, num_raw]`."""
    return network(x, x[..., :0] if context is None else context).transpose(-1, -2)


class _AutoregressiveBijection(Bijection):
    def __init__(self, flow: Autoregressive, context: Tensor | None):
        super().__init__()
        self.flow, self.context = flow, context

    def forth(self, x):
        return self.flow.forth(x, self.context)

    def back(self, y):
        return self.flow.back(y, self.context)
