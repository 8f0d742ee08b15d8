"""Importance sampling where it does, chains where it does not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from inference.errors import PairError, RequestError
from inference.evidence.ais import AIS
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.importance import Importance
from inference.evidence.proposals import prior_of
from inference.evidence.smc import SMC
from inference.evidence.smoothing import GOOD_SHARE
from inference.isolation import derived_seed
from inference.pair import as_arguments
from inference.progress import say

# Draws of the first look with a k-hat up to this one, and with a tenth of them effective, have
# errors that are to be believed.
GOOD_KHAT = 0.3


@dataclass(frozen=True, repr=False, kw_only=True)
class AutoEstimate(Estimate):
    """An `Estimate` of which each datum's value comes from one of two estimators.

    Args:
        by: `[N]` int64, 0 for importance and 1 for chains.
        ess: `[N]`, effective sample size of what weighed the datum.
        lower, upper: `[N]`, ends of 0.95 intervals, as the datum's estimator makes them.
        num_temperatures: steps of a chain; 0 where there were none.
        num_chains: chains of a datum.
        chains: the name of their estimator, `ais` or `smc`.
    """

    by: Tensor
    ess: Tensor
    lower: Tensor
    upper: Tensor
    num_temperatures: int = 0
    num_chains: int = 0
    chains: str = "ais"

    @property
    def flag(self) -> str:
        """Of the estimators that have flagged data; of both where none has."""
        said = (
            "the weights' k-hat is too large or unknown, or a first look at them was bad",
            "log w spreads too far over chains, or too few steps are accepted",
        )
        found = set() if self.flagged is None else set((self.by[self.flagged] > 0).tolist())
        return ", or ".join(said[chains] for chains in sorted(found or {False, True}))

    @property
    def num_by_chains(self) -> int:
        return int(self.by.sum())

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Both ends of each value's 0.95 interval, `[N]`, as the datum's estimator makes them.

        Raises: `RequestError` for another level.
        """
        if level != 0.95:
            raise RequestError(
                f"level: got {level}; estimator='auto' keeps intervals of 0.95 only; ask "
                "importance or ais for another"
            )
        return self.lower, self.upper

    def arrays(self) -> dict[str, Tensor]:
        own = {"by": self.by, "ess": self.ess, "lower": self.lower, "upper": self.upper}
        return {**super().arrays(), **own}

    def summary(self) -> dict[str, Any]:
        return {
            **super().summary(),
            "num_by_importance": self.num_data - self.num_by_chains,
            f"num_by_{self.chains}": self.num_by_chains,
            "num_temperatures": self.num_temperatures,
            "num_chains": self.num_chains,
            "median_ess": float(self.ess.median()),
        }

    def _how(self) -> str:
        draws = f"importance with {self.num_samples} samples"
        steps = f"{self.num_temperatures} temperatures"
        chains = f"{self.chains} with {self.num_chains} chains of {steps}"
        if self.num_by_chains == 0:
            return draws
        if self.num_by_chains == self.num_data:
            return chains
        kept = self.num_data - self.num_by_chains
        return f"{draws} for {kept} data and {chains} for {self.num_by_chains},"

    def _errors(self) -> list[str]:
        at_least = "at least " if self.num_flagged else ""
        return [
            f"Monte-Carlo standard error {at_least}{self.mc_std_error:.2g}; estimated bias "
            f"{at_least and 'beyond '}{self.bias_estimate:.2g} (the estimate is "
            f"{self.bias_direction})."
        ]

    def _trust(self) -> list[str]:
        if self.num_flagged:
            return [
                f"For {self.num_flagged} data {self.flag}: their errors may be larger than printed."
            ]
        return [
            "No datum is flagged. A region that neither guide nor chains meet is not seen: ask "
            "estimator='sandwich'."
        ]


def _named(setting: Any) -> Any:
    """A setting by its name; without one, of AIS."""
    if isinstance(setting, str):
        return {"name": setting}
    return {"name": "ais", **setting} if isinstance(setting, Mapping) else setting


class Auto(Estimator):
    """Importance sampling for the data where a first look finds it good, chains for the others.

    The look's draws decide and are then dropped: a datum whose own draws chose its estimator and
    were reported as well would be one whose draws look calm, which biases value and error. No
    value is the larger of two.

    Args:
        look: K of the first look. A datum stays with importance where its k-hat is at most 0.3 (or
            unknown of a few distinct weights) and its effective sample size at least K/10.
        importance: for the data that stay.
        chains: `AIS` or `SMC`, for the others. Where a pair has no such chains (discrete latents),
            all stay, and those that look bad are flagged.
    """

    name: Literal["auto"] = "auto"
    look: int = Field(default=1_000, ge=100)
    importance: Importance = Field(default=Importance())
    chains: Annotated[AIS | SMC, Field(discriminator="name"), BeforeValidator(_named)] = AIS()

    def run(self, request: Request) -> Estimate:
        request.check_precision(self.name)
        started = time.perf_counter()
        arguments = as_arguments(request.data)
        with request.tiled(1) as tiles:
            # Of a pair that takes all data at once, or draws them itself, no part can be asked for.
            whole = tiles.pair.whole or tiles.pair.subsampling == "own"
        good = self._look(request)
        refusal = "" if good.all() else self._refusal(request, self.chains)
        # Where no chains fit, what looks bad stays as well, and is flagged.
        doubtful = ~good if refusal else torch.zeros_like(good)
        notes = (self._note(request, doubtful, refusal),) if refusal else ()
        good = good | doubtful
        if request.progress and not good.all():
            rest = f"{self.chains.name} for {int((~good).sum())} data"
            say(f"auto: importance for {int(good.sum())} data, {rest}")
        count = 1 if request.plate is None else len(arguments[0])
        names = self.importance.name, self.chains.name
        parts: dict[int, tuple[Tensor, Estimate]] = {}
        for code, (estimator, index) in enumerate(
            ((self.importance, good.nonzero()[:, 0]), (self.chains, (~good).nonzero()[:, 0]))
        ):
            if len(index) == 0:
                continue
            rows = arguments
            if not whole and len(index) < count:
                rows = tuple(a[index.to(a.device)] for a in arguments)
            part = replace(
                request,
                data=rows,
                seed=derived_seed("auto", request.seed, code),
                kept=request.kept.within(names[code]),
            )
            parts[code] = index, estimator.run(part)
        return self._joined(request, parts, doubtful, notes, time.perf_counter() - started)

    def _look(self, request: Request) -> Tensor:
        """`[N]` bool, the data that a first look finds good."""
        held = request.kept.get("look")
        if held is None:
            look = self.importance.model_copy(update={"num_samples": self.look})
            seed = derived_seed("look", request.seed)
            found = look.run(replace(request, seed=seed, kept=request.kept.within("look")))
            arrays = found.arrays()
            tied = arrays["khat"].isnan() & ~arrays["flagged"]
            calm = (arrays["khat"] <= GOOD_KHAT) | tied
            held = [calm & (arrays["ess"] >= GOOD_SHARE * self.look)]
            request.kept.put("look", held)
        return held[0].bool()

    def _refusal(self, request: Request, chains: AIS) -> str:
        """Why chains do not fit the pair; empty if they do."""
        guide = prior_of(request.model) if chains.start == "prior" else None
        try:
            with request.tiled(chains.num_chains, whole_rows=True, guide=guide) as tiles:
                chains.space_of(tiles)
        except PairError as error:
            return str(error)
        return ""

    def _note(self, request: Request, doubtful: Tensor, refusal: str) -> str:
        """What no chains mean for the data that need them, and what would fit."""
        remedy = "mend the guide, or ask 'quadrature' or 'enumerate' where latents are few"
        for start in ("guide", "gaussian", "prior"):
            other = self.chains.model_copy(update={"start": start, "space": "auto"})
            if other != self.chains and not self._refusal(request, other):
                kind = type(other).__name__
                remedy = f"Auto(chains={kind}(start='{start}')) has chains for this pair"
                break
        return (
            f"No chains for {int(doubtful.sum())} data: {refusal}. These stay with importance and "
            f"are flagged, for their first {self.look} weights have a k-hat above {GOOD_KHAT}, or "
            f"none, or an effective sample size below {GOOD_SHARE:.0%}; {remedy}."
        )

    def _joined(
        self,
        request: Request,
        parts: Mapping[int, tuple[Tensor, Estimate]],
        doubtful: Tensor,
        notes: tuple[str, ...],
        seconds: float,
    ) -> AutoEstimate:
        held: dict[int, dict[str, Tensor]] = {}

        def scattered(name: str) -> Tensor:
            found = torch.full((len(doubtful),), torch.nan, dtype=torch.float64)
            for index, part in parts.values():
                found[index] = held[id(part)][name].double()
            return found

        for code, (index, part) in parts.items():
            lower, upper = part.interval()
            by = torch.full((len(index),), code)
            arrays = {**part.arrays(), "lower": lower, "upper": upper}
            if part.num_data > len(index):  # of all data, for a part of them
                arrays = {name: tensor[index] for name, tensor in arrays.items()}
            held[id(part)] = {**arrays, "by": by}
        each = [part for _, part in parts.values()]
        chains = parts[1][1] if 1 in parts else None
        return AutoEstimate(
            value=scattered("value"),
            std_error=scattered("std_error"),
            elbo=scattered("elbo"),
            ess=scattered("ess"),
            lower=scattered("lower"),
            upper=scattered("upper"),
            by=scattered("by").long(),
            flagged=scattered("flagged").bool() | doubtful,
            quantity=request.quantity,
            estimator=self.name,
            num_samples=self.importance.num_samples,
            chains=self.chains.name,
            num_chains=chains.num_samples if chains else 0,
            num_temperatures=getattr(chains, "num_temperatures", 0),
            bias_direction="low in expectation",
            degrees=min(part.fewest_degrees for part in each),
            tile=max(part.tile for part in each),
            seed=request.seed,
            seconds=seconds,
            engine=" and ".join(dict.fromkeys(part.engine for part in each)),
            engine_reason="; ".join(dict.fromkeys(part.engine_reason for part in each)),
            precision=request.precision,
            notes=tuple(dict.fromkeys([*notes, *(n for p in each for n in p.notes)])),
        )
