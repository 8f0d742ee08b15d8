"""Variances of few draws each, made less noisy by those of the other data.

Sixteen chains tell a variance to 37%. Data whose chains happen to lie close together would look
calm, and their intervals would be too narrow just where nothing is flagged. An empirical-Bayes
prior over the data takes most of that chance away where the data are alike (Smyth 2004,
Statistical Applications in Genetics and Molecular Biology 3).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

FEWEST = 10  # data from which a prior can be told
MOST_DEGREES = 1_000.0


class Moderated(NamedTuple):
    """Variances `[N]`, and the degrees of freedom that each now has."""

    variance: Tensor
    degrees: float


def moderated(variance: Tensor, degrees: float) -> Moderated:
    """Posterior means of variances under a scaled inverse chi-square prior fitted to all of them.

        s~_n^2 = (d0 s0^2 + d s_n^2) / (d0 + d),   s_n^2 | sigma_n^2 ~ sigma_n^2 chi^2_d / d

    d0 and s0 follow from mean and variance of log s_n^2. Variances that are 0 or not finite, and
    fewer than `FEWEST` others, are left as they are.

    Args:
        variance: `[N]`, float64.
        degrees: d, of freedom of each.
    """
    usable = (variance > 0) & variance.isfinite()
    if int(usable.sum()) < FEWEST:
        return Moderated(variance, degrees)
    own = variance[usable]
    half = torch.tensor(degrees / 2, dtype=own.dtype)
    level = own.log() - torch.digamma(half) + half.log()
    excess = float(level.var() - torch.polygamma(1, half))
    prior = 2 * inverse_trigamma(max(excess, 1e-6))
    prior = min(prior, MOST_DEGREES)
    half = torch.tensor(prior / 2, dtype=own.dtype)
    center = (level.mean() + torch.digamma(half) - half.log()).exp()
    found = variance.clone()
    found[usable] = (prior * center + degrees * own) / (prior + degrees)
    return Moderated(found, degrees + prior)


def seldom_below(degrees: float) -> float:
    """What one in twenty of chi^2_d / d lies below."""
    return _quantile(0.05, degrees)


def seldom_above(degrees: float) -> float:
    """What one in twenty of chi^2_d / d lies above."""
    return _quantile(0.95, degrees)


def _quantile(share: float, degrees: float) -> float:
    from scipy.stats import chi2

    return float(chi2.ppf(share, degrees)) / degrees


def inverse_trigamma(value: float) -> float:
    """x with trigamma(x) = value >= 1e-6, by Newton's steps on 1 / trigamma."""
    if value > 1e7:
        return 1 / math.sqrt(value)
    x = 0.5 + 1 / value
    for _ in range(50):
        at = torch.tensor(x, dtype=torch.float64)
        slope, curve = float(torch.polygamma(1, at)), float(torch.polygamma(2, at))
        change = slope * (1 - slope / value) / curve
        x += change
        if abs(change) < 1e-10 * x:
            break
    return x
