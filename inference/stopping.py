"""Early stopping on the validation bound."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Stopping:
    """The best validation bound so far and how long ago it was. A value: `see` returns the next.

    The best is tracked from the start, since every validation bound is at beta = 1; patience is
    counted only from the end of the KL warm-up.
    """

    best: float = -math.inf
    best_epoch: int = 0
    waited: int = 0

    def see(self, bound: float, epoch: int, *, warming: bool) -> Stopping:
        if bound > self.best:
            return Stopping(bound, epoch, 0)
        return Stopping(self.best, self.best_epoch, 0 if warming else self.waited + 1)
