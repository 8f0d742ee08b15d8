"""The fastest of a few ways, by a short trial each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
W = TypeVar("W")


def fastest(
    ways: Iterable[W], make: Callable[[W], T], trial: Callable[[T], object], repeats: int = 3
) -> tuple[W, T]:
    """The way whose best of `repeats` trials took least, and what was made of it.

    One way alone is not tried. The first trial of each is thrown away: it may compile.
    """
    ways = list(ways)
    if len(ways) == 1:
        return ways[0], make(ways[0])
    best: tuple[float, W, T] | None = None
    for way in ways:
        made = make(way)
        trial(made)
        for _ in range(repeats):
            started = time.perf_counter()
            trial(made)
            seconds = time.perf_counter() - started
            if best is None or seconds < best[0]:
                best = seconds, way, made
    assert best is not None
    return best[1], best[2]
