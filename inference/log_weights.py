"""One pass over a pair: latents, log p and log q per site, per particle and datum.

Everything else (importance weights, the ELBO, KL terms, latent usage) is a function of the record
made here; nothing else traces a model for estimation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.distributions import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import constraints

from inference.enumeration import aligned, check_outside, expectation, marginals, touches
from inference.errors import PairError
from inference.isolation import modes, modules_of, own_randomness, own_store, validation
from inference.pair import (
    GivenSubsample,
    Pair,
    as_arguments,
    examine,
    frame_of,
    sample_sites,
)
from inference.supports import is_mixture, is_point, plain_support

PARTICLES = "_num_particles_vectorized"


@dataclass(frozen=True)
class LogWeights:
    """K draws z_k ~ q(z|x_n) of every datum, scored.

    `latents[name]` is `[K, ...]` with the site's own batch and event dimensions; `log_p[name]` and
    `log_q[name]` are log-densities in nats, float64 `[K, N]` (or `[K]` outside the data plate),
    summed over everything but particles and the data plate, not scaled by its subsampling (a scale
    that the user gave is kept; evidence refuses it). `model_fn` and `guide_fn` are the
    distributions themselves, masked where their sites are. `auxiliary` holds draws of guide sites
    that the model does not have. Observed sites of the guide alone (`pyro.factor`) are terms of
    log q, as in Pyro's `Trace_ELBO`. `ulp` is the rounding of one unit in the last place of every
    summed log-density, as a root of the sum of squares. `entangled` names latents whose log p is
    part of an observed site's term, for they share values that the model sums over.
    """

    latents: dict[str, Tensor]
    auxiliary: dict[str, Tensor]
    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    observed: tuple[str, ...]
    model_fn: dict[str, Any]
    guide_fn: dict[str, Any]
    ulp: Tensor
    entangled: tuple[tuple[str, str], ...] = ()

    @property
    def log_weight(self) -> Tensor:
        """log w_k = log p(x, z_k) - log q(z_k|x), in nats."""
        return sum(self.log_p.values()) - sum(self.log_q.values())  # type: ignore[return-value]

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x|z_k): the observed sites."""
        return sum(self.log_p[name] for name in self.observed)  # type: ignore[return-value]


def log_weights(
    model: Callable,
    guide: Callable,
    *arguments: Tensor,
    num_particles: int = 1,
    plate: str | None = "data",
) -> LogWeights:
    """Draw `num_particles` latents per datum from the guide and score them under both programs.

        log w_nk = log p(x_n, z_nk) - log q(z_nk | x_n),   z_nk ~ q(z|x_n)

    Args:
        model, guide: any Pyro pair whose per-datum sites stand in a plate as long as the batch.
        arguments: tensors `[N, ...]`.
        num_particles: K.
        plate: name of the data plate, or None for one joint weight per particle.
    Returns: a `LogWeights` record; it carries gradients unless under `torch.no_grad()`.
    Raises: `PairError` if the pair's sites, shapes, supports or plates do not fit.
    """
    arguments = as_arguments(arguments)
    with own_store(share=True):
        with modes(modules_of(model, guide), training=False):  # a look leaves no statistics
            pair = evidence_pair(examine(model, guide, arguments, plate))
            scorer = Scorer(pair, arguments)
        subset = None
        if pair.subsampling == "own":
            subset = _every_row(pair, arguments)
        return scorer(arguments, num_particles, subset, check=True)


def evidence_pair(pair: Pair) -> Pair:
    """The pair, if log p(x) per datum is a question it can answer. Raises `PairError`."""
    if pair.scaled_sites:
        raise PairError(
            f"site '{pair.scaled_sites[0]}' is scaled by poutine.scale; the evidence of a scaled "
            "density is not defined: remove the scale for this call"
        )
    if pair.refusals:
        raise PairError(pair.refusals[0])
    if pair.plate is not None and pair.global_sites:
        raise PairError(
            f"site '{pair.global_sites[0]}' stands outside plate '{pair.plate}', so log p(x) does "
            "not split by datum; ask for one joint evidence with plate=None"
        )
    return pair


class Scorer:
    """Scores batches of one pair, with particles in a plate of their own where that is exact.

    Particles stand in an outer plate, so that the guide's network sees each datum once. Networks
    that cannot take `[particles, batch, ...]` (a `.view`, a convolution) are found by comparing
    with one particle at a time, and served by repeating each datum K times.
    """

    def __init__(self, pair: Pair, arguments: tuple[Tensor, ...]):
        self.pair = pair
        few = arguments if pair.whole else tuple(a[:4] for a in arguments)
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
                "its data at once cannot repeat each datum instead; let its networks take "
                f"[particles, batch, ...] ({str(reason).splitlines()[0]})"
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
                    alone, _ = _reduce(site, self.pair, particles=False, latent=latent)
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
            given = replace(pair, guide=_Drawn(values)(pair.guide))
            alone = record_of(given, arguments, 1, subset, vectorize=False)
            for ours, theirs in ((together.log_p, alone.log_p), (together.log_q, alone.log_q)):
                for name, score in ours.items():
                    # A marginal without other latents is the same for all draws.
                    score = score.expand(3, *score.shape[1:])
                    if not torch.allclose(theirs[name][0], score[k], rtol=1e-3, atol=1e-3):
                        return False
        return True


class _Drawn(Messenger):
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
) -> LogWeights:
    """K draws of each datum with particles in a plate of their own, or one at a time."""
    if pair.subsampling == "prescaled":
        subset = _every_row(pair, arguments)
    if vectorize:
        return _run(pair, arguments, subset, num_particles, check=check)
    return _stacked([_run(pair, arguments, subset, check=check) for _ in range(num_particles)])


def _run(
    pair: Pair,
    arguments: tuple[Tensor, ...],
    subset: Tensor | None,
    num_particles: int | None = None,
    *,
    check: bool = False,
) -> LogWeights:
    """One run of guide and model, in a particle plate unless `num_particles` is None."""

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
    guide_trace = poutine.trace(guide).get_trace(*arguments)
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace = poutine.trace(replayed).get_trace(*arguments)
    if check:
        _check_observed(model_trace)

    def reduce(site, latent):
        return _reduce(site, pair, particles=num_particles is not None, latent=latent)

    record = _record(model_trace, guide_trace, reduce)
    if not pair.enumerated:
        return record
    return _without_enumerated(record, model_trace, guide_trace, pair, num_particles is not None)


def _without_enumerated(
    record: LogWeights, model_trace, guide_trace, pair: Pair, particles: bool
) -> LogWeights:
    """The record with enumerated sites summed out; their latents are all values at once.

    Raises: `PairError` where scales differ within one sum, or a site outside the plate depends on
        values of the data.
    """
    first = -1 - pair.max_plate_nesting - particles
    in_model, in_guide = sample_sites(model_trace), sample_sites(guide_trace)

    def places(sites) -> dict[str, int]:
        return {
            name: first - site["infer"]["_enumerate_dim"]
            for name, site in sites.items()
            if "_enumerate_dim" in site["infer"]
        }

    of_guide = places(in_guide)
    of_model = {n: p for n, p in places(in_model).items() if n not in of_guide}
    count = 1 + max((*of_guide.values(), *of_model.values()))
    guide_dims = {n: count - 1 - p for n, p in of_guide.items()}
    model_dims = {n: count - 1 - p for n, p in of_model.items()}

    def inside(scores: dict[str, Tensor], sites) -> dict[str, Tensor]:
        return {
            name: aligned(score, particles + 1, count)
            for name, score in scores.items()
            if frame_of(sites[name], pair.plate) is not None
        }

    def outside(scores: dict[str, Tensor], sites) -> dict[str, Tensor]:
        found = {n: s for n, s in scores.items() if frame_of(sites[n], pair.plate) is None}
        for name, score in found.items():
            check_outside(name, sites[name], pair.plate)
            found[name] = score.reshape(score.shape[score.dim() - particles :])
        return found

    def bare(site, *, masked: bool) -> Tensor:
        plain = {**site, "scale": _subsampling(site, pair)}
        if not masked:
            plain["mask"] = None
        latent = site["name"] in record.latents
        score, _ = _reduce(plain, pair, particles=particles, latent=latent)
        return aligned(score, particles + 1, count)

    log_p, log_q = inside(record.log_p, in_model), inside(record.log_q, in_guide)
    entangled: tuple[tuple[str, str], ...] = ()
    observed = record.observed
    if model_dims:
        summed, scales = {}, {}
        for name, term in log_p.items():
            if name in model_dims or touches(term, model_dims.values()):
                site = in_model[name]
                scales[name] = _own_scale(site, pair)
                # As in Pyro, a mask takes the terms of a site's children out, and not the
                # probabilities of its values, which are then summed to 1.
                masked = name not in model_dims
                as_is = isinstance(scales[name], float | int) and scales[name] == 1
                as_is = as_is and (masked or site["mask"] is None)
                summed[name] = term if as_is else bare(site, masked=masked)
        found = marginals(summed, scales, model_dims, record.observed)
        log_p = {n: t for n, t in log_p.items() if n not in summed} | found.log_p
        observed = tuple(n for n in observed if n in log_p or n not in summed)
        entangled = found.entangled
    if guide_dims:
        weights = {n: bare(_without_own_mask(in_guide[n]), masked=False) for n in guide_dims}
        mean = expectation(weights, guide_dims)
        log_p = {n: mean(t) for n, t in log_p.items()}
        log_q = {n: mean(t) for n, t in log_q.items()}

    def restore(scores: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: s.reshape(s.shape[count:]) for n, s in scores.items()}

    return replace(
        record,
        log_p=outside(record.log_p, in_model) | restore(log_p),
        log_q=outside(record.log_q, in_guide) | restore(log_q),
        observed=observed,
        entangled=entangled,
    )


def _without_own_mask(site):
    """The site, its distribution without a mask (`.mask(...)`): the values' probabilities."""
    fn = site["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return {**site, "fn": fn}


def _stacked(records: list[LogWeights]) -> LogWeights:
    """Records of one draw each, without a particle dimension, as one."""

    def stack(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    return replace(
        records[-1],
        latents=stack([r.latents for r in records]),
        auxiliary=stack([r.auxiliary for r in records]),
        log_p=stack([r.log_p for r in records]),
        log_q=stack([r.log_q for r in records]),
        ulp=torch.stack([r.ulp for r in records]),
    )


def _folded(
    pair: Pair, arguments: tuple[Tensor, ...], num_particles: int, *, check: bool = False
) -> LogWeights:
    """Each datum repeated K times: for networks that take one batch dimension only."""
    repeated = tuple(a.repeat_interleave(num_particles, 0) for a in arguments)
    subset = _every_row(pair, repeated) if pair.subsampling == "prescaled" else None
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


def _every_row(pair: Pair, arguments) -> Tensor:
    """Indices for a plate that would draw its own, one for each row at hand."""
    if pair.subsampling == "own" and len(arguments[0]) != pair.subsample_size:
        raise PairError(
            f"plate '{pair.plate}' draws {pair.subsample_size} of {len(arguments[0])} data itself, "
            "so one pass cannot weigh them all; use log_marginal, or drop subsample_size for this "
            "call"
        )
    return torch.arange(len(arguments[0]), device=arguments[0].device)


def _check_observed(model_trace) -> None:
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


def _record(model_trace, guide_trace, reduce) -> LogWeights:
    in_model, in_guide = sample_sites(model_trace), sample_sites(guide_trace)
    latents = {n: s["value"] for n, s in in_model.items() if not s["is_observed"]}
    p = {name: reduce(site, latent=name in latents) for name, site in in_model.items()}
    q = {
        name: reduce(site, latent=False)
        for name, site in in_guide.items()
        # Data that a guide sees by running the model (Pyro's GuideMessenger) are no term of log q.
        if not (site["is_observed"] and name in in_model)
    }
    return LogWeights(
        latents=latents,
        auxiliary={
            n: s["value"] for n, s in in_guide.items() if n not in in_model and not s["is_observed"]
        },
        log_p={name: score for name, (score, _) in p.items()},
        log_q={name: score for name, (score, _) in q.items()},
        observed=tuple(name for name, site in in_model.items() if site["is_observed"]),
        model_fn={name: _masked(site) for name, site in in_model.items()},
        guide_fn={name: _masked(site) for name, site in in_guide.items()},
        ulp=_root_of_squares([ulp for _, ulp in (*p.values(), *q.values())]),
    )


def _masked(site):
    return site["fn"] if site["mask"] is None else site["fn"].mask(site["mask"])


def _root_of_squares(parts: list[Tensor]) -> Tensor:
    """sqrt(sum of squares); what stands outside the data plate `[K]` counts for every datum."""
    widest = max(part.dim() for part in parts)
    wide = (part if part.dim() == widest else part.unsqueeze(-1) for part in parts)
    return torch.stack(torch.broadcast_tensors(*(part.square() for part in wide))).sum(0).sqrt()


def _reduce(site, pair: Pair, *, particles: bool, latent: bool) -> tuple[Tensor, Tensor]:
    """A site's log-density over everything but particles and the data plate, unscaled; its ulp."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    if latent:
        log_prob = _inside(site, log_prob)
    log_prob = scale_and_mask(log_prob, _own_scale(site, pair), site["mask"])
    kept = []
    if particles:
        kept.append(-pair.max_plate_nesting - 1)
    if frame_of(site, pair.plate) is not None:
        kept.append(pair.data_dim)  # type: ignore[arg-type]
    if log_prob.dim() < pair.max_plate_nesting + particles:
        missing = pair.max_plate_nesting + particles - log_prob.dim()
        log_prob = log_prob.reshape((1,) * missing + tuple(log_prob.shape))
    epsilon = torch.finfo(log_prob.dtype).eps
    # Dimensions to the left of plates and particles are those of enumerated sites.
    first = -min(log_prob.dim(), pair.max_plate_nesting + particles)
    summed = [d for d in range(first, 0) if d not in kept]
    if pair.plate is None:  # as many terms as data, each rounded by itself
        terms = log_prob.double()
        squares = terms.detach().nan_to_num(0, 0, 0).square()
        if summed:  # an empty list would stand for every dimension
            terms, squares = terms.sum(summed), squares.sum(summed)
        return terms, epsilon * squares.sqrt()
    total = (log_prob.sum(summed) if summed else log_prob).double()
    size = total.detach().abs().nan_to_num(0, 0, 0)
    if size.dim() > len(kept):
        size = size.flatten(0, size.dim() - len(kept) - 1).amax(0)
    return total, epsilon * size


def _own_scale(site, pair: Pair) -> float | Tensor:
    """A site's scale but for what its data plate's subsampling puts there; 1 in evidence."""
    subsampling = _subsampling(site, pair)
    return site["scale"] if subsampling == 1 else site["scale"] / subsampling


def _subsampling(site, pair: Pair) -> float:
    """What the data plate's subsampling scales a site by."""
    frame = frame_of(site, pair.plate)
    return 1.0 if frame is None or not frame.full_size else frame.full_size / frame.size


def _inside(site, log_prob: Tensor) -> Tensor:
    """-inf where a draw lies outside the model's support: its density there is 0, not NaN."""
    support = plain_support(site["fn"])
    if support is constraints.real:
        return log_prob
    try:
        outside = ~site["fn"].support.check(site["value"])
    except NotImplementedError:  # a support that is not known cannot be checked
        return log_prob
    unknown = site["value"].isnan()
    outside = outside & ~(
        unknown.flatten(outside.dim()).any(-1) if unknown.dim() > outside.dim() else unknown
    )
    if support.event_dim > 0 or is_mixture(site["fn"]):
        # Draws lie in a simplex up to rounding only; torch asks for all of a mixture's components.
        outside = outside & log_prob.isnan()
    return torch.where(outside, -math.inf, log_prob)
