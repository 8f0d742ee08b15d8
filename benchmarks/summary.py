"""Medians with spread, and paired ratios."""

from __future__ import annotations

from collections.abc import Sequence


def quantile(values: Sequence[float], share: float) -> float:
    """By linear interpolation between order statistics."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    return {
        "median": quantile(values, 0.5),
        "lower": quantile(values, 0.25),
        "upper": quantile(values, 0.75),
    }


def ratio(values: Sequence[float], reference: Sequence[float]) -> dict[str, float]:
    """Round by round, so that what slows a whole round cancels."""
    return spread([a / b for a, b in zip(values, reference, strict=False)])
