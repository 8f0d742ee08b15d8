"""What an estimate needs of K log-weights, gathered while they stream by in pieces.

The log-sum-exp is the online one: sums stand relative to the largest weight so far, and are
rescaled when it grows (Milakov and Gimelshein, arXiv:1805.02867).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from inference.evidence import corrections
from inference.evidence.smoothing import (
    GOOD_SHARE,
    fit_tail,
    is_tied,
    khat_threshold,
    largest,
    num_largest,
)

# Nats. A spread of log w below its rounding is called none only where that rounding is this small.
MAX_ROUNDING = 1e-2

State = TypeVar("State", bound=tuple)


class Moments(NamedTuple):
    """The log-weights of N data seen so far: O(sqrt K) numbers a datum, float64.

    The first K // 2 samples and the others are summed apart, `[N, 2]`: sums are of (w e^-peak)^j
    for j = 1..4. `tail` holds the largest log-weights, as many as k-hat and the jackknife look at;
    those not yet seen are -inf.
    """

    num_samples: int  # K, all that will come
    seen: Tensor  # [N] int64, how many have come; on the CPU, for it steers what is run
    peaks: Tensor  # [N, 2], max log w
    lowest: Tensor  # [N], min log w
    powers: Tensor  # [N, 2, 4]
    log_total: Tensor  # [N], sum of log w
    tail: Tensor  # [N, num_kept(K)]
    rounding: Tensor  # [N], nats by which a log w may be off

    @property
    def peak(self) -> Tensor:
        """`[N]`, max log w."""
        return self.peaks.amax(1)


def num_kept(num_samples: int) -> int:
    """How many of K log-weights are kept one by one."""
    return max(num_largest(num_samples), min(num_samples, corrections.FEWEST_KEPT))


def init(num_data: int, num_samples: int, device: torch.device | None = None) -> Moments:
    """Nothing seen of K = `num_samples` log-weights of each datum."""

    def full(value: float, *more: int) -> Tensor:
        return torch.full((num_data, *more), value, dtype=torch.float64, device=device)

    return Moments(
        num_samples=num_samples,
        seen=torch.zeros(num_data, dtype=torch.int64),
        peaks=full(-math.inf, 2),
        lowest=full(math.inf),
        powers=full(0.0, 2, corrections.ORDERS),
        log_total=full(0.0),
        tail=full(-math.inf, num_kept(num_samples)),
        rounding=full(0.0),
    )


def update(state: Moments, log_weight: Tensor, rounding: Tensor) -> Moments:
    """The state after the next log-weights `[N, k]`, each within its datum's `rounding [N]`.

    Log-weights are finite or -inf; in which pieces they come does not matter, and in which order
    only to the halves.
    """
    log_weight = log_weight.double()
    first = max(0, state.num_samples // 2 - int(state.seen[0]))  # how many are of the first half
    halves = log_weight[:, :first], log_weight[:, first:]
    parts = [_summed(state, half, part) for half, part in enumerate(halves)]
    return Moments(
        num_samples=state.num_samples,
        seen=state.seen + log_weight.shape[1],
        peaks=torch.stack([peak for peak, _ in parts], 1),
        lowest=torch.minimum(state.lowest, log_weight.amin(1)),
        powers=torch.stack([powers for _, powers in parts], 1),
        log_total=state.log_total + log_weight.sum(1),
        tail=largest(torch.cat([state.tail, log_weight], 1), state.tail.shape[1]),
        rounding=torch.maximum(state.rounding, rounding),
    )


def _summed(state: Moments, half: int, log_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Peak `[N]` and sums of powers `[N, 4]` of one half, with more log-weights of it."""
    before, powers = state.peaks[:, half], state.powers[:, half]
    if log_weight.shape[1] == 0:
        return before, powers
    peak = torch.maximum(before, log_weight.amax(1))
    finite = peak.nan_to_num(neginf=0.0)
    weight = (log_weight - finite.unsqueeze(1)).exp()
    square = weight.square()
    sums = weight.sum(1), square.sum(1), weight.mul_(square).sum(1), square.square_().sum(1)
    shrink = (before - finite).exp()  # 0 for the first piece
    return peak, powers * corrections.orders(shrink) + torch.stack(sums, 1)


def part(state: State, start: int, stop: int) -> State:
    """The state of data `start:stop`, in the same memory."""
    return _each(lambda tensor: tensor[start:stop], state)


def keep(state: tuple, found: tuple) -> None:
    """Write `found` over `state`, in place."""
    for old, new in zip(state, found, strict=True):
        if isinstance(old, Tensor):
            old.copy_(new)
        elif isinstance(old, tuple):
            keep(old, new)


def _each(function: Any, state: Any) -> Any:
    """A state with a function of each of its tensors, those of states within it too."""
    if isinstance(state, Tensor):
        return function(state)
    if not isinstance(state, tuple):
        return state
    fields = [_each(function, field) for field in state]
    return type(state)(*fields) if hasattr(state, "_fields") else tuple(fields)


def finish(state: Moments) -> dict[str, Tensor]:
    """Value, error, ESS, k-hat, ELBO and corrections of each datum, float64 `[N]`."""
    num_samples = state.num_samples
    peak = state.peak
    finite = peak.nan_to_num(neginf=0.0)
    scale = (state.peaks - finite.unsqueeze(1)).exp()
    powers = (state.powers * corrections.orders(scale)).sum(1)  # of w e^-peak, [N, 4]
    total, squares = powers[:, 0], powers[:, 1]
    # Beyond the cap a spread within rounding may hide a bad guide as well.
    resolution = torch.where(state.rounding <= MAX_ROUNDING, state.rounding, -1.0)
    constant = peak - state.lowest <= resolution
    ess = total.square() / squares
    if num_samples == 1:
        std_error = torch.full_like(ess, math.nan)
    else:
        std_error = (1 / ess - 1 / num_samples).clamp_min(0).sqrt()
        std_error = torch.where(constant, 0.0, std_error)
    value = peak + total.log() - math.log(num_samples)
    kept = state.tail.sort(1).values
    tail = fit_tail(kept[:, kept.shape[1] - num_largest(num_samples) :], num_samples, constant)
    jackknife = corrections.jackknife(value, powers, kept, num_samples)
    psis = corrections.smoothed(value, total, tail, num_samples)
    no_weight = peak == -math.inf  # nothing to correct
    return {
        "value": value,
        "std_error": std_error,
        "ess": ess,
        "khat": tail.khat,
        "elbo": state.log_total / num_samples,
        "half": corrections.half(state.peaks, state.powers[:, :, 0], num_samples),
        "delta": torch.where(no_weight, value, corrections.delta(value, std_error)),
        "jackknife": torch.where(no_weight | constant & (num_samples > 1), value, jackknife),
        "psis": torch.where(no_weight, value, psis),
    }


def judged(state: Moments) -> dict[str, Tensor]:
    """What `finish` says, and `flagged` `[N]` bool: is an error not to be believed?

    Where k-hat exceeds its threshold, or is unknown for want of weights. Of a few distinct weights,
    as discrete latents have them, k-hat is unknown (NaN) as well, and the effective sample size
    judges: flagged below K/10. A value of the latents that no draw has is seen by neither.
    """
    found, num_samples = finish(state), state.num_samples
    tail = state.tail.sort(1).values
    tied = is_tied(tail[:, tail.shape[1] - num_largest(num_samples) :], state.rounding)
    # Ties by rounding that may hide a bad guide excuse nothing.
    tied &= (found["khat"] != -math.inf) & (state.rounding <= MAX_ROUNDING)
    good = torch.where(
        tied,
        found["ess"] >= GOOD_SHARE * num_samples,
        found["khat"] <= khat_threshold(num_samples),
    )
    return {**found, "khat": torch.where(tied, math.nan, found["khat"]), "flagged": ~good}
