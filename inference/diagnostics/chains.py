"""How well chains have mixed: rank-normalised R-hat and effective sample size.

Vehtari, Gelman, Simpson, Carpenter, Buerkner, arXiv:1903.08008.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def split_rhat(draws: Tensor) -> Tensor:
    """R-hat of chains `[chains, draws, ...]` cut in halves, for each of the trailing numbers.

    sqrt of total over within-chain variance, of the draws' normal scores; the larger of that for
    the draws and that for their distance from the median. Near 1 where chains agree; NaN where
    all draws are equal.
    """
    halves = _halved(draws)
    ordered = halves.flatten(0, 1).sort(0).values
    median = (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2
    distance = (halves - median).abs()
    found = torch.stack([_rhat(_normal_scores(each)) for each in (halves, distance)])
    return found.amax(0)


def effective_size(draws: Tensor) -> Tensor:
    """Independent draws that would give the mean of chains `[chains, draws, ...]` as exactly.

    n / (1 + 2 sum_t rho_t), autocorrelations summed by Geyer's initial monotone sequence; at most
    n log10 n. NaN where all draws are equal.
    """
    halves = _halved(draws)
    chains, length = halves.shape[:2]
    within, total = _variances(halves)
    centred = halves - halves.mean(1, keepdim=True)
    padded = torch.fft.rfft(centred, n=2 * length, dim=1)
    covariance = torch.fft.irfft(padded.abs().square(), n=2 * length, dim=1)[:, :length] / length
    rho = 1 - (within - covariance.mean(0)) / total
    rho[0] = 1.0
    pairs = rho[: length // 2 * 2].reshape(length // 2, 2, *rho.shape[1:]).sum(1)
    # From the first sum that is not positive on, there is nothing but noise; at the very end, too.
    used = (pairs > 0).cumprod(0)
    used[-2:] = 0
    after = (2 * used.sum(0, keepdim=True)).clamp_max(length - 1)
    last = rho.gather(0, after).squeeze(0).clamp_min(0.0)
    tau = 2 * (pairs.cummin(0).values * used).sum(0) - 1 + last
    num = chains * length
    return (num / tau.clamp_min(1 / math.log10(num))).where(total > 0, math.nan)


def _halved(draws: Tensor) -> Tensor:
    """`[2 chains, draws / 2, ...]`: a chain that drifts disagrees with itself."""
    half = draws.shape[1] // 2
    return torch.cat([draws[:, :half], draws[:, -half:]]).double()


def _variances(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Within chains, and in total as seen by all of them."""
    length = draws.shape[1]
    within = draws.var(1).mean(0)
    between = draws.mean(1).var(0)
    return within, within * (length - 1) / length + between


def _rhat(draws: Tensor) -> Tensor:
    within, total = _variances(draws)
    return (total / within).sqrt().where(within > 0, math.nan)


def _normal_scores(draws: Tensor) -> Tensor:
    """Phi^-1 of the ranks among the draws of all chains."""
    from scipy.stats import rankdata  # takes long to import, and few need it

    flat = draws.flatten(0, 1).flatten(1).numpy()
    ranks = torch.from_numpy(rankdata(flat, axis=0))
    scores = torch.special.ndtri((ranks - 0.375) / (len(flat) + 0.25))
    return scores.reshape(draws.shape)
