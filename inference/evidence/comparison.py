"""Two estimates of log p(x) of the same data, compared datum by datum."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.errors import RequestError
from inference.evidence.showing import as_html


@dataclass(frozen=True, repr=False)
class Comparison:
    """log p(x_n) of one model less that of another, `difference [N]`, nats.

    The spread between data, which dominates the error of each mean, cancels. Kept apart:
    `mc_std_error`, which more samples would remove; `bias_estimate`, of what they remove more
    slowly; and `std_error` = sd(difference) / sqrt(N), for new data of the same source, which
    contains the first.
    """

    first: Any  # estimates
    second: Any

    @property
    def difference(self) -> Tensor:
        return self.first.value - self.second.value

    @property
    def mean(self) -> float:
        return float(self.difference.mean())

    @property
    def std_error(self) -> float:
        """NaN for one datum."""
        difference = self.difference
        if len(difference) < 2:
            return math.nan
        return float(difference.std() / math.sqrt(len(difference)))

    @property
    def mc_std_error(self) -> float:
        return math.hypot(self.first.mc_std_error, self.second.mc_std_error)

    @property
    def bias_estimate(self) -> float:
        return self.first.bias_estimate - self.second.bias_estimate

    @property
    def flagged(self) -> Tensor:
        """`[N]` bool, where the error of one or the other is not to be believed."""
        none = torch.zeros(len(self.difference), dtype=torch.bool)
        flags = [none if e.flagged is None else e.flagged for e in (self.first, self.second)]
        return flags[0] | flags[1]

    def summary(self) -> dict[str, Any]:
        """The scalars by name, for JSON."""
        return {
            "quantity": self.first.quantity,
            "estimators": [self.first.estimator, self.second.estimator],
            "num_data": len(self.difference),
            "difference": self.mean,
            "std_error": self.std_error,
            "mc_std_error": self.mc_std_error,
            "bias_estimate": self.bias_estimate,
            "num_flagged": int(self.flagged.sum()),
        }

    def _repr_html_(self) -> str:
        """A table, and the paragraph."""
        return as_html(self)

    def __repr__(self) -> str:
        return f"Comparison({self})"

    def __str__(self) -> str:
        part = f"{self.mc_std_error:.2g} of it" if self.mc_std_error < self.std_error else "all"
        said = [
            f"Difference of {self.first.quantity}, the first less the second: {self.mean:+.3g} "
            f"nats per datum (mean of {len(self.difference)}, paired). For new data of the same "
            f"source its standard error is {self.std_error:.2g}; {part} is Monte-Carlo error, "
            "which shrinks with more samples, and biases differ by an estimated "
            f"{self.bias_estimate:.2g}."
        ]
        if self.first.estimator != self.second.estimator:
            said.append(
                f"The first is by {self.first.estimator}, the second by {self.second.estimator}: "
                "part of the difference may be that of the estimators."
            )
        if self.flagged.any():
            said.append(
                f"For {int(self.flagged.sum())} data an error is not to be believed, so the "
                "difference may be that of the estimators."
            )
        return " ".join(said)


def same_data(first: Tensor | None, second: Tensor | None) -> bool:
    """Are these hashes of the same data, as far as both are known?"""
    if first is None or second is None:
        return True
    return torch.equal(first, second)


def compare(first: Any, second: Any) -> Comparison:
    """`first` less `second`, datum by datum.

    Raises: `RequestError` where the two are of other data or quantities.
    """
    said = "only those of the same data can be compared, datum by datum"
    for name in ("quantity", "num_data"):
        a, b = getattr(first, name), getattr(second, name)
        if a != b:
            raise RequestError(f"compare: the estimates differ in {name} ({a} and {b}); {said}")
    if not same_data(first.data_digests, second.data_digests):
        raise RequestError(f"compare: the estimates are of other data; {said}")
    return Comparison(first, second)
