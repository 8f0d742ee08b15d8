"""Rows of an array, chosen and given noise so that neither depends on the other.

Both come from the raw stream of PCG64, which NumPy keeps the same for good, and never from a
global generator: the same request gives the same data on every machine and in every release.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

HOLD_OUT = 20130820  # the permutation that holds out validation and test data
SUBSET = 20131220  # the permutation that cuts a split to a size
BLOCK = 1 << 22  # numbers drawn at a time


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of an array as a file holds it, with what belongs to all its rows.

    Labels, which values are known (`mask`, the others are 0) and exposures, where there are any.

    A row's noise follows from the seed, the `stream` and the row's place in the array: it stays
    the same whichever other rows are chosen.
    """

    array: np.ndarray
    labels: np.ndarray | None = None
    stream: int = 0
    index: np.ndarray | None = None
    mask: np.ndarray | None = None
    exposure: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.array) if self.index is None else len(self.index)

    @property
    def values(self) -> np.ndarray:
        return self.pick(self.array)

    def pick(self, whole: np.ndarray) -> np.ndarray:
        return whole if self.index is None else whole[self.index]

    def uniforms(self, seed: int) -> np.ndarray:
        """A float32 in [0, 1) for every value."""
        return self.pick(uniforms((seed, self.stream), self.array.shape))

    def hold_out(self, *counts: int) -> list[Rows]:
        """Disjoint choices of these sizes, then the rest, each in the order of the array."""
        order = permutation(HOLD_OUT, len(self))
        return [self._take(some) for some in np.split(order, np.cumsum(counts))]

    def subset(self, size: int) -> Rows:
        """A random but fixed choice of rows; a larger one holds every smaller one."""
        return self._take(permutation(SUBSET, len(self))[:size])

    def _take(self, positions: np.ndarray) -> Rows:
        positions = np.sort(positions)
        index = positions if self.index is None else self.index[positions]
        return replace(self, index=index)


def permutation(seed: int, size: int) -> np.ndarray:
    return np.argsort(np.random.PCG64(seed).random_raw(size), kind="stable")


def uniforms(seed: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """float32 numbers k / 2^24 in [0, 1)."""
    stream, drawn = np.random.PCG64(seed), np.empty(shape, np.float32)
    flat = drawn.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK]
        block[:] = stream.random_raw(block.size) >> np.uint64(40)
    return np.multiply(drawn, np.float32(2.0**-24), out=drawn)
