"""The normalizer of directions: log of a modified Bessel function, wherever its arguments lie."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import cache

import torch
from torch import Tensor

# From this radius sqrt(v^2 + kappa^2) on the asymptotic series holds to 1e-12, and up to it the
# power series needs fewer terms than these.
FAR = 30.0
NUM_POWERS = 48
NUM_ASYMPTOTIC = 8


def log_mgf(dim: int, concentration: Tensor) -> Tensor:
    r"""log E[exp(kappa t)], where t is one coordinate of a uniform unit vector in R^D.

        E[exp(kappa t)] = 0F1(; D/2; kappa^2 / 4) = \Gamma(v + 1) (2 / kappa)^v I_v(kappa),

    v = D/2 - 1. By the power series of 0F1 near the origin, elsewhere by the expansion of I_v that
    holds uniformly in v and kappa. Both are sums of a fixed number of terms.

    Args:
        dim: D >= 2. concentration: kappa >= 0, any shape.
    Returns: float64 of that shape, differentiable; to 1e-11, absolute below 1 and relative above.
    References: DLMF 10.25.2 and 10.41.3, https://dlmf.nist.gov/10.41.
    """
    order = dim / 2 - 1
    square = concentration.double().square()
    far = _asymptotic(order, (order**2 + square).clamp_min(FAR**2).sqrt())
    if order >= FAR:
        return far
    # The branch that is not taken is kept where it is finite, and so are its gradients.
    near = _power_series(order, square.clamp_max(FAR**2) / 4)
    return torch.where(order**2 + square < FAR**2, near, far)


def mean_height(dim: int, concentration: Tensor) -> Tensor:
    """E[t] under weights exp(kappa t): I_{v+1}(kappa) / I_v(kappa), the derivative of `log_mgf`."""
    kappa = concentration.double()
    return kappa / dim * (log_mgf(dim + 2, kappa) - log_mgf(dim, kappa)).exp()


def _power_series(order: float, quarter: Tensor) -> Tensor:
    """log sum_k (kappa^2 / 4)^k / (k! (v + 1)_k)."""
    powers = torch.arange(1, NUM_POWERS, dtype=torch.float64, device=quarter.device)
    log_weights = math.lgamma(order + 1) - (powers + 1).lgamma() - (powers + order + 1).lgamma()
    return (quarter.unsqueeze(-1).pow(powers) * log_weights.exp()).sum(-1).log1p()


def _asymptotic(order: float, radius: Tensor) -> Tensor:
    """The same by r = sqrt(v^2 + kappa^2), p = v / r: sum_k U_k(p) / v^k and what leads it."""
    share = order**2 / radius.square()
    total = torch.ones_like(radius)
    for k, coefficients in enumerate(debye(NUM_ASYMPTOTIC)[1:], start=1):
        inner = torch.zeros_like(radius)
        for c in reversed(coefficients):
            inner = inner * share + c
        total = total + inner / radius.pow(k)
    return (
        radius
        - order * ((order + radius) / 2).log()
        + math.lgamma(order + 1)
        - 0.5 * (2 * math.pi * radius).log()
        + total.log()
    )


@cache
def debye(count: int) -> tuple[tuple[float, ...], ...]:
    """Coefficients c_kj of U_k(p) = sum_j c_kj p^(k + 2j), k = 0 .. count.

    U_{k+1} = 1/2 p^2 (1 - p^2) U_k' + 1/8 int_0^p (1 - 5 t^2) U_k(t) dt   (DLMF 10.41.9)
    """
    rows = [[Fraction(1)]]
    for k in range(count):
        row = [Fraction(0)] * (k + 2)
        for j, c in enumerate(rows[-1]):
            power = k + 2 * j
            row[j] += c * (Fraction(power, 2) + Fraction(1, 8 * (power + 1)))
            row[j + 1] -= c * (Fraction(power, 2) + Fraction(5, 8 * (power + 3)))
        rows.append(row)
    return tuple(tuple(map(float, row)) for row in rows)
