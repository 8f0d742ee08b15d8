"""What an estimate needs of K log-weights, gathered while they stream by in pieces.

The log-sum-exp is the online one: sums stand relative to the largest weight so far, and are
rescaled when it grows (Milakov and Gimelshein, arXiv:1805.02867).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from inference.evidence.smoothing import largest, num_largest, tail_khat

# Nats. A spread of log w below its rounding is called none only where that rounding is this small.
MAX_ROUNDING = 1e-2


class Moments(NamedTuple):
    """The log-weights of N data seen so far: O(sqrt K) numbers a datum, float64.

    Sums are of w e^-peak and its square. `tail` holds the largest log-weights, as many as k-hat
    looks at; those not yet seen are -inf.
    """

    num_samples: int  # K, all that will come
    peak: Tensor  # [N], max log w
    lowest: Tensor  # [N], min log w
    total: Tensor  # [N]
    squares: Tensor  # [N]
    log_total: Tensor  # [N], sum of log w
    tail: Tensor  # [N, num_largest(K)]
    rounding: Tensor  # [N], nats by which a log w may be off


def init(num_data: int, num_samples: int, device: torch.device | None = None) -> Moments:
    """Nothing seen of K = `num_samples` log-weights of each datum."""

    def full(value: float, *more: int) -> Tensor:
        return torch.full((num_data, *more), value, dtype=torch.float64, device=device)

    return Moments(
        num_samples=num_samples,
        peak=full(-math.inf),
        lowest=full(math.inf),
        total=full(0.0),
        squares=full(0.0),
        log_total=full(0.0),
        tail=full(-math.inf, num_largest(num_samples)),
        rounding=full(0.0),
    )


def update(state: Moments, log_weight: Tensor, rounding: Tensor) -> Moments:
    """The state after the next log-weights `[N, k]`, each within its datum's `rounding [N]`.

    Log-weights are finite or -inf; in which pieces and in which order they come does not matter.
    """
    log_weight = log_weight.double()
    peak = torch.maximum(state.peak, log_weight.amax(1))
    finite = peak.nan_to_num(neginf=0.0)
    weight = (log_weight - finite.unsqueeze(1)).exp()
    shrink = (state.peak - finite).exp()  # 0 for the first piece
    return Moments(
        num_samples=state.num_samples,
        peak=peak,
        lowest=torch.minimum(state.lowest, log_weight.amin(1)),
        total=state.total * shrink + weight.sum(1),
        squares=state.squares * shrink.square() + weight.square().sum(1),
        log_total=state.log_total + log_weight.sum(1),
        tail=largest(torch.cat([state.tail, log_weight], 1), state.num_samples),
        rounding=torch.maximum(state.rounding, rounding),
    )


def part(state: Moments, start: int, stop: int) -> Moments:
    """The state of data `start:stop`, in the same memory."""
    return Moments(state.num_samples, *(tensor[start:stop] for tensor in state[1:]))


def keep(state: Moments, found: Moments) -> None:
    """Write `found` over `state`, in place."""
    for old, new in zip(state[1:], found[1:], strict=True):
        old.copy_(new)


def finish(state: Moments) -> dict[str, Tensor]:
    """Value, error, ESS, k-hat and ELBO of each datum, float64 `[N]`."""
    num_samples = state.num_samples
    # Beyond the cap a spread within rounding may hide a bad guide as well.
    resolution = torch.where(state.rounding <= MAX_ROUNDING, state.rounding, -1.0)
    constant = state.peak - state.lowest <= resolution
    ess = state.total.square() / state.squares
    if num_samples == 1:
        std_error = torch.full_like(ess, math.nan)
    else:
        std_error = (1 / ess - 1 / num_samples).clamp_min(0).sqrt()
        std_error = torch.where(constant, 0.0, std_error)
    return {
        "value": state.peak + state.total.log() - math.log(num_samples),
        "std_error": std_error,
        "ess": ess,
        "khat": tail_khat(state.tail, num_samples, constant),
        "elbo": state.log_total / num_samples,
    }
