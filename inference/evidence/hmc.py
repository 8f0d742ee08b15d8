"""Hamiltonian Monte Carlo on every density of a path, one step at a time.

Leapfrog steps with the momentum of the step before, in part: v <- c v + sqrt(1 - c^2) n, reversed
where a proposal is rejected (Horowitz 1991; Neal 2011, arXiv:1206.1901, section 5.3). Both ends of
the path and their gradients travel with the chains, so that the next density costs nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from inference.evidence.space import Ends

EndsOf = Callable[..., Ends]


class Chains(NamedTuple):
    """Where chains stand: points and momenta `[chains, data, D]`, log f_0 and log f_1 there, and
    their gradients."""

    u: Tensor
    v: Tensor
    start: Tensor  # float64 [chains, data]
    target: Tensor
    slope_start: Tensor  # [chains, data, D]
    slope_target: Tensor

    @property
    def log_ratio(self) -> Tensor:
        """log f_1 / f_0, by which the path moves on."""
        return self.target - self.start


class Moved(NamedTuple):
    chains: Chains
    acceptance: Tensor  # [chains, data], probabilities


def begin(ends: EndsOf, u: Tensor, v: Tensor, *data: Tensor) -> Chains:
    """Chains at some points."""
    return Chains(u, v, *_with_slopes(ends, u, data))


def move(
    ends: EndsOf,
    chains: Chains,
    noise: Tensor,
    log_uniform: Tensor,
    beta: Tensor,
    step: Tensor,
    *data: Tensor,
    num_leapfrog: int,
    keep: float,
) -> Moved:
    """One step that leaves f_beta invariant.

    Args:
        noise: `[chains, data, D]`, standard normal.
        log_uniform: `[chains, data]`, logs of uniform numbers.
        beta: `[data]`.
        step: `[chains, data, D]` or what spreads to it: step size, times the scale of each
            dimension.
        num_leapfrog: gradients that the step costs.
        keep: c, the share of the old momentum.
    A proposal whose f_beta is no number, infinite or 0 is rejected.
    """

    def log_f(at: Chains) -> Tensor:
        return at.start + beta * (at.target - at.start)

    def slope(at: Chains) -> Tensor:
        share = beta.to(at.u.dtype).unsqueeze(-1)
        return at.slope_start + share * (at.slope_target - at.slope_start)

    def kinetic(v: Tensor) -> Tensor:
        return 0.5 * v.double().square().sum(-1)

    v = keep * chains.v + math.sqrt(1 - keep**2) * noise
    here = chains._replace(v=v)
    there = here
    for _ in range(num_leapfrog):
        v = there.v + 0.5 * step * slope(there)
        u = there.u + step * v
        there = Chains(u, v, *_with_slopes(ends, u, data))
        there = there._replace(v=v + 0.5 * step * slope(there))
    ahead = log_f(there) - kinetic(there.v)
    gain = ahead - log_f(here) + kinetic(here.v)
    gain = torch.where(gain.isnan() | (ahead == math.inf), -math.inf, gain)
    accepted = log_uniform < gain
    back = here._replace(v=-here.v)
    new = []
    for a, b in zip(there, back, strict=True):
        new.append(torch.where(accepted if a.dim() == 2 else accepted.unsqueeze(-1), a, b))
    return Moved(Chains(*new), gain.clamp(max=0.0).exp())


def _with_slopes(ends: EndsOf, u: Tensor, data: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """log f_0, log f_1 and their gradients, without a graph behind them."""
    with torch.enable_grad():
        u = u.detach().requires_grad_()
        found = ends(u, *data)
        slopes = [
            torch.autograd.grad(part.sum(), u, retain_graph=True, allow_unused=True)[0]
            for part in found
        ]
    slopes = [torch.zeros_like(u) if s is None else s for s in slopes]
    return *(part.detach() for part in found), *slopes
