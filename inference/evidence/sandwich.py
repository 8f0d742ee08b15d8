"""Two-sided bounds on log p(x), on data that are simulated from the model.

Of such data one exact draw from p(z|x) is known: the latent that they were made of. Bidirectional
Monte Carlo: Grosse, Ghahramani, Adams, arXiv:1511.02543; for decoders: Wu, Burda, Salakhutdinov,
Grosse, arXiv:1611.04273.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field, PositiveInt, field_validator
from torch import Tensor

from inference.errors import RequestError
from inference.evidence.ais import AIS, anneal, log_mean
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.hmc import Chains
from inference.evidence.importance import Importance, weights
from inference.evidence.midway import Midway
from inference.evidence.planted import both_sides, log_weight_of
from inference.evidence.proposals import prior_of
from inference.evidence.simulate import simulate
from inference.evidence.space import GaussianStart, LatentSpace
from inference.evidence.tempering import Tuned, Walk, schedule, seeded
from inference.evidence.weighing import Weighing
from inference.isolation import derived_seed
from inference.progress import Progress, working
from inference.tensor_files import row_digests

LARGE = 0.1  # nats, a gap that says something
# Of a gap below zero: nats that rounding may make of none, and data whose spread tells its error.
ROUNDING, FEWEST = 0.001, 10
# Chains that go back from a true latent. They cost as much each as chains that go there; a few of
# them give a tighter upper bound for the time than one, whose noise is large, or all.
BACK = 4
STARTS = {
    "guide": "the guide",
    "prior": "the prior",
    "gaussian": "a Gaussian with the guide's moments",
}


@dataclass(frozen=True, repr=False, kw_only=True)
class SandwichEstimate(Estimate):
    """Bounds on log p(x_n) of simulated data: `value` from below, `upper` from above.

    Args:
        upper: `[N]`, log of a mean of weights of which one is the true latent's (of a chain that
            went back from it): E[upper] >= log p(x) >= E[value].
        num_temperatures: steps of a chain; None where there are no chains.
        start: where chains or draws begin, in words.
    """

    upper: Tensor
    num_temperatures: int | None = None
    start: str = "the guide"

    @property
    def gap(self) -> float:
        """The mean of upper - value, nats: log p(x)'s mean lies within it, in expectation."""
        return float((self.upper - self.value).mean())

    @property
    def gap_std_error(self) -> float:
        gaps = self.upper - self.value
        return float(gaps.std() / math.sqrt(len(gaps))) if len(gaps) > 1 else math.nan

    @property
    def crossed(self) -> bool:
        """Does the upper bound lie below the lower one by more than chance and rounding explain?"""
        enough = self.num_data >= FEWEST
        return enough and self.gap < -max(ROUNDING, 3 * self.gap_std_error)

    def arrays(self) -> dict[str, Tensor]:
        return {**super().arrays(), "upper": self.upper}

    def summary(self) -> dict[str, Any]:
        return {
            **super().summary(),
            "num_temperatures": self.num_temperatures,
            "upper": float(self.upper.mean()),
            "gap": self.gap,
            "gap_std_error": self.gap_std_error,
            "crossed": self.crossed,
            "start": self.start,
        }

    def _how(self) -> str:
        if self.num_temperatures is None:
            return f"{self.estimator} with {self.num_samples} importance samples from {self.start}"
        return (
            f"{self.estimator} with {self.num_samples} chains of {self.num_temperatures} "
            f"temperatures from {self.start}"
        )

    def _errors(self) -> list[str]:
        ends = f"lower bound {self.mean:.3f}, upper {float(self.upper.mean()):.3f}"
        said = [
            f"In expectation log p(x) lies between the {ends}: a gap of {self.gap:.2g} +- "
            f"{self.gap_std_error:.1g} nats. It tells how well this sampler does on data like the "
            "model's own, not on yours."
        ]
        if self.crossed:
            said.append(
                "The bounds have crossed, by more than 3 standard errors: the model draws other "
                "data than it scores, and neither bound holds. Look for a distribution whose "
                "samples are not those of its log_prob, a scale, or a model that changes from "
                "call to call."
            )
        if self.gap > max(LARGE, 3 * self.gap_std_error):
            said.append(
                f"That is more than {LARGE} nats: at these settings the estimates are not to be "
                f"trusted. Take more temperatures or samples{self._remedy}."
            )
        return said

    @property
    def _remedy(self) -> str:
        """What to do about a gap that does not close."""
        if self.start == "the prior":
            return ""
        return (
            f"; a gap that stays is a region that draws from {self.start} do not reach: begin at "
            "the prior (AIS(start='prior'), Importance(proposal='defensive')), and see whether "
            "Sandwich(by=AIS(start='prior')) closes it"
        )


def _named(setting: Any) -> Any:
    """A setting by its name, or without one, for chains."""
    if isinstance(setting, str):
        setting = {"name": setting}
    if isinstance(setting, Mapping):
        setting = {"name": "ais", **setting}
    name = setting["name"] if isinstance(setting, dict) else getattr(setting, "name", None)
    if name not in ("ais", "importance"):
        raise ValueError(f"{name!r} is unknown here. Choices: ais, importance")
    return setting


class Sandwich(Estimator):
    """log p(x) from below and from above, on data simulated from the model.

    Of each simulated x the true latent z* is an exact draw from p(z|x). Of K weights,

        lower = log 1/K sum_k w_k,   upper = log 1/K (w* + sum_{k=2..K} w_k),

    E[lower] <= log p(x) <= E[upper]. With `AIS` w_k is a chain's weight and w* that of a chain that
    went the same way back from z*; with `Importance`, the cheap form, w_k is a draw's weight and
    w* = p(x, z*) / q(z*|x). A mode that no draw from the guide meets shows as a gap; chains that
    begin at the prior (`AIS(start="prior")`) may close it. Of several chains back, `upper` is the
    log of the harmonic mean of exp(upper) of each.

    Args:
        num_data: data to simulate; covariates are taken from the data in turn.
        by: the settings of the chains, in latent space, or of the draws.
    References: chains both ways, from the prior: Grosse et al., arXiv:1511.02543.
    """

    name: Literal["sandwich"] = "sandwich"
    num_data: PositiveInt = 1000
    by: Annotated[AIS | Importance, Field(discriminator="name"), BeforeValidator(_named)] = AIS(
        space="latent"
    )

    @field_validator("by")
    @classmethod
    def _fits(cls, by: AIS | Importance) -> AIS | Importance:
        if isinstance(by, Importance):
            if by.proposal == "defensive":
                raise ValueError(
                    "draws of proposal 'defensive' come from guide and prior in turn, where the "
                    "true latent has no place of its own; take 'guide', 'prior' or 'widened'"
                )
            return by
        return by.model_copy(update={"space": "latent"})

    def run(self, request: Request) -> SandwichEstimate:
        if request.plate is None:
            raise RequestError("sandwich: simulated data are weighed one by one; name their plate")
        request.check_precision(self.name)
        started = time.perf_counter()
        instead = self._guide(request)
        with request.tiled(1, guide=instead) as tiles:
            given = tiles.arguments
            if tiles.pair.whole and self.num_data != len(given[0]):
                raise RequestError(
                    f"sandwich: the pair takes all of its {len(given[0])} data at once, and "
                    f"num_data is {self.num_data}; give num_data={len(given[0])}"
                )
            index = torch.arange(self.num_data, device=given[0].device) % len(given[0])
            rows = tuple(a[index] for a in given)
            made = simulate(request.model, rows, derived_seed("simulated", request.seed))
        request = replace(request, data=made.arguments)
        if isinstance(self.by, Importance):
            found = _by_draws(self.by, request, instead, made.latents)
        else:
            found = _by_chains(self.by, request, instead, made.latents)
        return SandwichEstimate(
            **found,
            quantity="log p(x) of data simulated from the model",
            estimator=self.name,
            bias_direction="below in expectation, and the upper bound above",
            seed=request.seed,
            seconds=time.perf_counter() - started,
            precision=request.precision,
            data_digests=row_digests(made.arguments),
        )

    def _guide(self, request: Request) -> Callable | None:
        """Where draws or chains begin, if not at the guide as it is."""
        if isinstance(self.by, Importance):
            return self.by._guide(request)
        return prior_of(request.model) if self.by.start == "prior" else None


def _by_draws(
    by: Importance, request: Request, instead: Callable | None, latents: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Both sides by importance weights, and how they were found."""
    with request.tiled(by.num_samples, guide=instead) as tiles:
        with working("preparing the sandwich", request.progress):
            true = log_weight_of(tiles, latents)
            weighing = Weighing(tiles, weights, request.engine)
        num_tiles = len(tiles.rows()) * len(tiles.columns())
        with Progress("sandwich", num_tiles, request.progress, unit="tiles") as bar:
            found = both_sides(weighing, true, bar, request.kept)
    return {
        **found,
        "start": by._words(),
        "num_samples": by.num_samples,
        "tile": (tiles.data_per_tile, tiles.samples_per_tile),
        "engine": weighing.engine,
        "engine_reason": weighing.reason,
    }


def _by_chains(
    by: AIS, request: Request, instead: Callable | None, latents: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Both sides by chains there and back, and how they were found."""
    with request.tiled(by.num_chains, whole_rows=True, guide=instead) as tiles:
        walk, every, tuned, num_temperatures = by.prepared(request, tiles)
        assert isinstance(walk.space, LatentSpace | GaussianStart)
        space = walk.space if isinstance(walk.space, LatentSpace) else walk.space.inner
        true = space.point_of(latents, tiles.arguments)
        num_back = min(BACK, by.num_chains)
        with working("preparing the way back", request.progress):  # code for fewer chains
            few, moves = replace(tiles, num_samples=num_back), num_temperatures * len(every)
            way_back = Walk(few, walk.space, by.settings, request.engine, moves)
        parts = []
        total = 2 * len(every) * num_temperatures
        with Progress("sandwich", total, request.progress, unit="steps") as bar:
            for tile, found in zip(every, tuned, strict=True):
                held = request.kept.get(f"weighed/{tile.start}", tiles.device)
                if held is None:
                    way_back.data_of(tile)  # equal to what the way there takes
                    data, num_real = walk.data_of(tile)
                    seeded(tiles, tile, "chains")
                    betas = schedule(found, num_temperatures)
                    there, returning = (
                        Midway(request.kept, f"{way}/{tile.start}", tiles.device)
                        for way in ("walking", "returning")
                    )
                    forth, _, bound = anneal(walk, data, found, betas, by.num_chains, bar, there)
                    start = true[:, tile.start : tile.stop]
                    rest = forth.shape[1] - start.shape[1]  # the tile is filled up at the edge
                    start = torch.cat([start, start[:, -1:].expand(-1, rest, -1)], 1)
                    back = retraced(way_back, data, found, betas, start, num_back, bar, returning)
                    lower = log_mean(forth)
                    spread = (forth - lower).exp().std(0) / math.sqrt(len(forth))
                    held = [p[:num_real] for p in (lower, above(forth, back), spread, bound)]
                    there.finish()
                    returning.finish()
                    request.kept.put(f"weighed/{tile.start}", held)
                else:
                    bar.advance(2 * num_temperatures)
                parts.append(held)
        lower, upper, spread, bound = (torch.cat(p).cpu() for p in zip(*parts, strict=True))
    return {
        "value": lower,
        "upper": upper,
        "std_error": spread,
        "elbo": bound,
        "degrees": by.num_chains - 1,
        "start": STARTS[by.start],
        "num_samples": by.num_chains,
        "num_temperatures": num_temperatures,
        "tile": (tiles.data_per_tile, tiles.samples_per_tile),
        "engine": walk.engine,
        "engine_reason": walk.reason,
    }


def above(forth: Tensor, back: Tensor) -> Tensor:
    """log p(x) from above, by log-weights of chains there `[K, data]` and back `[B, data]`.

        upper = -log 1/B sum_b 1/p^_b,   p^_b = 1/K (w*_b + sum_{k=2..K} w_k)

    E[1/p^_b] = 1/p(x) for each chain back, so for their mean, too; and the harmonic mean is below
    the others.
    """
    each = torch.logaddexp(back, forth[1:].logsumexp(0)) - math.log(len(forth))
    return -log_mean(-each)


def retraced(
    walk: Walk,
    data: tuple[Tensor, ...],
    tuned: Tuned,
    betas: Tensor,
    point: Tensor,
    num_chains: int,
    bar: Progress | None = None,
    midway: Midway | None = None,
) -> Tensor:
    """Weights of chains that go from exact draws of f_1 back to f_0: E[1/w] = 1/p(x).

    Steps and momenta in reverse order are the same steps, since each half of them (fresh momentum;
    leapfrogs and their acceptance) is reversible and a momentum is as likely as its negative.

    Args:
        point: `[1, data, D]`, from which all chains begin.
    Returns: log w `[num_chains, data]`.
    """
    resumed = midway.resume() if midway else None
    if resumed is None:
        done, chains = 0, walk.begin_at(point.expand(num_chains, -1, -1).contiguous(), data)
        log_w = torch.zeros_like(chains.start)
    else:
        done, (*parts, log_w) = resumed
        chains = Chains(*parts)
        if bar is not None:
            bar.advance(done)
    for i in range(len(betas) - 1 - done, 0, -1):
        chains = walk.move(chains, betas[i], tuned, data).chains
        log_w = log_w + (betas[i] - betas[i - 1]) * chains.log_ratio
        if bar is not None:
            bar.advance()
        if midway is not None:
            midway.keep(len(betas) - i, [*chains, log_w])
    return log_w
