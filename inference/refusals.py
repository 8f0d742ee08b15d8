"""Why the weights of a pair are no evidence: sentences, each with what to do."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

import torch
from torch.distributions import biject_to

from inference.supports import is_point, narrow_sites, repeating_sites


def refusals_of(in_model, in_guide, plate: str | None, nesting: int) -> tuple[str, ...]:
    """What stands against evidence of these sites; empty if nothing does.

    `nesting`: how far to the left the plates of the pair reach.
    """
    every = [*in_model.values(), *in_guide.values()]
    return (
        *_partial_plates(every, plate),
        *_undeclared(every, nesting),
        *_factors(in_model, in_guide),
        *_point_sites(in_model, in_guide),
        *narrow_sites(in_model, in_guide),
        *repeating_sites(in_model, in_guide),
    )


def names_of(sites: Iterable[str]) -> str:
    return ", ".join(sites) or "none"


def _partial_plates(sites, plate: str | None) -> list[str]:
    """Plates, other than the data's, that hand out a part of what they stand for."""
    held = {f.name: f for site in sites for f in site["cond_indep_stack"] if f.name != plate}
    return [
        f"plate '{name}' subsamples {f.size} of {f.full_size}, and evidence of a part is not that "
        f"of the whole; use it whole for this call, or name it with plate='{name}' if it holds "
        "the data"
        for name, f in held.items()
        if f.full_size and f.size != f.full_size
    ]


def _undeclared(sites, nesting: int) -> list[str]:
    """Sites with dimensions to the left of all plates, where those of particles belong."""
    found = {}
    for site in sites:
        shape = _shape_of_density(site)
        if any(size > 1 for size in shape[: max(0, len(shape) - nesting)]):
            plates = names_of(f"'{f.name}'" for f in site["cond_indep_stack"])
            found[site["name"]] = (
                f"site '{site['name']}' has a density of shape {shape}, more dimensions than its "
                f"plates declare (plates: {plates}): declare its own with pyro.plate(..., dim=), "
                "or put them last and call .to_event(n)"
            )
    return list(found.values())


def _shape_of_density(site) -> tuple[int, ...]:
    """The distribution's batch shape, as wide as observed values make it."""
    fn, value = site["fn"], site["value"]
    batch = value.shape[: max(0, value.dim() - fn.event_dim)]
    with contextlib.suppress(RuntimeError):  # events of a length of their own
        return tuple(torch.broadcast_shapes(fn.batch_shape, batch))
    return tuple(fn.batch_shape)


def _factors(in_model, in_guide) -> list[str]:
    """Terms of the guide that are no density.

    A point that is made of auxiliary draws may have its Jacobian, or a part of it, as a factor.
    """
    auxiliary = [n for n, s in in_guide.items() if n not in in_model and not s["is_observed"]]
    points = [n for n, s in in_guide.items() if n in in_model and is_point(s["fn"])]
    if auxiliary and points:
        return []
    return [
        f"site '{name}' of the guide is a factor (pyro.factor or obs=), so the guide is no "
        "normalized density and its weights are no evidence; remove it for this call"
        for name, site in in_guide.items()
        if site["is_observed"] and name not in in_model
    ]


def _point_sites(in_model, in_guide) -> list[str]:
    """Points of the guide without a density, and auxiliary sites that give theirs to no point.

    With equally many free numbers a point's value can be a one-to-one function of auxiliary draws:
    q(z) = q(a) |da/dz|, where the point's log_density holds the Jacobian. With fewer it is none,
    and with more q(z) is an integral over what is left.
    """
    free = {n: s for n, s in in_guide.items() if not s["is_observed"]}
    auxiliary = {n: s for n, s in free.items() if n not in in_model}
    dense = {n: s for n, s in auxiliary.items() if not is_point(s["fn"])}
    points = {n: s for n, s in free.items() if n in in_model and is_point(s["fn"])}
    given = sum(_full_shape(s).numel() for s in dense.values())
    wanted = sum(_num_free(s, in_model[n]) for n, s in points.items())
    found = [n for n in auxiliary if n not in dense]
    if given < wanted:
        found += points
    few = ""
    if dense:
        few = f" (auxiliary sites {names_of(dense)} hold {given} of the {wanted} numbers in points)"
    refusals = [
        f"site '{name}': the guide is a point (Delta), so its weights are no evidence; use a guide "
        f"with a density{few}"
        for name in found
    ]
    if given > wanted:
        others = [n for n in free if n in in_model and n not in points] or list(points)
        a, z = names_of(dense), names_of(others)
        refusals.append(
            f"auxiliary site '{a}' of the guide: the density of {z} needs the integral of "
            f"q({z}|{a}) q({a}) over {a}; make {a} a latent of the model, too, or {z} a one-to-one "
            "function of it (a Delta with its log_density)"
        )
    return refusals


def _num_free(site, in_model) -> int:
    """Numbers that a site's value is made of: one less than its length for a simplex."""
    shape = _full_shape(site)
    with contextlib.suppress(NotImplementedError):  # e.g. a discrete support
        shape = biject_to(in_model["fn"].support).inverse_shape(shape)
    return math.prod(shape)


def _full_shape(site) -> torch.Size:
    return site["fn"].batch_shape + site["fn"].event_shape
