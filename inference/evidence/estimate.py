"""An estimate of log p(x) that carries its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from inference.errors import RequestError
from inference.evidence.comparison import Comparison, compare
from inference.evidence.saving import concatenate, save
from inference.evidence.showing import as_html


@dataclass(frozen=True, repr=False, kw_only=True)
class Estimate:
    """log p(x_n) for n = 1..N, in nats, with what is known about each value's error.

    Args:
        value: `[N]` float64, the estimates.
        std_error: `[N]`, standard error of each value; NaN where nothing is known of it.
        quantity: what is estimated, e.g. "log p(x)".
        estimator, num_samples: how, and by how many draws (or chains, or points) of each datum.
        bias_direction: in words.
        degrees: of freedom of the errors, for intervals, `[N]` or one for all: draws less one,
            infinite for many.
        elbo: `[N]`, the mean log-weight where draws begin, a lower bound on log p(x); NaN where
            there is none.
        flagged: `[N]`, where the errors are not to be believed; None where nothing tells.
        tile: `(data, samples)` of one tile; equal tiles (and engine) give bit-equal results.
        engine, engine_reason, precision: what ran and why, see `log_marginal`.
        data_digests: `[N]` int64, hashes that tell which data these are.

    `mean` is the data set's mean; `mc_std_error` the part of its error that more samples would
    remove, `bias_estimate` the part they remove more slowly (about -1/2 mean s_n^2, which does not
    shrink with N), and `test_std_error` = sd(value)/sqrt(N) the error for the population that the
    data come from, which already contains the Monte-Carlo part.
    """

    value: Tensor
    std_error: Tensor
    elbo: Tensor
    quantity: str
    estimator: str
    num_samples: int
    bias_direction: str
    tile: tuple[int, int]
    seed: int
    seconds: float
    degrees: float | Tensor = math.inf
    flagged: Tensor | None = None
    engine: str = "eager"
    engine_reason: str = "as asked"
    precision: str = "float32"
    data_digests: Tensor | None = None
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
    def flag(self) -> str:
        """What a flag stands for."""
        return ""

    @property
    def num_flagged(self) -> int:
        return 0 if self.flagged is None else int(self.flagged.sum())

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Both ends of each value's interval, `[N]`: value -+ t std_error.

        Raises: `RequestError` for a level that is no share.

        `level` is how often it is meant to cover log p(x) where nothing is flagged.
        """
        if not isinstance(level, int | float) or not 0 < level < 1:
            raise RequestError(f"level: got {level!r}; expected a share between 0 and 1, e.g. 0.95")
        from scipy.stats import t

        times = t.ppf(0.5 + level / 2, torch.as_tensor(self.degrees).cpu().numpy())
        half = torch.as_tensor(times, dtype=torch.float64) * self.std_error
        return self.value - half, self.value + half

    @property
    def fewest_degrees(self) -> float:
        """The least of the data's degrees of freedom."""
        return float(torch.as_tensor(self.degrees).min())

    def arrays(self) -> dict[str, Tensor]:
        """The per-datum tensors by name."""
        found = {"value": self.value, "std_error": self.std_error, "elbo": self.elbo}
        return found if self.flagged is None else {**found, "flagged": self.flagged}

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
            "elbo": self.elbo_mean,
            "num_flagged": self.num_flagged,
            "flag": self.flag,
            "tile": list(self.tile),
            "seed": self.seed,
            "seconds": self.seconds,
            "engine": self.engine,
            "engine_reason": self.engine_reason,
            "precision": self.precision,
        }

    def save(self, path: str | PathLike) -> None:
        """Write everything to one safetensors file, atomically. `inference.load_estimate` reads."""
        save(self, path)

    def compare(self, other: Estimate) -> Comparison:
        """This less `other`, datum by datum, with its errors.

        Raises: `RequestError` where the two are of other data or quantities.
        """
        return compare(self, other)

    @staticmethod
    def concatenate(parts: Sequence[Estimate]) -> Estimate:
        """Estimates of several data sets, by one estimator, as one of all of them, in this order.

        Raises: `RequestError` where they differ in what they are.
        """
        return concatenate(parts)

    def _repr_html_(self) -> str:
        """A table, and the paragraph."""
        return as_html(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self})"

    def __str__(self) -> str:
        """One honest paragraph."""
        if self.is_joint:
            said = [f"{self.quantity} = {self.mean:.3f} nats, by {self._how()}."]
        else:
            said = [
                f"{self.quantity} = {self.mean:.3f} nats per datum (mean of {self.num_data}), by "
                f"{self._how()} each."
            ]
        said += self._errors()
        own = "simulated" in self.quantity  # each model has its own such data
        if self.num_data > 1 and math.isfinite(self.test_std_error) and not own:
            said.append(
                f"For new data from the same source the mean is uncertain by "
                f"{self.test_std_error:.2g} (one standard error), whatever the samples; compare "
                "models pairwise on the same data."
            )
        said += [*self._trust(), *self.notes]
        return " ".join(said)

    def _how(self) -> str:
        """The estimator and what it spent on a datum."""
        return f"{self.estimator} with {self.num_samples:,} points"

    def _errors(self) -> list[str]:
        """Of the mean, by its samples."""
        most = float(self.std_error.max())
        return [
            f"It is {self.bias_direction}" + (f", of at most {most:.1g} nats." if most else ".")
        ]

    def _trust(self) -> list[str]:
        """Whether the errors are to be believed."""
        return []
