"""Bits per dimension, the unit in which papers compare models of grey pictures."""

from __future__ import annotations

import math


def bits_per_dim(log_px: float, num_dims: float, levels: int | None = None) -> float:
    """-log2 P(x) / D of the discrete data, exactly or from above.

    Args:
        log_px: log-probability of the levels, in nats per datum; or, with `levels`, log-density of
            dequantized data x = (level + u) / levels, u ~ U(0, 1) (arXiv:1511.01844). On the scale
            of the levels that is log p(level + u) = log p(x) - D log levels. By Jensen its mean
            over u is at most log P(level), so that these bits are an upper bound.
        num_dims: D, numbers a datum; where some are missing, those known, in mean.

    >>> bits_per_dim(-784 * math.log(256), 784)  # each level is as probable as any other
    8.0
    >>> bits_per_dim(0.0, 784, levels=256)  # the same as a density: uniform on (0, 1)
    8.0
    """
    noise = 0.0 if levels is None else math.log2(levels)
    return noise - log_px / (num_dims * math.log(2))
