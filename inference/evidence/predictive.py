"""log p(x | global draws): the predictive density of each datum under draws of global latents.

Vehtari, Gelman, Gabry, arXiv:1507.04544 (there the pointwise predictive density).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.errors import RequestError
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator
from inference.evidence.importance import Importance
from inference.evidence.marginal import ESTIMATORS, log_marginal
from inference.evidence.weighing import check_engine
from inference.global_draws import check_draws, given_globals, global_draws, global_latents
from inference.isolation import derived_seed, modes, modules_of, own_store
from inference.pair import Data, as_arguments, examine
from inference.precision import cast
from inference.progress import Progress
from inference.requests import device_of, member


@dataclass(frozen=True, repr=False, kw_only=True)
class PredictiveEstimate(Estimate):
    """log 1/S sum_s p(x_n | w_s) under S draws of the global latents, `[N]`.

    `std_error` is the error in that number, the draws w_s being what they are. `draws_std_error`
    is another: how far it is from log int q(w) p(x_n | w) dw, for other draws would give another.

    Args:
        given: `[N, S]`, log p(x_n | w_s) of each draw.
        draws_std_error: `[N]`, by the spread over draws; NaN for one draw.
    """

    given: Tensor
    draws_std_error: Tensor

    @property
    def num_draws(self) -> int:
        return self.given.shape[1]

    @property
    def mean_draws_std_error(self) -> float:
        """Of the data set's mean: all data share the draws, so it does not shrink with N."""
        if self.num_draws < 2:
            return math.nan
        shares = (self.given - self.value.unsqueeze(1)).exp().mean(0)
        return float(shares.std() / math.sqrt(self.num_draws))

    def arrays(self) -> dict[str, Tensor]:
        return {**super().arrays(), "given": self.given, "draws_std_error": self.draws_std_error}

    def summary(self) -> dict[str, Any]:
        return {
            **super().summary(),
            "num_draws": self.num_draws,
            "draws_std_error": self.mean_draws_std_error,
        }

    @property
    def flag(self) -> str:
        return "the estimate is flagged under one of the draws or more"

    def _how(self) -> str:
        return f"{self.estimator} with {self.num_draws} x {self.num_samples:,} samples"

    def _errors(self) -> list[str]:
        at_least = "at least " if self.num_flagged else ""
        said = [
            f"Given these {self.num_draws} draws of the global latents, its Monte-Carlo standard "
            f"error is {at_least}{self.mc_std_error:.2g} (the estimate is {self.bias_direction})."
        ]
        if self.num_draws > 1:
            said.append(
                f"Others would move it by {self.mean_draws_std_error:.2g} (one standard error)."
            )
        return said

    def _trust(self) -> list[str]:
        if self.num_flagged:
            return [
                f"For {self.num_flagged} data the errors may be larger than printed: {self.flag}."
            ]
        return []


def log_predictive(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    draws: int | Mapping[str, Tensor] = 10,
    estimator: Estimator | str = Importance(),  # noqa: B008  (a frozen value)
    seed: int = 0,
    plate: str = "data",
    engine: str = "auto",
    precision: str = "float32",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> PredictiveEstimate:
    """log p(x | global draws) of every datum, for pairs with latents w outside the data plate.

        log 1/S sum_s p(x_n | w_s),   p(x_n | w_s) = int p(x_n, z_n | w_s) dz_n,   w_s ~ q(w)

    Local latents are integrated out by the estimator, once under each draw. It is the predictive
    density of one datum under q(w), and no evidence: the data set's evidence, of which p(w) is a
    part, is `log_marginal(..., plate=None)`.

    Args:
        model, guide, data, estimator, seed, engine, precision, device: as in `log_marginal`.
        draws: S, drawn from the guide at `data`; or `[S, ...]` by site (see `global_draws`), where
            the guide's w look at the data that it was trained on.
        plate: name of the data plate.
    Returns: a `PredictiveEstimate`, float64 tensors on the CPU.
    Raises: as `log_marginal`; `PairError` for a pair without latents outside the plate;
        `RequestError` for draws that do not fit its sites.
    """
    started = time.perf_counter()
    estimator = member("estimator", estimator, Estimator, ESTIMATORS)
    check_engine(engine)
    if plate is None:
        raise RequestError(
            "plate: None stands for one joint evidence, which integrates over global latents; name "
            "the data's plate, or use log_marginal"
        )
    if estimator.name == "sandwich":  # type: ignore[attr-defined]
        raise RequestError(
            "estimator: 'sandwich' simulates other data under every draw; use it with log_marginal "
            "on one draw (given_globals), or estimator='ais' here"
        )
    arguments = as_arguments(data)
    with own_store(), modes(modules_of(model, guide), training=False):
        wanted = global_latents(examine(model, guide, arguments, plate))
    if isinstance(draws, int):
        draws = global_draws(
            model, guide, data, num_draws=draws, seed=derived_seed("globals", seed), plate=plate
        )
    num_draws = check_draws(draws, wanted)
    place = device if device is not None else device_of(modules_of(model, guide), arguments)
    parts: list[Estimate] = []
    with Progress("global draws", num_draws, progress, unit="draws") as bar:
        for s in range(num_draws):
            at = cast(tuple(draws[name][s].to(place) for name in wanted), precision)
            pair = given_globals(model, guide, dict(zip(wanted, at, strict=True)), plate=plate)
            found = log_marginal(
                *pair,
                data,
                estimator=estimator,
                seed=derived_seed("given", seed, s),
                plate=plate,
                engine=engine,
                precision=precision,
                device=device,
                progress=False,
            )
            parts.append(found)
            bar.advance()
    return _joined(parts, seed, time.perf_counter() - started)


def _joined(parts: list[Estimate], seed: int, seconds: float) -> PredictiveEstimate:
    given = torch.stack([part.value for part in parts], 1)
    num_draws = len(parts)
    value = _log_mean(given)
    share = (given - value.unsqueeze(1)).exp()  # of each draw in the mean, times S
    errors = torch.stack([part.std_error for part in parts], 1)
    between = share.std(1) if num_draws > 1 else torch.full_like(value, math.nan)
    flags = [part.flagged for part in parts if part.flagged is not None]
    own = {
        "value": value,
        # A draw without a share in the mean adds nothing, be its own error unknown.
        "std_error": torch.where(share > 0, share * errors, 0.0).square().sum(1).sqrt() / num_draws,
        "elbo": _log_mean(torch.stack([part.elbo for part in parts], 1)),
        "flagged": torch.stack(flags).any(0) if flags else None,
        "degrees": min(part.fewest_degrees for part in parts),
        "seed": seed,
        "seconds": seconds,
    }
    first = {f.name: getattr(parts[0], f.name) for f in dataclasses.fields(Estimate)}
    return PredictiveEstimate(
        **(first | own), given=given, draws_std_error=between / math.sqrt(num_draws)
    )


def _log_mean(log_values: Tensor) -> Tensor:
    return log_values.logsumexp(1) - math.log(log_values.shape[1])
