"""Estimates of log p(x) by independent weights, with what their spread and their tail tell."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inference.evidence.estimate import Estimate
from inference.evidence.smoothing import GOOD_SHARE, MIN_TAIL, tail_length


@dataclass(frozen=True, repr=False, kw_only=True)
class WeightedEstimate(Estimate):
    """An `Estimate` by K importance weights a datum.

    Args:
        ess: `[N]`, effective sample size of the weights.
        khat: `[N]`, Pareto tail index; -inf for constant weights, NaN where it is unknown: of too
            few samples, and of ties, as of discrete latents, where `ess` tells what is flagged.
        khat_threshold: above it the errors are not to be believed.
        proposal: where draws come from, in words.
        half: `[N]`, what half of the samples would give: how much the value still rises.
        delta, jackknife, psis: `[N]`, alternatives by the same weights. They are no bounds, not
            even in expectation, and stand beside the value, never in its place: see
            `inference.evidence.corrections`.
    """

    ess: Tensor
    khat: Tensor
    khat_threshold: float
    proposal: str = "the guide"
    half: Tensor | None = None
    delta: Tensor | None = None
    jackknife: Tensor | None = None
    psis: Tensor | None = None

    @property
    def flag(self) -> str:
        if not self._num_doubtful:
            return "k-hat is too large"
        return "k-hat is too large or unknown" if self.num_khat_bad else "k-hat is unknown"

    @property
    def median_ess(self) -> float:
        return float(self.ess.median())

    @property
    def num_khat_bad(self) -> int:
        return int((self.khat > self.khat_threshold).sum())

    @property
    def num_khat_unknown(self) -> int:
        return int(self.khat.isnan().sum())

    @property
    def khat_bad_share(self) -> float:
        """Share of data above the threshold, among those whose k-hat is known (NaN if none)."""
        known = self.num_data - self.num_khat_unknown
        return self.num_khat_bad / known if known else math.nan

    @property
    def alternatives(self) -> dict[str, Tensor]:
        """What the same weights give beside the value, by name."""
        found = {name: getattr(self, name) for name in ("half", "delta", "jackknife", "psis")}
        return {name: tensor for name, tensor in found.items() if tensor is not None}

    def arrays(self) -> dict[str, Tensor]:
        return {**super().arrays(), "ess": self.ess, "khat": self.khat, **self.alternatives}

    def summary(self) -> dict[str, Any]:
        return {
            **super().summary(),
            "khat_bad_share": self.khat_bad_share,
            "khat_threshold": self.khat_threshold,
            "proposal": self.proposal,
            "khat_unknown": self.num_khat_unknown,
            "median_ess": self.median_ess,
            **{f"log_px_{name}": float(each.mean()) for name, each in self.alternatives.items()},
        }

    def _how(self) -> str:
        samples = "1 sample" if self.num_samples == 1 else f"{self.num_samples} samples"
        return f"{self.estimator} with {samples} from {self.proposal}"

    def _errors(self) -> list[str]:
        doubtful = self.num_khat_bad or (self._num_doubtful and not self._too_few)
        at_least = "at least " if doubtful else ""
        if self.num_samples == 1:
            return [
                "One sample tells nothing about its own error, and its expectation is the ELBO, "
                "not log p(x): use more samples."
            ]
        if math.isnan(self.mc_std_error):
            return ["Its Monte-Carlo standard error and bias are unknown."]
        return [
            f"Monte-Carlo standard error {at_least}{self.mc_std_error:.2g}; estimated bias "
            f"{at_least and 'beyond '}{self.bias_estimate:.2g} (the estimate is "
            f"{self.bias_direction}); "
            f"{'' if self.is_joint else 'median '}effective sample size {self.median_ess:.0f} "
            f"of {self.num_samples}.",
            *self._alternatives(),
        ]

    def _alternatives(self) -> list[str]:
        """How much the value still rises, and what corrections would make of it."""
        means = {name: float(each.mean()) for name, each in self.alternatives.items()}
        said = []
        half = means.pop("half", math.nan)
        if math.isfinite(half):
            rise = self.mean - half
            added = f"{rise:+.2g}" if abs(rise) > 1e-9 else "nothing"
            said.append(f"Half of the samples give {half:.3f}; the other half adds {added}.")
        if means:
            names = {"psis": "PSIS"}
            listed = ", ".join(f"{names.get(n, n)} {v:.3f}" for n, v in means.items())
            said.append(f"Corrections, which are no bounds: {listed}.")
        return said

    def _trust(self) -> list[str]:
        said = []
        if self.num_khat_bad:
            said.append(
                f"For {self.num_khat_bad} data the weights' Pareto k-hat exceeds "
                f"{self.khat_threshold:.2f}: their errors may be much larger than printed; ask "
                "estimator='auto' or 'ais'."
            )
        elif self.num_samples > 1 and not self.num_khat_unknown:
            said.append(
                f"No k-hat exceeds {self.khat_threshold:.2f}: the weights have no heavy tail, as "
                "far as these draws have seen."
            )
        said += [
            f"k-hat is unknown for {count} data: {reason}."
            for reason, count in self._unknown_khat().items()
            if count
        ]
        return said + self._tied()

    def _unknown_khat(self) -> dict[str, int]:
        """For how many data k-hat is unknown, by reason."""
        unknown = self.khat.isnan()
        empty = unknown & (self.value == -math.inf)
        others = int((unknown & ~empty).sum())
        few, ties = (others, 0) if self._too_few else (0, others)
        return {
            "every weight is 0, so no draw explains them (log p(x) = -inf)": int(empty.sum()),
            "too few samples to see the weights' tail": few,
            "too many of the largest weights are equal (ties) to fit a tail": ties,
        }

    def _tied(self) -> list[str]:
        """What the effective sample size tells of data without a k-hat."""
        tied = self.khat.isnan() & (self.value > -math.inf)
        if self.flagged is None or self._too_few or not tied.any():
            return []
        poor = tied & ~(self.ess >= GOOD_SHARE * self.num_samples)
        if poor.any():
            return [
                f"There the effective sample size tells: for {int(poor.sum())} data it is below "
                f"{GOOD_SHARE:.0%} of the samples, and their errors may be much larger than "
                "printed; mend the guide, or ask estimator='enumerate'."
            ]
        if (tied & self.flagged).any():  # by what a note says
            return []
        return [
            f"There the effective sample size tells: it is {GOOD_SHARE:.0%} of the samples or "
            "more. A value of the latents that was never drawn is not seen."
        ]

    @property
    def _too_few(self) -> bool:
        """Are there too few samples for any k-hat?"""
        return tail_length(self.num_samples) < MIN_TAIL

    @property
    def _num_doubtful(self) -> int:
        """Flagged data whose k-hat is unknown."""
        return 0 if self.flagged is None else int((self.flagged & self.khat.isnan()).sum())
