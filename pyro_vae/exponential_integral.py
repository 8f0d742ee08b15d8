"""The exponential integral, which torch does not have."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

EULER = 0.5772156649015329
# E_1(u) + log u + EULER = sum_k SERIES[k - 1] u^k; 20 terms reach float64 for u <= 1.
SERIES = [-((-1) ** k) / (k * math.factorial(k)) for k in range(1, 21)]
# Gauss-Laguerre: for u > 1 the error of 48 points is below 1e-11 of the value.
POINTS, WEIGHTS = (part.tolist() for part in np.polynomial.laguerre.laggauss(48))


def log_scaled_e1(u: Tensor) -> Tensor:
    """log(e^u E_1(u)), u > 0, where E_1(u) = int_u^oo e^-t / t dt.

    By its series up to 1 (Abramowitz and Stegun 1964, 5.1.11), beyond by Gauss-Laguerre quadrature
    of e^u E_1(u) = int_0^oo e^-t / (t + u) dt. Differentiable.
    """
    small = u <= 1
    # Each branch is handed a number that it can take, for gradients of the other must be finite.
    low, high = torch.where(small, u, 0.5), torch.where(small, 2.0, u)
    total = torch.zeros_like(u)
    for coefficient in reversed(SERIES):
        total = low * (total + coefficient)
    below = low + (total - low.log() - EULER).log()
    points, weights = u.new_tensor(POINTS), u.new_tensor(WEIGHTS)
    above = (weights / (high.unsqueeze(-1) + points)).sum(-1).log()
    return torch.where(small, below, above)
