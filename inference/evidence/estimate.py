"""An estimate of log p(x) that carries its uncertainty."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from inference.evidence.smoothing import MIN_TAIL, tail_length


@dataclass(frozen=True, repr=False)
class Estimate:
    """log p(x_n) for n = 1..N, in nats, with what is known about each value's error.

    Args:
        value: `[N]` float64, the estimates.
        std_error: `[N]`, Monte-Carlo standard error of each value; NaN for one sample.
        ess: `[N]`, effective sample size of the weights.
        khat: `[N]`, Pareto tail index; -inf for constant weights, NaN where it is unknown.
        elbo: `[N]`, the mean log-weight, a lower bound on log p(x) by KL(q || p(z|x)).
        quantity: what is estimated, e.g. "log p(x)".
        bias_direction: in words.
        tile: `(data, samples)` of one tile; equal tiles (and engine) give bit-equal results.
        engine, engine_reason, precision: what ran and why, see `log_marginal`.

    `mean` is the data set's mean; `mc_std_error` the part of its error that more samples would
    remove, `bias_estimate` the part they remove more slowly (about -1/2 mean s_n^2, which does not
    shrink with N), and `test_std_error` = sd(value)/sqrt(N) the error for the population that the
    data come from, which already contains the Monte-Carlo part.
    """

    value: Tensor
    std_error: Tensor
    ess: Tensor
    khat: Tensor
    elbo: Tensor
    quantity: str
    estimator: str
    num_samples: int
    bias_direction: str
    khat_threshold: float
    tile: tuple[int, int]
    seed: int
    seconds: float
    engine: str = "eager"
    engine_reason: str = "as asked"
    precision: str = "float32"
    notes: tuple[str, ...] = field(default=())

    @property
    def num_data(self) -> int:
        return len(self.value)

    @property
    def is_joint(self) -> bool:
        """One evidence of all data, not one per datum?"""
        return self.quantity.startswith("joint")

    @property
    def mean(self) -> float:
        return float(self.value.mean())

    @property
    def mc_std_error(self) -> float:
        return float(self.std_error.square().sum().sqrt() / self.num_data)

    @property
    def test_std_error(self) -> float:
        if self.num_data < 2:
            return math.nan
        return float(self.value.std() / math.sqrt(self.num_data))

    @property
    def bias_estimate(self) -> float:
        return 0.0 - 0.5 * float(self.std_error.square().mean())

    @property
    def elbo_mean(self) -> float:
        return float(self.elbo.mean())

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

    def arrays(self) -> dict[str, Tensor]:
        """The per-datum tensors by name."""
        return {
            "value": self.value,
            "std_error": self.std_error,
            "ess": self.ess,
            "khat": self.khat,
            "elbo": self.elbo,
        }

    def summary(self) -> dict[str, Any]:
        """The scalars by name, for JSON."""
        return {
            "quantity": self.quantity,
            "estimator": self.estimator,
            "num_samples": self.num_samples,
            "num_data": self.num_data,
            "log_px": self.mean,
            "mc_std_error": self.mc_std_error,
            "bias_estimate": self.bias_estimate,
            "test_std_error": self.test_std_error,
            "bias_direction": self.bias_direction,
            "khat_bad_share": self.khat_bad_share,
            "khat_threshold": self.khat_threshold,
            "khat_unknown": self.num_khat_unknown,
            "median_ess": self.median_ess,
            "elbo": self.elbo_mean,
            "tile": list(self.tile),
            "seed": self.seed,
            "seconds": self.seconds,
            "engine": self.engine,
            "engine_reason": self.engine_reason,
            "precision": self.precision,
        }

    def __repr__(self) -> str:
        return f"Estimate({self})"

    def __str__(self) -> str:
        """One honest paragraph."""
        at_least = "at least " if self.num_khat_bad else ""
        samples = "1 sample" if self.num_samples == 1 else f"{self.num_samples} samples"
        if self.is_joint:
            said = [f"{self.quantity} = {self.mean:.3f} nats, by {self.estimator} with {samples}."]
        else:
            said = [
                f"{self.quantity} = {self.mean:.3f} nats per datum (mean of {self.num_data}), by "
                f"{self.estimator} with {samples} each."
            ]
        if self.num_samples == 1:
            said.append(
                "One sample tells nothing about its own error, and its expectation is the ELBO, "
                "not log p(x): use more samples."
            )
        elif math.isnan(self.mc_std_error):
            said.append("Its Monte-Carlo standard error and bias are unknown.")
        else:
            said.append(
                f"Monte-Carlo standard error {at_least}{self.mc_std_error:.2g}; estimated bias "
                f"{at_least and 'beyond '}{self.bias_estimate:.2g} (the estimate is "
                f"{self.bias_direction}); "
                f"{'' if self.is_joint else 'median '}effective sample size {self.median_ess:.0f} "
                f"of {self.num_samples}."
            )
        if self.num_data > 1 and math.isfinite(self.test_std_error):
            said.append(
                f"For new data from the same source the mean is uncertain by "
                f"{self.test_std_error:.2g} (one standard error), whatever the samples; compare "
                "models pairwise on the same data."
            )
        if self.num_khat_bad:
            said.append(
                f"For {self.num_khat_bad} data the weights' Pareto k-hat exceeds "
                f"{self.khat_threshold:.2f}: their errors may be much larger than printed."
            )
        elif self.num_samples > 1 and not self.num_khat_unknown:
            said.append(
                f"No k-hat exceeds {self.khat_threshold:.2f}, so the guide covers what it has seen."
            )
        said += [
            f"k-hat is unknown for {count} data: {reason}."
            for reason, count in self._unknown_khat().items()
            if count
        ]
        said += self.notes
        return " ".join(said)

    def _unknown_khat(self) -> dict[str, int]:
        """For how many data k-hat is unknown, by reason."""
        unknown = self.khat.isnan()
        empty = unknown & (self.value == -math.inf)
        others = int((unknown & ~empty).sum())
        few = tail_length(self.num_samples) < MIN_TAIL
        return {
            "every weight is 0, so no draw explains them (log p(x) = -inf)": int(empty.sum()),
            "too few samples to see the weights' tail": others if few else 0,
            "too many of the largest weights are equal (ties) to fit a tail": 0 if few else others,
        }
