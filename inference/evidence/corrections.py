"""What the same K weights give beside log p^(x): less biased, or steadier, but bounds no more.

With p^ = 1/K sum_k w_k the estimate log p^ is low by about var(w)/(2 K p^2) (Nowozin 2018,
"Debiasing evidence approximations", ICLR). All of these are functions of sums over weights and of
the largest few, so that weights need not be kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inference.evidence.smoothing import Tail, num_largest

# Weights kept one by one, if there are so many: the series of those that are not is cut off after
# fourth powers, so it errs by less than (1/128)^4 / 5 < 1e-9 nat.
FEWEST_KEPT = 128
ORDERS = 4


def delta(value: Tensor, std_error: Tensor) -> Tensor:
    """log p^ + s^2/2 with s^2 = 1/ESS - 1/K: the delta method's first term of the bias taken off.

    What is left of the bias is of order 1/K^2. Args: `[N]`.
    """
    return value + std_error.square() / 2


def jackknife(value: Tensor, powers: Tensor, largest: Tensor, num_samples: int) -> Tensor:
    """K log p^ - (K-1)/K sum_k log p^_(-k), where p^_(-k) is the mean of all weights but w_k.

    With shares a_k = w_k / sum w it is log p^ + (K-1)/K sum_k g(a_k) - (K-1) g(1/K),
    g(a) = -log(1 - a) - a. What is left of the bias is of order 1/K^2 (JVI-1, Nowozin 2018).
    Infinite where all weights but one are 0. To 1e-8 nat, or where one weight's share is above
    1 - 1e-8, to what 16 digits leave of the smallest.

    Args:
        value: `[N]`, log p^.
        powers: `[N, 4]`, sums of w^j for j = 1..4, as multiples of the largest weight's.
        largest: `[N, M]` log-weights, ascending: all, or the largest `FEWEST_KEPT` or more.
    Returns: `[N]`; NaN for K = 1.
    """
    if num_samples == 1:
        return torch.full_like(value, math.nan)
    total = powers[:, :1]
    share = (largest - largest[:, -1:]).exp() / total
    # All but the largest are at most a half, so that the product does not underflow.
    found = -(1 - share[:, :-1]).prod(1).log() - share.sum(1)
    others = largest[:, :-1].logsumexp(1) - largest[:, -1] - total[:, 0].log()
    if largest.shape[1] < num_samples:
        square = share.square()
        kept = share.sum(1), square.sum(1), (square * share).sum(1), square.square_().sum(1)
        left = powers / orders(total[:, 0]) - torch.stack(kept, 1)
        # Rounding could make it less than none, or more than if all were as the least that is kept.
        most = (num_samples - largest.shape[1]) * orders(share[:, 0])
        left = torch.minimum(left.clamp_min(0), most)
        found = found + (left[:, 1:] / left.new_tensor([2.0, 3.0, 4.0])).sum(1)
        others = torch.logaddexp(others, left[:, 0].log())
    # The largest may be nearly 1: what the others sum to tells by how little it is not.
    found = found - others
    even = -math.log1p(-1 / num_samples) - 1 / num_samples
    return value + (num_samples - 1) * (found / num_samples - even)


def orders(factor: Tensor) -> Tensor:
    """Powers 1 to 4 of `[...]`, as `[..., 4]`."""
    square = factor.square()
    return torch.stack([factor, square, square * factor, square.square()], -1)


def half(peaks: Tensor, sums: Tensor, num_samples: int) -> Tensor:
    """The mean of log p^ over the first and the second half of the samples: what K/2 would give.

    At most log p^ of all K where both halves are as long; how far below tells how much the
    estimate still rises. NaN for K = 1.

    Args: `[N, 2]`: the largest log w of each half, and its sum of w e^-peak.
    """
    first = num_samples // 2
    if first == 0:
        return torch.full_like(peaks[:, 0], math.nan)
    counts = sums.new_tensor([first, num_samples - first])
    return (peaks + sums.log() - counts.log()).mean(1)


def smoothed(value: Tensor, total: Tensor, tail: Tail, num_samples: int) -> Tensor:
    """PSIS: log of the mean weight, the largest replaced by what a Pareto fit to them expects.

    Steadier than log p^ where the tail is heavy, but lower rather than higher: the order statistics
    are at most the largest weight that is there (arXiv:1507.02646). log p^ itself where no tail
    can be fitted.

    Args: `[N]`: log p^; the sum of weights, as a multiple of the largest.
    """
    most = (num_samples - num_largest(num_samples)) * tail.cutoff
    rest = torch.minimum((total - tail.raw).clamp_min(0), most)  # but for rounding it is
    found = value + ((rest + tail.smoothed) / total).log()
    return torch.where(tail.smoothed.isnan(), value, found)
