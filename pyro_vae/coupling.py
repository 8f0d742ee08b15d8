"""Couplings: invertible flows without context, parallel both ways."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae.bijection import Bijection
from pyro_vae.errors import SpecError
from pyro_vae.monotone import Steps, monotone
from pyro_vae.networks.base import dense


class Coupling(nn.Module):
    """`depth` couplings of `[..., L]` (arXiv:1605.08803); the identity at the start.

    In each, every other number stays, and a network of these (two hidden layers of `hidden`) puts
    out how each of the others is moved: by an affine map or a spline. The two halves take turns.
    Raises: `SpecError` for fewer than 2 numbers, naming `owner`.
    """

    evens: Tensor
    odds: Tensor
    order: Tensor

    def __init__(self, dim: int, *, depth: int, hidden: int, steps: Steps, owner: str):
        super().__init__()
        if dim < 2:
            raise SpecError(
                f"{owner} needs 2 or more latents, one half to move the other; got {dim}"
            )
        self.map = monotone(steps)
        self.networks = nn.ModuleList()
        for step in range(depth):
            stays, moves = torch.arange(step % 2, dim, 2), torch.arange(1 - step % 2, dim, 2)
            last = dense(hidden, self.map.num_raw * len(moves))
            nn.init.zeros_(last.weight)
            self.networks.append(
                nn.Sequential(
                    dense(len(stays), hidden),
                    nn.SiLU(),
                    dense(hidden, hidden),
                    nn.SiLU(),
                    last,
                )
            )
        evens, odds = torch.arange(0, dim, 2), torch.arange(1, dim, 2)
        self.register_buffer("evens", evens, persistent=False)
        self.register_buffer("odds", odds, persistent=False)
        self.register_buffer("order", torch.cat([evens, odds]).argsort(), persistent=False)

    def bijection(self) -> Bijection:
        """The flow as a transform of a distribution's draws."""
        return _CouplingBijection(self)

    def run(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """f(x), or the x' of which x = f(x'); and log|det| of f."""
        halves = [x.index_select(-1, self.evens), x.index_select(-1, self.odds)]
        move = self.map.back if inverse else self.map.forth
        steps = range(len(self.networks))
        log_det = x.new_zeros(x.shape[:-1])
        for step in reversed(steps) if inverse else steps:
            stays, moves = halves[step % 2], halves[1 - step % 2]
            raw = self.networks[step](stays).unflatten(-1, (moves.shape[-1], -1))
            halves[1 - step % 2], log_slope = move(raw, moves)
            log_det = log_det + log_slope.sum(-1)
        return torch.cat(halves, -1).index_select(-1, self.order), log_det


class _CouplingBijection(Bijection):
    def __init__(self, flow: Coupling):
        super().__init__()
        self.flow = flow

    def forth(self, x):
        return self.flow.run(x, inverse=False)

    def back(self, y):
        return self.flow.run(y, inverse=True)
