"""The tail of importance weights: generalized Pareto fit, k-hat, smoothing, vectorized over data.

References: Vehtari, Simpson, Gelman, Yao, Gabry, arXiv:1507.02646 (PSIS and k-hat);
Zhang and Stephens 2009, Technometrics 51 (the Pareto fit).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

MIN_TAIL = 5  # a Pareto shape is not fitted to fewer draws
GOOD_SHARE = 0.1  # of the samples: an effective sample size from here on is good
MOST_NUMBERS = 2**20  # of one fit: 64 data of 5,000 samples, or 16 of 10^5


def khat_threshold(num_samples: int) -> float:
    """Above min(1 - 1/log10 K, 0.7) the standard error of K draws is not to be believed."""
    if num_samples <= 10:
        return 0.0
    return min(1 - 1 / math.log10(num_samples), 0.7)


def tail_length(num_samples: int) -> int:
    """min(K/5, 3 sqrt K), rounded up: the number of largest weights the fit looks at."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def pareto_khat(log_weights: Tensor, *, resolution: Tensor | float = 0.0) -> Tensor:
    """Pareto k-hat of each row's weights.

    Args:
        log_weights: `[N, K]`, nats.
        resolution: `[N]`; a spread of log-weights within it is rounding, not variation.
    Returns: `[N]` float64. -inf for constant weights; NaN where there are too few draws, or too
        few above the tail's cutoff (ties), for a fit; inf where the largest few outweigh all
        others beyond floating point. Of a few distinct weights (`is_tied`) it tells nothing.
    """
    log_weights = log_weights.double()
    num_samples = log_weights.shape[1]
    constant = log_weights.amax(1) - log_weights.amin(1) <= resolution
    tail = largest(log_weights, num_largest(num_samples)).sort(1).values
    return fit_tail(tail, num_samples, constant).khat


def num_largest(num_samples: int) -> int:
    """How many of K log-weights `fit_tail` needs: the tail and its cutoff, if it can be fitted."""
    tail = tail_length(num_samples)
    return tail + 1 if tail >= MIN_TAIL else 0


def is_tied(tail: Tensor, rounding: Tensor) -> Tensor:
    """`[N]` bool: is each distinct weight of the tail there twice or more, on average?

    So it is where latents are discrete and have few values. Weights are bounded there, and what a
    fit says depends on where the cutoff falls among them. Weights of 0 are no part of this, and
    many steps that are no larger than rounding are no ties, but a continuous tail that is rounded.

    Args:
        tail: as in `fit_tail`.
        rounding: `[N]`, nats by which a log-weight may be off.
    """
    above = tail[:, 1:]  # what is not, is the cutoff
    there = torch.isfinite(above)
    steps = above.diff(dim=1).where(there[:, :-1], 0.0)
    count, distinct = there.sum(1), 1 + (steps > 0).sum(1)
    apart = (distinct < MIN_TAIL) | (steps.sum(1) > distinct * rounding)
    return (count >= MIN_TAIL) & (2 * distinct <= count) & apart


def largest(log_weights: Tensor, count: int) -> Tensor:
    """The `count` largest of each row, in no order."""
    return torch.topk(log_weights, count, dim=1, sorted=False).values


class Tail(NamedTuple):
    """What the largest weights say.

    khat: `[N]`, as in `pareto_khat`.
    raw, smoothed: `[N]`, the sum of those that are known, as multiples of the largest weight, and
        what it is where the fitted order statistics stand in their place; both NaN where no tail
        can be fitted.
    cutoff: `[N]`, the smallest of them, as a multiple of the largest.
    """

    khat: Tensor
    raw: Tensor
    smoothed: Tensor
    cutoff: Tensor


def fit_tail(tail: Tensor, num_samples: int, constant: Tensor) -> Tail:
    """The Pareto fit to the tail of K weights, of which the `largest` are known.

    Args:
        tail: `[N, num_largest(K)]` float64, ascending, the cutoff first.
        num_samples: K.
        constant: `[N]` bool, rows whose K weights are all equal.
    """
    khat = torch.full_like(constant, math.nan, dtype=torch.float64)
    raw, smoothed, cutoff = (torch.full_like(khat, math.nan) for _ in range(3))
    if tail.shape[1] > MIN_TAIL:
        weights = (tail - tail[:, -1:]).exp()
        cutoff = weights[:, 0]
        excess = weights[:, 1:] - weights[:, :1]
        # Ties with the cutoff are no part of the tail.
        lengths = (excess > 0).sum(1)
        for length in lengths.unique().tolist():
            if length >= MIN_TAIL:
                # The fit holds [rows, grid, tail] numbers.
                most = max(1, MOST_NUMBERS // (grid_size(length) * length))
                for rows in (lengths == length).nonzero().squeeze(1).split(most):
                    fitted = excess[rows, excess.shape[1] - length :]
                    khat[rows], scale = pareto_fit(fitted)
                    raw[rows] = fitted.sum(1)
                    smoothed[rows] = order_statistics(fitted, khat[rows], scale).sum(1)
        underflow = (weights[:, -MIN_TAIL] == 0) & torch.isfinite(tail[:, -MIN_TAIL])
        khat[underflow] = math.inf
    if num_samples > 1:
        khat[constant] = -math.inf
    fitted = torch.isfinite(khat)
    below = tail.shape[1] * cutoff
    raw, smoothed = (torch.where(fitted, e + below, math.nan) for e in (raw, smoothed))
    return Tail(khat, raw, smoothed, cutoff)


def grid_size(tail: int) -> int:
    """Points of Zhang and Stephens' grid for a tail of so many draws."""
    return 30 + int(math.sqrt(tail))


def pareto_fit(excess: Tensor) -> tuple[Tensor, Tensor]:
    """Shape k and scale of a generalized Pareto distribution fitted to excesses `[N, M]`.

    Excesses ascend. A quasi-Bayesian average over Zhang and Stephens' grid; k is then shrunk to
    0.5 with the weight of ten draws as in PSIS.
    """
    m = excess.shape[1]
    grid = grid_size(m)
    steps = torch.arange(1, grid + 1, dtype=excess.dtype, device=excess.device)
    quartile = excess[:, int(m / 4 + 0.5) - 1].unsqueeze(1)
    b = (1 - torch.sqrt(grid / (steps - 0.5))) / (3 * quartile) + 1 / excess[:, -1:]  # [N, grid]
    k = torch.log1p(-b.unsqueeze(2) * excess.unsqueeze(1)).mean(2)
    profile = m * (torch.log(-b / k) - k - 1)
    weight = profile.softmax(1)
    best = (b * weight).sum(1, keepdim=True)
    shape = torch.log1p(-best * excess).mean(1)
    return (m * shape + 10 * 0.5) / (m + 10), -shape / best.squeeze(1)


def order_statistics(excess: Tensor, shape: Tensor, scale: Tensor) -> Tensor:
    """What the fitted distribution expects in the place of ascending excesses `[N, M]`.

        e_i = scale ((1 - p_i)^-k - 1) / k,   p_i = (i - 1/2) / M

    but no more than the largest that is there.

    Args: k and scale are `[N]`.
    """
    m = excess.shape[1]
    p = (torch.arange(m, dtype=excess.dtype, device=excess.device) + 0.5) / m
    log_rest = torch.log1p(-p)
    k = shape.unsqueeze(1)
    exponential = k.abs() < torch.finfo(excess.dtype).eps
    quantile = torch.where(exponential, -log_rest, torch.expm1(-k * log_rest) / k)
    return torch.minimum(scale.unsqueeze(1) * quantile, excess[:, -1:])
