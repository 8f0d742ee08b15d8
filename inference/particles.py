"""How particles are run: in a plate of their own, one at a time, or folded into the data."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.dimensions import Dimensions
from inference.enumeration import without_enumerated
from inference.errors import PairError
from inference.isolation import own_randomness, validation
from inference.masks import check_masks, check_unneeded
from inference.pair import GivenSubsample, Pair, sample_sites
from inference.record import LogWeights, from_traces, score_of, stacked
from inference.stopped import FixedDraws, Scoring, Taps, rescored, tapped
from inference.supports import is_point

PARTICLES = "_num_particles_vectorized"


class Scorer:
    """Scores batches of one pair, with particles in a plate of their own where that is exact.

    Particles stand in an outer plate, so that the guide's network sees each datum once. Networks
    that cannot take `[particles, batch, ...]` (a `.view`, a convolution) are found by comparing
    with one particle at a time, and served by repeating each datum K times.
    """

    def __init__(self, pair: Pair, arguments: tuple[Tensor, ...]):
        self.pair = pair
        few = arguments if pair.whole else tuple(a[: pair.few] for a in arguments)
        with own_randomness(0), torch.no_grad():
            self.folded = not self._plate_is_exact(few)

    def __call__(
        self,
        arguments: tuple[Tensor, ...],
        num_particles: int,
        subset: Tensor | None = None,
        *,
        check: bool = False,
    ) -> LogWeights:
        """Score K draws of each datum; with `check`, see that data lie in their supports."""
        with validation(False):
            if self.folded:
                return _folded(self.pair, arguments, num_particles, check=check)
            return record_of(self.pair, arguments, num_particles, subset, check=check)

    def with_guide(self, guide: Callable) -> Scorer:
        """The same for another guide that takes particles as this one does."""
        other = copy.copy(self)
        other.pair = replace(self.pair, guide=guide)
        return other

    def _plate_is_exact(self, arguments: tuple[Tensor, ...]) -> bool:
        """Does the particle plate give what one particle at a time gives?"""
        pair = self.pair
        subset = None
        if pair.subsampling == "own":
            subset = torch.arange(pair.subsample_size, device=arguments[0].device)
        failure = None
        try:
            together = record_of(pair, arguments, 3, subset)
        except Exception as error:  # whatever a foreign network raises on unknown dimensions
            failure = error
        if failure is None and not pair.enumerated:
            failure = _misplaced(together, pair)
        if failure is None and pair.enumerated:
            try:
                if self._same_enumerated(together, arguments, subset):
                    return True
            except Exception as error:
                failure = error
        elif failure is None:
            parts = [(pair.model, together.log_p)]
            if len(together.log_q) > 1:  # a single site's network sees x alone
                parts.append((pair.guide, together.log_q))
            try:
                if all(self._same(*part, together, arguments, subset) for part in parts):
                    return True
            except Exception as error:  # e.g. a guide that knows its density at its draws only
                failure = error
        if pair.whole:
            reason = failure or "its log p differs from one particle at a time"
            raise PairError(
                "the pair cannot take a leading dimension of particles, and one that runs on all "
                "its data at once cannot repeat each datum instead; let its networks and its own "
                "operations take [particles, batch, ...], e.g. (x * w).sum(-1) in the place of "
                f"x @ w ({str(reason).splitlines()[0]})"
            )
        return False

    def _same(self, fn, scores, together: LogWeights, arguments, subset) -> bool:
        """Are the scores of all particles those of each one alone?"""
        for k in range(3):
            drawn = {**together.latents, **together.auxiliary}
            if scores is together.log_q:  # points follow from the other draws
                drawn = {n: v for n, v in drawn.items() if not is_point(together.guide_fn[n])}
            values = {name: value[k] for name, value in drawn.items()}
            run = poutine.condition(_with_subset(fn, self.pair, subset), data=values)
            for name, site in sample_sites(poutine.trace(run).get_trace(*arguments)).items():
                if name in scores:
                    latent = name in together.latents and fn is self.pair.model
                    alone, _ = score_of(site, self.pair, particles=False, latent=latent)
                    if not torch.allclose(alone, scores[name][k], rtol=1e-3, atol=1e-3):
                        return False
        return True

    def _same_enumerated(self, together: LogWeights, arguments, subset) -> bool:
        """The same for pairs with enumerated sites: those of one draw are enumerated again."""
        pair = self.pair
        dim = -pair.max_plate_nesting - 1
        drawn = {
            name: value
            for name, value in {**together.latents, **together.auxiliary}.items()
            if name not in pair.enumerated and not is_point(together.guide_fn[name])
        }
        for k in range(3):
            values = {
                name: value.select(dim - together.guide_fn[name].event_dim, k)
                for name, value in drawn.items()
            }
            given = replace(pair, guide=Given(values)(pair.guide))
            alone = record_of(given, arguments, 1, subset, vectorize=False)
            for ours, theirs in ((together.log_p, alone.log_p), (together.log_q, alone.log_q)):
                for name, score in ours.items():
                    # A marginal without other latents is the same for all draws.
                    score = score.expand(3, *score.shape[1:])
                    if not torch.allclose(theirs[name][0], score[k], rtol=1e-3, atol=1e-3):
                        return False
        return True


def _misplaced(record: LogWeights, pair: Pair) -> Exception | None:
    """What is wrong where a site's log-density has other dimensions than particles and data."""
    most = 1 if pair.data_dim is None else 2
    for name, score in {**record.log_q, **record.log_p}.items():
        if score.dim() > most:
            return PairError(
                f"with particles site '{name}' has a log-density of shape {tuple(score.shape)}: "
                "its distribution spreads them over another dimension than the leftmost"
            )
    return None


class Given(Messenger):
    """Let sites take these values as their draws."""

    def __init__(self, values: dict[str, Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def record_of(
    pair: Pair,
    arguments: tuple[Tensor, ...],
    num_particles: int,
    subset: Tensor | None = None,
    *,
    vectorize: bool = True,
    check: bool = False,
    scoring: Scoring = "paths",
) -> LogWeights:
    """K draws of each datum with particles in a plate of their own, or one at a time.

    `scoring`: gradients go through the draws (`paths`); they do, and log q is there a second time
    with its parameters held still (`stopped`); or the draws carry none (`fixed draws`).
    """
    if pair.subsampling == "prescaled":
        subset = every_row(pair, arguments)
    if vectorize:
        return _run(pair, arguments, subset, num_particles, check=check, scoring=scoring)
    return stacked(
        [_run(pair, arguments, subset, check=check, scoring=scoring) for _ in range(num_particles)]
    )


def _run(
    pair: Pair,
    arguments: tuple[Tensor, ...],
    subset: Tensor | None,
    num_particles: int | None = None,
    *,
    check: bool = False,
    scoring: Scoring = "paths",
) -> LogWeights:
    """One run of guide and model, in a particle plate unless `num_particles` is None."""
    guide, model = _programs(pair, subset, num_particles)
    dimensions = Dimensions.of(pair, particles=num_particles is not None)
    with FixedDraws() if scoring == "fixed draws" else nullcontext():
        guide_trace = poutine.trace(guide).get_trace(*arguments)
    taps, handed = None, guide_trace
    if scoring == "stopped":
        taps = Taps(dimensions)
        handed = tapped(guide_trace, taps)
    replayed = poutine.replay(model, trace=handed)
    model_trace = poutine.trace(replayed).get_trace(*arguments)
    if check:
        check_observed(model_trace)
        in_model, in_guide = sample_sites(model_trace), sample_sites(guide_trace)
        masked = check_masks(in_model, in_guide, pair.enumerated, pair.data_dim)
        if masked:
            guide, model = _programs(pair, subset)
            check_unneeded(model, guide, arguments, masked)

    def reduce(site, latent):
        return score_of(site, pair, particles=num_particles is not None, latent=latent)

    record = replace(
        from_traces(model_trace, guide_trace, reduce), dimensions=dimensions, taps=taps
    )
    if taps is not None:
        drawn = record.latents.keys() | record.auxiliary.keys()
        factors = [name for name in record.log_q if name not in drawn]
        stopped = rescored(guide, handed, arguments, reduce, factors)
        record = replace(record, log_q_stopped=stopped)
    if not pair.enumerated:
        return record
    return without_enumerated(record, model_trace, guide_trace, pair, num_particles is not None)


def _programs(
    pair: Pair, subset: Tensor | None, num_particles: int | None = None
) -> tuple[Callable, Callable]:
    """Guide and model, ready to run."""

    def prepared(fn):
        fn = _with_subset(fn, pair, subset)
        if num_particles is None:
            return fn

        def run(*args):
            with pyro.plate(PARTICLES, num_particles, dim=-pair.max_plate_nesting - 1):
                return fn(*args)

        return run

    guide, model = prepared(pair.guide), prepared(pair.model)
    if pair.enumerated:
        first = -1 - pair.max_plate_nesting - (num_particles is not None)
        # The model's dimensions come after, to the left of, the guide's.
        guide, model = EnumMessenger(first)(guide), EnumMessenger()(model)
    return guide, model


def _folded(
    pair: Pair, arguments: tuple[Tensor, ...], num_particles: int, *, check: bool = False
) -> LogWeights:
    """Each datum repeated K times: for networks that take one batch dimension only."""
    repeated = tuple(a.repeat_interleave(num_particles, 0) for a in arguments)
    subset = every_row(pair, repeated) if pair.subsampling == "prescaled" else None
    record = _run(pair, repeated, subset, check=check)

    def unfold(scores: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: score.reshape(-1, num_particles).T for name, score in scores.items()}

    return replace(
        record,
        log_p=unfold(record.log_p),
        log_q=unfold(record.log_q),
        ulp=record.ulp.reshape(-1, num_particles).T,
    )


def _with_subset(fn, pair: Pair, subset: Tensor | None):
    return fn if subset is None else GivenSubsample(pair.plate, subset)(fn)  # type: ignore[arg-type]


def every_row(pair: Pair, arguments) -> Tensor:
    """Indices for a plate that would draw its own, one for each row at hand."""
    if pair.subsampling == "own" and len(arguments[0]) != pair.subsample_size:
        raise PairError(
            f"plate '{pair.plate}' draws {pair.subsample_size} of {len(arguments[0])} data itself, "
            "so one pass cannot weigh them all; use log_marginal, or drop subsample_size for this "
            "call"
        )
    return torch.arange(len(arguments[0]), device=arguments[0].device)


def check_observed(model_trace) -> None:
    """Raises `PairError` if data lie outside the support of their distribution."""
    for name, site in sample_sites(model_trace).items():
        if not site["is_observed"]:
            continue
        try:
            inside = site["fn"].support.check(site["value"])
        except NotImplementedError:  # a support that is not known cannot be checked
            continue
        if not bool(inside.all()):
            raise PairError(
                f"site '{name}': {int((~inside).sum())} of {inside.numel()} observed values lie "
                f"outside the support {site['fn'].support} of {type(site['fn']).__name__}"
            )
