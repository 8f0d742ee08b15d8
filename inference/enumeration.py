"""Discrete sites summed over instead of sampled (`infer={"enumerate": "parallel"}`).

Pyro's `EnumMessenger` gives each such site a dimension of its own, to the left of all plates, that
holds every value of its support. Here these dimensions are summed out of the sites' log-densities.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from inference.errors import PairError

Scores = dict[str, Tensor]
Factor = tuple[tuple[str, ...], Tensor]  # the sites that it is made of, and their log-density


def is_marked(site) -> bool:
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def check_marked(sites: Mapping[str, Any], plate: str | None) -> tuple[str, ...]:
    """The names of sites to enumerate.

    `sites`: those of the model, and in their places those of the guide.
    Raises: `PairError` where that is not possible, or where a site beside them has no gradient.
    """
    found = tuple(name for name, site in sites.items() if is_marked(site))
    for name in found:
        fn, infer = sites[name]["fn"], sites[name]["infer"]
        if infer.get("num_samples") is not None:
            raise PairError(
                f"site '{name}' is marked for enumeration with num_samples="
                f"{infer['num_samples']}, but draws are no support to sum over; drop num_samples"
            )
        if "_markov_scope" in infer:
            raise PairError(
                f"site '{name}' is marked for enumeration within pyro.markov, whose steps share "
                "dimensions; loop with a plain 'for' over a few steps, or train with Pyro's "
                "TraceEnum_ELBO"
            )
        if not fn.has_enumerate_support:
            raise PairError(
                f"site '{name}' is marked for enumeration, but {type(fn).__name__} has no finite "
                "support; sample it in the guide"
            )
        plates = {f.name for f in sites[name]["cond_indep_stack"]}
        if plate is None or plates != {plate}:
            raise PairError(
                f"site '{name}' is marked for enumeration in plates {sorted(plates)}; sites are "
                f"enumerated one value per datum, in plate '{plate}' alone"
            )
    nesting = max((-f.dim for s in sites.values() for f in _frames(s)), default=0)
    for name, site in sites.items() if found else ():
        fn = site["fn"]
        if any(size > 1 for size in fn.batch_shape[: max(0, len(fn.batch_shape) - nesting)]):
            raise PairError(
                f"site '{name}' has batch shape {tuple(fn.batch_shape)}, more than its plates: "
                f"beside enumerated sites ('{found[0]}') the dimensions to their left are taken; "
                "declare its own with .to_event() or a plate"
            )
        if site["is_observed"] or name in found or getattr(fn, "has_rsample", False):
            continue
        raise PairError(
            f"site '{name}' draws from {_innermost(fn)} without a reparametrized sample; "
            + (
                "mark it for enumeration, too (infer={'enumerate': 'parallel'})"
                if getattr(fn, "has_enumerate_support", False)
                else f"beside enumerated sites ('{found[0]}') draw from one that has it"
            )
        )
    return found


def check_outside(name: str, site, plate: str | None) -> None:
    """Refuse a site outside the plate whose numbers, one a value or datum, no plate declares."""
    fn, dims = site["fn"], {f.dim for f in _frames(site)}
    shape = torch.broadcast_shapes(
        fn.batch_shape, site["value"].shape[: site["value"].dim() - fn.event_dim]
    )
    if any(size > 1 and d - len(shape) not in dims for d, size in enumerate(shape)):
        raise PairError(
            f"site '{name}' has batch shape {tuple(shape)} outside plate '{plate}': declare its "
            "own dimensions with .to_event(), or move it into the plate if it depends on "
            "enumerated values"
        )


def _frames(site):
    return [f for f in site["cond_indep_stack"] if f.vectorized]


def _innermost(fn) -> str:
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


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
