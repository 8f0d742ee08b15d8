"""The tail of importance weights: generalized Pareto fit and k-hat, vectorized over data.

References: Vehtari, Simpson, Gelman, Yao, Gabry, arXiv:1507.02646 (PSIS and k-hat);
Zhang and Stephens 2009, Technometrics 51 (the Pareto fit).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MIN_TAIL = 5  # a Pareto shape is not fitted to fewer draws
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
        others beyond floating point.
    """
    log_weights = log_weights.double()
    num_samples = log_weights.shape[1]
    constant = log_weights.amax(1) - log_weights.amin(1) <= resolution
    return tail_khat(largest(log_weights, num_samples), num_samples, constant)


def num_largest(num_samples: int) -> int:
    """How many of K log-weights `tail_khat` needs: the tail and its cutoff, if it can be fitted."""
    tail = tail_length(num_samples)
    return tail + 1 if tail >= MIN_TAIL else 0


def largest(log_weights: Tensor, num_samples: int) -> Tensor:
    """The `num_largest(num_samples)` largest of each row, in no order."""
    return torch.topk(log_weights, num_largest(num_samples), dim=1, sorted=False).values


def tail_khat(tail: Tensor, num_samples: int, constant: Tensor) -> Tensor:
    """`pareto_khat` of K weights, of which the `largest` are known.

    Args:
        tail: `[N, num_largest(K)]` float64, in any order.
        num_samples: K.
        constant: `[N]` bool, rows whose K weights are all equal.
    """
    khat = torch.full_like(constant, math.nan, dtype=torch.float64)
    if tail.shape[1] > MIN_TAIL:
        top = tail.sort(1).values  # ascending, cutoff first
        weights = (top - top[:, -1:]).exp()
        excess = weights[:, 1:] - weights[:, :1]
        # Ties with the cutoff are no part of the tail.
        lengths = (excess > 0).sum(1)
        for length in lengths.unique().tolist():
            if length >= MIN_TAIL:
                # The fit holds [rows, grid, tail] numbers.
                most = max(1, MOST_NUMBERS // (grid_size(length) * length))
                for rows in (lengths == length).nonzero().squeeze(1).split(most):
                    khat[rows] = pareto_shape(excess[rows, excess.shape[1] - length :])
        underflow = (weights[:, -MIN_TAIL] == 0) & torch.isfinite(top[:, -MIN_TAIL])
        khat[underflow] = math.inf
    if num_samples > 1:
        khat[constant] = -math.inf
    return khat


def grid_size(tail: int) -> int:
    """Points of Zhang and Stephens' grid for a tail of so many draws."""
    return 30 + int(math.sqrt(tail))


def pareto_shape(excess: Tensor) -> Tensor:
    """Shape k of a generalized Pareto distribution fitted to ascending excesses `[N, M]`.

    A quasi-Bayesian average over Zhang and Stephens' grid, then shrunk to 0.5 with the weight of
    ten draws as in PSIS.
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
    return (m * shape + 10 * 0.5) / (m + 10)
