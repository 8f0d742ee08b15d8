"""Discrete sites summed over instead of sampled (`infer={"enumerate": "parallel"}`).

Pyro's `EnumMessenger` gives each such site a dimension of its own, to the left of all plates, that
holds every value of its support. Here these dimensions are summed out of the sites' log-densities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor

from inference.errors import PairError
from inference.marks import check_outside
from inference.pair import Pair, frame_of, sample_sites
from inference.record import LogWeights, own_scale, score_of, subsampling_of

Scores = dict[str, Tensor]
Factor = tuple[tuple[str, ...], Tensor]  # the sites that it is made of, and their log-density


def aligned(score: Tensor, kept: int, count: int) -> Tensor:
    """The score with `count` enumerated dimensions in front of its `kept` last ones."""
    return score.reshape((1,) * (count + kept - score.dim()) + tuple(score.shape))


def touches(term: Tensor, dims: Iterable[int]) -> bool:
    return any(term.shape[d] > 1 for d in dims)


@dataclass(frozen=True)
class Marginals:
    """Terms of the model without its own enumerated dimensions, see `marginals`."""

    log_p: Scores
    entangled: tuple[tuple[str, str], ...]


def marginals(
    log_p: Scores,
    scales: Mapping[str, float | Tensor],
    dims: Mapping[str, int],
    observed: tuple[str, ...],
) -> Marginals:
    """Sum the model's own enumerated sites out of its terms.

    Terms that share values e fall into groups, each of which becomes one term with its sites'
    common scale s outside of the sum, as in Pyro's `TraceEnum_ELBO`:

        s log sum_e exp(sum of the group's terms).

    It stands under the name of an observed site, or else of a latent that is not enumerated, or
    else of the first. `entangled` holds a latent and an observed site of each group that has both:
    its KL term cannot be weighed by itself.

    `log_p`: unscaled terms that depend on e, masked but for those of enumerated sites. `dims`: each
    enumerated site's dimension, from the front.
    Raises: `PairError` where the scales of a group differ.
    """
    found, entangled = {}, []
    for names, total in _eliminated([((n,), t) for n, t in log_p.items()], dims.values()):
        data = [n for n in names if n in observed]
        latents = [n for n in names if n not in observed and n not in dims]
        scale = _common_scale(names, scales)
        key = (*data, *latents, *names)[0]
        found[key] = total if scale == 1 else scale * total
        if data and latents:
            entangled.append((latents[0], data[0]))
    return Marginals(found, tuple(entangled))


def _common_scale(names: tuple[str, ...], scales: Mapping[str, float | Tensor]) -> float:
    for name in names:
        if isinstance(scales[name], Tensor):
            raise PairError(
                f"site '{name}' is scaled by a tensor (poutine.scale), which sites that are summed "
                "over together must have in common; scale them by a number"
            )
    first = float(scales[names[0]])
    for name in names:
        if not math.isclose(float(scales[name]), first, rel_tol=1e-9):
            raise PairError(
                f"sites '{names[0]}' and '{name}' are summed over together, but scaled by "
                f"{first:g} and {float(scales[name]):g} (poutine.scale, or a plate that "
                "subsamples); give them one scale"
            )
    return first


def _eliminated(factors: list[Factor], dims: Iterable[int]) -> list[Factor]:
    """Sum dimensions out of a product of factors, the cheapest first: one factor a group is left.

    Every dimension takes only those factors along that depend on it, so that independent sites
    never make a table of all their values.
    """
    left = list(dims)

    def touching(dim: int) -> list[Factor]:
        return [f for f in factors if f[1].shape[dim] > 1]

    def cost(dim: int) -> int:
        return math.prod(torch.broadcast_shapes(*(t.shape for _, t in touching(dim)), (1,)))

    while left:
        dim = min(left, key=cost)
        left.remove(dim)
        merged = touching(dim)
        if not merged:  # a support of one value
            continue
        names = tuple(name for part, _ in merged for name in part)
        total = torch.logsumexp(reduce(torch.add, (t for _, t in merged)), dim, keepdim=True)
        rest = [f for f in factors if f[1].shape[dim] == 1]
        factors = [*rest, (names, total)]
    return factors


def expectation(log_weights: Scores, dims: Mapping[str, int]) -> Callable[[Tensor], Tensor]:
    """E_q over the guide's enumerated sites c, of terms t: sum_c q(c|x) t(c).

    `log_weights`: log q of each site, neither masked nor scaled: a mask takes a site's terms out of
    the objective, while its values keep their probabilities. `dims`: each site's dimension.
    """
    own = {d: name for name, d in dims.items()}
    known: dict[tuple[int, ...], Tensor] = {}

    def probability(wanted: tuple[int, ...]) -> Tensor:
        if wanted not in known:
            # The sites of these dimensions and those that they depend on; all others sum to 1.
            needed, queue = set(wanted), list(wanted)
            while queue:
                factor = log_weights[own[queue.pop()]]
                more = {d for d in own if factor.shape[d] > 1} - needed
                needed |= more
                queue += more
            factors: list[Factor] = [((own[d],), log_weights[own[d]]) for d in sorted(needed)]
            left = _eliminated(factors, sorted(needed - set(wanted)))
            known[wanted] = reduce(torch.add, (t for _, t in left)).exp()
        return known[wanted]

    def mean(term: Tensor) -> Tensor:
        wanted = tuple(d for d in sorted(own) if term.shape[d] > 1)
        if not wanted:
            return term
        weight = probability(wanted)
        # A value of probability 0 counts for nothing, be its density 0, too.
        safe = torch.where(weight > 0, term, 0.0)
        return (weight * safe).sum(wanted, keepdim=True)

    return mean


def without_enumerated(
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
        plain = {**site, "scale": subsampling_of(site, pair)}
        if not masked:
            plain["mask"] = None
        latent = site["name"] in record.latents
        score, _ = score_of(plain, pair, particles=particles, latent=latent)
        return aligned(score, particles + 1, count)

    log_p, log_q = inside(record.log_p, in_model), inside(record.log_q, in_guide)
    entangled: tuple[tuple[str, str], ...] = ()
    observed = record.observed
    if model_dims:
        summed, scales = {}, {}
        for name, term in log_p.items():
            if name in model_dims or touches(term, model_dims.values()):
                site = in_model[name]
                scales[name] = own_scale(site, pair)
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
    weights = {n: bare(_without_own_mask(in_guide[n]), masked=False) for n in guide_dims}
    mean = expectation(weights, guide_dims)
    log_p = {n: mean(t) for n, t in log_p.items()}
    log_q = {n: mean(t) for n, t in log_q.items()}

    def expected(term: Tensor) -> Tensor:
        term = aligned(term, particles + 1, count)
        for name, dim in model_dims.items():
            if touches(term, [dim]):
                raise PairError(
                    f"site '{name}' is summed over by the model, so what depends on it has a "
                    "density only in sum, and the objective asks for a term of its own; use "
                    "kl='sampled', and of 'free_bits' per='site'"
                )
        mean_term = mean(term)
        return mean_term.reshape(mean_term.shape[count:])

    def restore(scores: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: s.reshape(s.shape[count:]) for n, s in scores.items()}

    return replace(
        record,
        log_p=outside(record.log_p, in_model) | restore(log_p),
        log_q=outside(record.log_q, in_guide) | restore(log_q),
        observed=observed,
        entangled=entangled,
        expected=expected,
    )


def _without_own_mask(site):
    """The site, its distribution without a mask (`.mask(...)`): the values' probabilities."""
    fn = site["fn"]
    while isinstance(fn, MaskedDistribution):
        fn = fn.base_dist
    return {**site, "fn": fn}
