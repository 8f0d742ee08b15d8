"""Estimates of log p(x) by chains, with what tells whether the chains kept up."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inference.evidence.estimate import Estimate

# Beyond this a few chains seldom meet the large weights that carry the mean: intervals of 16 chains
# then cover 0.8 instead of 0.95, more seldom yet from a guide that is too narrow.
MAX_SPREAD = 0.6  # sd of log w, nats
MIN_ACCEPTANCE = 0.4


@dataclass(frozen=True, repr=False, kw_only=True)
class AnnealedEstimate(Estimate):
    """An `Estimate` by chains from an easy density to p(x, z).

    Args:
        ess: `[N]`, effective sample size of the chains' weights.
        spread: `[N]`, standard deviation of log w over chains, nats; of particles that share
            ancestors, that of as many independent ones with the same error.
        acceptance: `[N]`, mean over chains and temperatures.
        num_temperatures: steps of a chain.
    """

    ess: Tensor
    spread: Tensor
    acceptance: Tensor
    num_temperatures: int

    @property
    def flag(self) -> str:
        return "log w spreads too far over chains, or too few steps are accepted"

    @property
    def median_ess(self) -> float:
        return float(self.ess.median())

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
            return [
                f"For {self.num_flagged} data log w spreads by more than {MAX_SPREAD:g} nat, or "
                f"fewer than {MIN_ACCEPTANCE:.0%} of steps are accepted: their errors may be "
                "larger than printed; raise num_temperatures."
            ]
        return ["No datum is flagged. A mode that no chain has met is not seen by this."]
