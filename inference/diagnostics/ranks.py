"""Ranks that should be uniform: tests of it, their correction, and a band for their ECDF.

Ranks are whole numbers r in 0..L, all as likely where the true value and L draws are exchangeable.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

MOST_BINS = 20
LEAST_EXPECTED = 5  # ranks in a bin, for the chi-square's distribution to hold
MOST_SIMULATED = 100_000
AT_ONCE = 5_000


def rank(true: Tensor, draws: Tensor) -> Tensor:
    """How many of `draws [L, ...]` lie below `true [...]`; among equals, a place at random.

    Draws from torch's global generator where values are equal.
    """
    below, equal = (draws < true).sum(0), (draws == true).sum(0)
    if bool(equal.any()):
        share = torch.rand(equal.shape, dtype=torch.float64, device=equal.device)
        below = below + (share * (equal + 1)).long()
    return below


class Tests(NamedTuple):
    """Of ranks `[N, D]`: per unit `[D]`, float64.

    `chi_square`: of binned ranks. `bias`: the mean normal score as a z-score, negative where the
    draws lie too high. `spread`: the scores' variance as a z-score, against that under the shift
    that their mean tells; positive where the draws are too narrow. `p_chi_square`, `p_bias`,
    `p_spread`: the latter two-sided; each by itself.
    """

    chi_square: Tensor
    bias: Tensor
    spread: Tensor
    p_chi_square: Tensor
    p_bias: Tensor
    p_spread: Tensor


def num_bins(num_data: int, num_draws: int) -> int:
    return max(2, min(MOST_BINS, num_draws + 1, num_data // LEAST_EXPECTED))


def uniformity(ranks: Tensor, num_draws: int) -> Tests:
    """Test each column of `ranks [N, D]` for uniformity on 0..`num_draws`."""
    from scipy.stats import chi2, norm

    num_data, size = len(ranks), num_draws + 1
    bins = num_bins(num_data, num_draws)
    # Bins may differ by one rank, and what is expected of them with it.
    bin_of = torch.arange(size) * bins // size
    expected = torch.bincount(bin_of).double() * num_data / size
    counts = torch.nn.functional.one_hot(bin_of[ranks], bins).sum(0).double()  # [D, bins]
    chi_square = ((counts - expected).square() / expected).sum(-1)

    scores, shifted = shifted_scores(num_draws)
    found = torch.from_numpy(scores)[ranks]
    mean, variance = found.mean(0), found.var(0)
    bias = mean / math.sqrt(float(scores.var()) / num_data)
    # Against what a shift alone does to the variance of scores that end at 1/2 and L + 1/2; the
    # shift is estimated from the same scores, hence the slope in the error (delta method).
    v, slope, third, fourth = (
        torch.from_numpy(np.interp(mean.numpy(), shifted[0], moment)) for moment in shifted[1:]
    )
    error = ((fourth - v**2 - 2 * slope * third + slope**2 * v) / num_data).clamp_min(0).sqrt()
    spread = torch.where(error > 1e-6, (variance - v) / error.clamp_min(1e-6), 0.0)
    return Tests(
        chi_square=chi_square,
        bias=bias,
        spread=spread,
        p_chi_square=torch.from_numpy(np.atleast_1d(chi2.sf(chi_square.numpy(), bins - 1))),
        p_bias=torch.from_numpy(2 * norm.sf(bias.abs().numpy())),
        p_spread=torch.from_numpy(2 * norm.sf(spread.abs().numpy())),
    )


@functools.lru_cache(maxsize=8)
def shifted_scores(num_draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Normal scores of ranks `[L + 1]`, and their moments where the true value is shifted.

    A score is s(r) = Phi^-1((r + 1/2) / (L + 1)). With draws from N(0, 1) and true values from
    N(d, 1), r is binomial with share Phi(y), y ~ N(d, 1). Moments `[5, shifts]`: mean, variance,
    slope of the variance by the mean, third and fourth central moment.
    """
    from scipy.stats import binom, norm

    ranks = np.arange(num_draws + 1)
    scores = norm.ppf((ranks + 0.5) / (num_draws + 1))
    y, step = np.linspace(-10, 10, 2001, retstep=True)
    given = binom.pmf(ranks, num_draws, norm.cdf(y)[:, None])  # [y, L + 1]
    shifts = np.linspace(-4, 4, 161)
    weights = norm.pdf(y - shifts[:, None]) * step @ given  # [shifts, L + 1]
    mean = weights @ scores
    central = scores - mean[:, None]
    variance, third, fourth = ((weights * central**n).sum(1) for n in (2, 3, 4))
    slope = np.gradient(variance, mean)
    return scores, np.stack([mean, variance, slope, third, fourth])


def holm(p_values: Tensor) -> Tensor:
    """Holm's adjusted p-values: of all that lie below a, false alarms occur at rate a at most."""
    flat = p_values.flatten().double()
    order = flat.argsort()
    scaled = flat[order] * torch.arange(len(flat), 0, -1)
    adjusted = torch.empty_like(flat)
    adjusted[order] = scaled.cummax(0).values.clamp_max(1.0)
    return adjusted.reshape(p_values.shape)


class Band(NamedTuple):
    """Between `low` and `high` lie all points of a uniform ECDF at once, with probability `level`.

    All `[L + 1]`, float64: at `points` (r + 1) / (L + 1), less these.
    """

    points: np.ndarray
    low: np.ndarray
    high: np.ndarray
    level: float


def ecdf(ranks: Tensor, num_draws: int) -> Tensor:
    """Share of ranks <= r less (r + 1) / (L + 1), `[L + 1, D]` of ranks `[N, D]`."""
    counts = torch.nn.functional.one_hot(ranks, num_draws + 1).sum(0).T.double()
    points = torch.arange(1, num_draws + 2, dtype=torch.float64) / (num_draws + 1)
    return counts.cumsum(0) / len(ranks) - points[:, None]


@functools.lru_cache(maxsize=8)
def band(num_data: int, num_draws: int, level: float, seed: int = 0) -> Band:
    """A simultaneous band for the ECDF of N ranks, by simulation (arXiv:2103.10522).

    Pointwise, N ECDF(z) is binomial. Of simulated ranks the smallest two-sided pointwise
    probability g over all points is noted; the band holds the pointwise probability whose
    g is fallen below by a share 1 - `level` of them.
    """
    from scipy.stats import binom

    share = np.arange(1, num_draws + 1) / (num_draws + 1)  # at the last point it is 1 for sure
    every = np.arange(num_data + 1)[:, None]
    below = binom.cdf(every, num_data, share)  # [N + 1, L]
    above = binom.sf(every - 1, num_data, share)
    tail = 2 * np.minimum(below, above)
    random = np.random.default_rng(seed)
    wanted = int(np.clip(40 / (1 - level), 10_000, MOST_SIMULATED))
    smallest = []
    for start in range(0, wanted, AT_ONCE):
        count = min(AT_ONCE, wanted - start)
        uniform = np.full(num_draws + 1, 1 / (num_draws + 1))
        ranks = random.multinomial(num_data, uniform, size=count).cumsum(1)[:, :-1]
        smallest.append(np.take_along_axis(tail, ranks, 0).min(1))
    # At most a share 1 - level lies below, ties and all.
    gamma = float(np.quantile(np.concatenate(smallest), 1 - level, method="lower"))
    kept = tail >= gamma
    low = np.where(kept, every, num_data).min(0) / num_data - share
    high = np.where(kept, every, 0).max(0) / num_data - share
    points = np.append(share, 1.0)
    return Band(points, np.append(low, 0.0), np.append(high, 0.0), level)
