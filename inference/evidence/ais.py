"""Annealed importance sampling with Hamiltonian Monte Carlo (Neal 2001, arXiv:physics/9803008).

For decoders: Wu, Burda, Salakhutdinov, Grosse, arXiv:1611.04273.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from inference.errors import PairError
from inference.evidence.annealed import (
    MAX_OWN_SPREAD,
    MAX_SPREAD,
    MIN_ACCEPTANCE,
    SKEW,
    AnnealedEstimate,
)
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator, Request
from inference.evidence.hmc import Chains
from inference.evidence.midway import Midway
from inference.evidence.moderation import moderated, seldom_below
from inference.evidence.noise import NoiseSpace
from inference.evidence.proposals import prior_of
from inference.evidence.space import Data, GaussianStart, LatentSpace, Space
from inference.evidence.tempering import Settings, Tuned, Walk, pilot, schedule, seeded
from inference.progress import Progress, working
from inference.tiles import Tile, Tiles

# Temperatures follow from the path's length L: log w has a variance of about 4 L^2 / T where
# chains keep up, and this is the one that is aimed at for nine data in ten.
AIM = 0.25
FEWEST, MOST = 100, 2_000


class Weighed(NamedTuple):
    """What chains say of each datum, `[data]`."""

    value: Tensor  # log p^(x)
    variance: Tensor  # of p^(x) / p(x)
    ess: Tensor  # of the chains' weights
    spread: Tensor  # sd of log w over chains
    acceptance: Tensor
    bound: Tensor  # the mean of log f_1/f_0 under f_0


class Errors(NamedTuple):
    """Of each value, `[data]`."""

    std_error: Tensor
    spread: Tensor  # as `AnnealedEstimate` has it
    degrees: Tensor  # of freedom
    calm: Tensor  # bool: are the errors to be believed?


class Prepared(NamedTuple):
    """What chains need before they are weighed."""

    walk: Walk
    every: list[Tile]
    tuned: list[Tuned]  # of each tile
    num_temperatures: int


class AIS(Estimator):
    """Chains of `num_temperatures` steps from an easy density to p(x, z), one weight a chain.

        log w = sum_t (beta_t - beta_{t-1}) log f_1/f_0 (u_{t-1}),   E[w] = p(x)

    Low in expectation, unbiased on the weight scale: what a pilot tunes is frozen before the
    chains that are weighed begin. Steps are Hamiltonian, `num_leapfrog` gradients each.

    Args:
        start: f_0. `guide`: q(z|x); `prior`: p(z); `gaussian`: with the moments of the guide's
            draws, for guides whose density is known at their own draws only.
        space: where chains move. `latent`: the latents, without their constraints; `noise`: the
            Gaussian noise that f_0's draws are made of; `auto`: noise where they are, else latent.
        num_chains: weights of each datum.
        num_temperatures: T; None takes what the pilot finds to be enough, 100 to 2000.
        pilot_temperatures: of the pilot, which finds each datum's step size and temperatures.
        num_leapfrog, keep, acceptance, jitter: gradients of a step, the share of the momentum that
            stays, the acceptance that step sizes aim at, and their random part.
    """

    skew: ClassVar[float] = SKEW  # of intervals
    name: Literal["ais"] = "ais"
    start: Literal["guide", "prior", "gaussian"] = "guide"
    space: Literal["auto", "latent", "noise"] = "auto"
    num_chains: int = Field(default=16, ge=2)
    num_temperatures: PositiveInt | None = None
    pilot_temperatures: int = Field(default=30, ge=4)
    num_leapfrog: PositiveInt = 2
    keep: float = Field(default=0.5, ge=0, lt=1)
    acceptance: float = Field(default=0.8, gt=0, lt=1)
    jitter: float = Field(default=0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _gaussian_in_latent_space(self):
        if self.start == "gaussian" and self.space == "noise":
            raise ValueError(
                "start 'gaussian' has no noise of the guide's to move in: take space 'latent', or "
                "start 'guide'"
            )
        return self

    @property
    def settings(self) -> Settings:
        return Settings(
            num_leapfrog=self.num_leapfrog,
            keep=self.keep,
            jitter=self.jitter,
            acceptance=self.acceptance,
            pilot_temperatures=self.pilot_temperatures,
            # From far away, most of the path's length lies near 0.
            power=4.0 if self.start == "prior" else 2.0,
        )

    def run(self, request: Request) -> Estimate:
        request.check_precision(self.name)
        started = time.perf_counter()
        instead = prior_of(request.model) if self.start == "prior" else None
        with request.tiled(self.num_chains, whole_rows=True, guide=instead) as tiles:
            walk, every, tuned, num_temperatures = self.prepared(request, tiles)
            parts = []
            total = len(every) * num_temperatures
            with Progress(self.name.upper(), total, request.progress, unit="steps") as bar:
                for tile, found in zip(every, tuned, strict=True):
                    held = request.kept.get(f"weighed/{tile.start}", tiles.device)
                    if held is None:
                        data, num_real = walk.data_of(tile)
                        seeded(tiles, tile, "chains")
                        betas = schedule(found, num_temperatures)
                        midway = Midway(request.kept, f"walking/{tile.start}", tiles.device)
                        weighed = self.weigh(walk, data, found, betas, bar, midway)
                        held = [part[:num_real] for part in weighed]
                        midway.finish()
                        request.kept.put(f"weighed/{tile.start}", held)
                    else:
                        bar.advance(num_temperatures)
                    parts.append(held)
            joined = Weighed(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))
        std_error, spread, degrees, calm = self.errors(joined)
        return AnnealedEstimate(
            value=joined.value,
            std_error=std_error,
            degrees=degrees,
            flagged=~calm | (joined.acceptance < MIN_ACCEPTANCE),
            ess=joined.ess,
            spread=spread,
            acceptance=joined.acceptance,
            elbo=joined.bound,
            num_temperatures=num_temperatures,
            start=self.start,
            skew=self.skew,
            quantity=request.quantity,
            estimator=self.name,
            num_samples=self.num_chains,
            bias_direction="low in expectation",
            tile=(tiles.data_per_tile, tiles.samples_per_tile),
            seed=request.seed,
            seconds=time.perf_counter() - started,
            engine=walk.engine,
            engine_reason=walk.reason,
            precision=request.precision,
        )

    def prepared(self, request: Request, tiles: Tiles) -> Prepared:
        """Chains on these tiles, tuned by a pilot."""
        every = [tiles.tile(start) for start in tiles.rows()]
        with working("preparing", request.progress):
            steps = self.pilot_temperatures + (self.num_temperatures or self.fewest)
            space = self.space_of(tiles)
            walk = Walk(tiles, space, self.settings, request.engine, steps * len(every))
        tuned = tune(walk, every, self.num_chains, request)
        return Prepared(walk, every, tuned, self.num_temperatures or self.enough(tuned))

    def weigh(
        self,
        walk: Walk,
        data: Data,
        tuned: Tuned,
        betas: Tensor,
        bar: Progress | None,
        midway: Midway | None,
    ) -> Weighed:
        """What the chains of one tile say."""
        log_w, acceptance, bound = anneal(walk, data, tuned, betas, self.num_chains, bar, midway)
        return of_chains(log_w, acceptance, bound)

    def errors(self, found: Weighed) -> Errors:
        """What the weights say of the values' errors."""
        own = found.spread.square()
        variance, degrees = moderated(own, self.num_chains - 1)
        # Chains that happen to lie too close together have too small an error by as much. Those
        # of a poor datum among calm ones keep their own.
        larger = torch.where(own > 0, variance / own, 1.0).clamp_min(1.0)
        limit = min(MAX_SPREAD, MAX_OWN_SPREAD * math.sqrt(seldom_below(degrees)))
        calm = (variance.sqrt() <= limit) & (found.spread <= MAX_OWN_SPREAD)
        spread = torch.maximum(variance, own).sqrt()
        # Cox's error is that of a mean of lognormal weights; the weights' own is smaller for those
        # few chains that seldom draw a large one.
        num = self.num_chains
        cox = spread.square() / num + spread**4 / (2 * (num - 1))
        std_error = ((found.variance * larger + cox) / 2).sqrt()
        return Errors(std_error, spread, torch.full_like(own, degrees), calm)

    @property
    def fewest(self) -> int:
        """The least that a pilot may find to be enough."""
        return FEWEST

    def enough(self, tuned: Sequence[Tuned]) -> int:
        """Temperatures that bring the variance of log w to `AIM` for nine data in ten."""
        squares = torch.cat([each.length for each in tuned]).square()
        wanted = 4 * float(squares.quantile(0.9)) / AIM
        return int(min(max(wanted, FEWEST), MOST))

    def space_of(self, tiles: Tiles) -> Space:
        """Raises: `PairError` where the pair's latents have no such space."""
        if self.start == "gaussian":
            return GaussianStart(tiles.scorer, tiles.arguments)
        if self.space != "latent":
            try:
                return NoiseSpace(tiles.scorer, tiles.arguments)
            except PairError:
                if self.space == "noise":
                    raise
        return LatentSpace(tiles.scorer, tiles.arguments)


def tune(walk: Walk, every: Sequence[Tile], num_chains: int, request: Request) -> list[Tuned]:
    """A pilot for each tile."""
    found = []
    steps = walk.settings.pilot_temperatures
    with Progress("pilot", len(every) * steps, request.progress, unit="steps") as bar:
        for tile in every:
            held = request.kept.get(f"pilot/{tile.start}", walk.tiles.device)
            if held is None:
                data, _ = walk.data_of(tile)
                seeded(walk.tiles, tile, "pilot")
                tuned = pilot(walk, data, num_chains, bar)
                request.kept.put(f"pilot/{tile.start}", tuned)
            else:
                tuned = Tuned(*held)
                bar.advance(steps)
            found.append(tuned)
    return found


def anneal(
    walk: Walk,
    data: Data,
    tuned: Tuned,
    betas: Tensor,
    num_chains: int,
    bar: Progress | None = None,
    midway: Midway | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of chains that go from f_0 to f_1.

        log w = sum_t (beta_t - beta_{t-1}) log f_1/f_0 (u_{t-1}),   E[w] = p(x)

    Args:
        betas: `[T + 1, data]`, from 0 to 1.
        midway: where the way is kept; what is there is not walked again.
    Returns: log w `[chains, data]` float64; `[data]`: the mean acceptance, and the mean of
        log f_1/f_0 under f_0 (the ELBO, where that is the guide).
    """
    resumed = midway.resume() if midway else None
    if resumed is None:
        done, chains = 0, walk.begin(data, num_chains)
        bound = chains.log_ratio.mean(0)
        log_w = torch.zeros_like(chains.start)
        acceptance = torch.zeros_like(chains.start[0])
    else:
        done, (*parts, log_w, acceptance, bound) = resumed
        chains = Chains(*parts)
        if bar is not None:
            bar.advance(done)
    for step in range(done, len(betas) - 1):
        log_w = log_w + (betas[step + 1] - betas[step]) * chains.log_ratio
        moved = walk.move(chains, betas[step + 1], tuned, data)
        chains = moved.chains
        acceptance = acceptance + moved.acceptance.mean(0) / (len(betas) - 1)
        if bar is not None:
            bar.advance()
        if midway is not None:
            midway.keep(step + 1, [*chains, log_w, acceptance, bound])
    return log_w, acceptance, bound


def of_chains(log_w: Tensor, acceptance: Tensor, bound: Tensor) -> Weighed:
    """What the weights of independent chains `[chains, data]` say."""
    num_chains = len(log_w)
    value = log_mean(log_w)
    weight = (log_w - value).exp()  # relative to their mean
    ess = num_chains / weight.square().mean(0)
    return Weighed(value, weight.var(0) / num_chains, ess, log_w.std(0), acceptance, bound)


def log_mean(log_w: Tensor) -> Tensor:
    """log of the mean weight over chains, `[data]`."""
    return log_w.logsumexp(0) - math.log(len(log_w))
