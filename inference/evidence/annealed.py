"""Estimates of log p(x) by chains, with what tells whether the chains kept up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inference.evidence.estimate import Estimate

# Few chains seldom meet the large weights that carry the mean: tests/test_coverage.py.
MAX_SPREAD = 0.65  # sd of log w, nats, moderated
# Of a datum's chains alone, where most others are calmer; and a true spread of which at most one
# datum in twenty may look calm, however few chains tell it.
MAX_OWN_SPREAD = 0.8
MIN_ACCEPTANCE = 0.4
# The mean of few lognormal weights is mostly too low, and its error with it: the upper half of an
# interval is longer by exp(SKEW s^2 / chains).
SKEW = 4.0


@dataclass(frozen=True, repr=False, kw_only=True)
class AnnealedEstimate(Estimate):
    """An `Estimate` by chains from an easy density to p(x, z).

    Args:
        ess: `[N]`, effective sample size of the chains' weights.
        spread: `[N]`, standard deviation of log w over chains, nats, moderated by that of the
            other data; of particles that share ancestors, that of as many independent ones with
            the same error.
        acceptance: `[N]`, mean over chains and temperatures.
        num_temperatures: steps of a chain.
        start: f_0, see `AIS`.
        skew: how much longer the upper half of an interval is, see `interval`.
    """

    ess: Tensor
    spread: Tensor
    acceptance: Tensor
    num_temperatures: int
    start: str = "guide"
    skew: float = SKEW

    @property
    def flag(self) -> str:
        return "log w spreads too far over chains, or too few steps are accepted"

    @property
    def median_ess(self) -> float:
        return float(self.ess.median())

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Both ends of each value's interval, `[N]`.

            value - t s,   value + t s exp(skew spread^2 / C),   C chains

        What misses log p(x) is mostly too low where chains are few; `skew` is 4 for `AIS` and 0 for
        `SMC`. `level` is how often it is meant to cover where nothing is flagged.
        """
        lower, upper = super().interval(level)
        longer = (self.skew * self.spread.clamp(max=1.0).square() / self.num_samples).exp()
        return lower, self.value + (upper - self.value) * longer

    def arrays(self) -> dict[str, Tensor]:
        return {
            **super().arrays(),
            "ess": self.ess,
            "spread": self.spread,
            "acceptance": self.acceptance,
        }

    def summary(self) -> dict[str, Any]:
        return {
            **super().summary(),
            "num_temperatures": self.num_temperatures,
            "median_ess": self.median_ess,
            "median_spread": float(self.spread.median()),
            "mean_acceptance": float(self.acceptance.mean()),
        }

    def _how(self) -> str:
        return (
            f"{self.estimator} with {self.num_samples} chains of {self.num_temperatures} "
            "temperatures"
        )

    def _errors(self) -> list[str]:
        if math.isnan(self.mc_std_error):
            return ["Its Monte-Carlo standard error and bias are unknown."]
        at_least = "at least " if self.num_flagged else ""
        return [
            f"Monte-Carlo standard error {at_least}{self.mc_std_error:.2g}; estimated bias "
            f"{at_least and 'beyond '}{self.bias_estimate:.2g} (the estimate is "
            f"{self.bias_direction}); median spread of log w over chains "
            f"{float(self.spread.median()):.2g}, acceptance {float(self.acceptance.mean()):.2f}."
        ]

    def _trust(self) -> list[str]:
        if self.num_flagged:
            elsewhere = "" if self.start == "prior" else ", or begin elsewhere (start='prior')"
            return [
                f"For {self.num_flagged} data {self.flag}: their errors may be larger than "
                f"printed; raise num_temperatures{elsewhere}."
            ]
        return [
            "No datum is flagged. A region that no chain has met is not seen by this: ask "
            "estimator='sandwich'."
        ]
