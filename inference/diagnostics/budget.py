"""The budget of log p(x) of each datum, and what its last part consists of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inference.diagnostics.local_fit import ROUND
from inference.evidence.estimate import Estimate


@dataclass(frozen=True)
class Item:
    """A quantity of each datum, in nats: `value` and its Monte-Carlo `std_error`, `[N]` float64."""

    value: Tensor
    std_error: Tensor

    @property
    def mean(self) -> float:
        return float(self.value.mean())

    @property
    def mc_std_error(self) -> float:
        """Of the mean, by the draws."""
        return float(self.std_error.square().sum().sqrt() / len(self.value))

    @property
    def test_std_error(self) -> float:
        """Of the mean as that of the population that the data come from."""
        if len(self.value) < 2:
            return math.nan
        return float(self.value.std() / math.sqrt(len(self.value)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.mc_std_error:.2g}"


@dataclass(frozen=True, repr=False)
class Gaps:
    """The budget of log p(x), and what its last part consists of.

    Args:
        log_px: the estimate, with flags of its own.
        reconstruction, kl, elbo: E_q[log p(x|z)], the KL divergence to the prior of each site, and
            reconstruction less these.
        local_elbo: of the best local guide that was found.
        amortization: local_elbo - elbo, of paired draws.
        num_samples: draws of each datum that the terms are means of.
        num_steps: most steps that a datum's local guide took.
        gain, gain_std_error: what the local guides' last round gained, nats per datum.
        converged: is that gain as good as nothing?
    """

    log_px: Estimate
    reconstruction: Item
    kl: dict[str, Item]
    elbo: Item
    local_elbo: Item
    amortization: Item
    num_samples: int
    num_steps: int
    gain: float
    gain_std_error: float
    converged: bool
    seed: int
    seconds: float

    @property
    def num_data(self) -> int:
        return len(self.elbo.value)

    @property
    def inference(self) -> Item:
        """KL(q(z|x) || p(z|x)) = log p(x) - ELBO."""
        return self._below(self.elbo)

    @property
    def approximation(self) -> Item:
        """What the family cannot reach: log p(x) - ELBO of the best local guide."""
        return self._below(self.local_elbo)

    def _below(self, elbo: Item) -> Item:
        # Draws of log p(x) and of the bound are independent of each other.
        error = (self.log_px.std_error.square() + elbo.std_error.square()).sqrt()
        return Item(self.log_px.value - elbo.value, error)

    @property
    def items(self) -> dict[str, Item]:
        """All of them by name."""
        sites = {f"kl.{site}": term for site, term in self.kl.items()}
        return {
            "log_px": Item(self.log_px.value, self.log_px.std_error),
            "reconstruction": self.reconstruction,
            **sites,
            "elbo": self.elbo,
            "local_elbo": self.local_elbo,
            "inference_gap": self.inference,
            "approximation_gap": self.approximation,
            "amortization_gap": self.amortization,
        }

    def arrays(self) -> dict[str, Tensor]:
        """The per-datum tensors by name."""
        found = {}
        for name, term in self.items.items():
            found[name], found[f"{name}.std_error"] = term.value, term.std_error
        flagged = self.log_px.flagged
        return found if flagged is None else {**found, "log_px.flagged": flagged}

    def summary(self) -> dict[str, Any]:
        """The scalars by name, for JSON."""
        terms = {
            name: {
                "mean": term.mean,
                "mc_std_error": term.mc_std_error,
                "test_std_error": term.test_std_error,
            }
            for name, term in self.items.items()
        }
        return {
            "terms": terms,
            "estimate": self.log_px.summary(),
            "num_data": self.num_data,
            "num_samples": self.num_samples,
            "num_steps": self.num_steps,
            "last_gain": self.gain,
            "last_gain_std_error": self.gain_std_error,
            "converged": self.converged,
            "seed": self.seed,
            "seconds": self.seconds,
        }

    def __repr__(self) -> str:
        return f"Gaps({self})"

    def __str__(self) -> str:
        kl = " ".join(f"- KL({site}) {term}" for site, term in self.kl.items())
        said = [
            f"log p(x) = {self.items['log_px']}: reconstruction {self.reconstruction} {kl} + "
            f"inference gap {self.inference}, nats per datum (mean of {self.num_data}; Monte-Carlo "
            f"standard errors).",
            f"The gap is the family's {self.approximation} (approximation) and the encoder's "
            f"{self.amortization} (amortization).",
        ]
        if self.log_px.num_flagged:
            said.append(
                f"log p(x), by {self.log_px.estimator}, is flagged for {self.log_px.num_flagged} "
                f"of {self.num_data} data, where it is {self.log_px.bias_direction}: the inference "
                "and the approximation gap are at least these."
            )
        if self.converged:
            said.append(
                f"The local guides stood still after at most {self.num_steps} steps (last "
                f"{ROUND}: {self.gain:+.2g} +- {self.gain_std_error:.1g} nats). One optimum was "
                "sought, from the amortized guide: a better one elsewhere would move the same "
                "amount from approximation to amortization."
            )
        else:
            said.append(
                f"The local guides were still gaining after {self.num_steps} steps (last {ROUND}: "
                f"{self.gain:+.2g} +- {self.gain_std_error:.1g} nats): the amortization gap is at "
                "least, the approximation gap at most this."
            )
        return " ".join(said)
