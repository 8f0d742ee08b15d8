"""Supports: where a distribution's values lie, and whether a guide's cover a model's."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pyro.distributions.constraints import integer
from torch import Tensor
from torch.distributions import constraints

from inference.errors import PairError


def narrow_sites(in_model, in_guide) -> list[str]:
    """Sites whose guide cannot reach all of the model's support."""
    found = []
    for name, q in in_guide.items():
        if name not in in_model or q["is_observed"] or is_point(q["fn"]):
            continue
        if _is_narrower(q["fn"], in_model[name]["fn"]):
            p_support = plain_support(in_model[name]["fn"])
            found.append(
                f"site '{name}': the guide draws from {_drawn_from(q['fn'])} only, the model's "
                f"support is {in_a_line(p_support)}; weights miss the rest, so widen the guide"
            )
    return found


def repeating_sites(in_model, in_guide) -> list[str]:
    """Angles whose density goes on beyond one turn, under guides that draw from the whole line.

    Weights would count an angle once for every turn.
    """
    return [
        f"site '{name}': the model draws an angle from VonMises, whose density repeats beyond "
        f"[-pi, pi], and the guide draws from {_drawn_from(in_guide[name]['fn'])}, so weights "
        "count an angle many times; draw it from VonMises, or from within [-pi, pi]"
        for name, site in in_model.items()
        if name in in_guide
        and is_angle(site["fn"])
        and not is_angle(in_guide[name]["fn"])
        and not is_point(in_guide[name]["fn"])
        and not _within_one_turn(in_guide[name]["fn"])
    ]


def _within_one_turn(fn) -> bool:
    ends = _bounds(fn)
    return ends is not None and bool((ends[1] - ends[0] <= 2 * math.pi + 1e-5).all())


def _is_narrower(q, p) -> bool:
    if plain_support(q).is_discrete and not plain_support(p).is_discrete:
        return True
    inner, outer = _bounds(q), _bounds(p)
    if inner is None or outer is None:
        return False
    width = outer[1] - outer[0]
    slack = 1e-6 * torch.where(width.isfinite(), width, 0.0)  # a sigmoid's ends are rounded
    return bool(((inner[0] > outer[0] + slack) | (inner[1] < outer[1] - slack)).any())


def _bounds(fn) -> tuple[Tensor, Tensor] | None:
    """The least and the largest value of each number that is drawn, or None if not known."""
    fn, support = plain_fn(fn), plain_support(fn)
    if _is_transformed(fn) and support is constraints.real:
        return _image(fn)
    if support in (constraints.real, constraints.boolean) or isinstance(support, type(integer)):
        ends = (0.0, 1.0) if support is constraints.boolean else (-math.inf, math.inf)
    elif hasattr(support, "lower_bound") or hasattr(support, "upper_bound"):
        ends = (
            getattr(support, "lower_bound", -math.inf),
            getattr(support, "upper_bound", math.inf),
        )
    else:
        return None
    low, high = (torch.as_tensor(end, dtype=torch.float64).cpu() for end in ends)
    if is_mixture(fn) and low.dim() + high.dim() > 0:  # bounds of each component
        return None
    return low, high


def _image(fn) -> tuple[Tensor, Tensor] | None:
    """Where a chain of monotone transforms takes the base's bounds."""
    ends = _bounds(fn.base_dist)
    try:
        for transform in fn.transforms:
            if ends is None or transform.domain.event_dim or not transform.bijective:
                return None
            like = fn.base_dist.sample()
            mapped = [transform(end.to(like)).double().cpu() for end in ends]
            ends = torch.minimum(*mapped), torch.maximum(*mapped)
    except Exception:  # a foreign transform may take draws only: they judge
        return None
    return ends


def _is_transformed(fn) -> bool:
    return isinstance(plain_fn(fn), torch.distributions.TransformedDistribution)


def _drawn_from(fn) -> str:
    """A site's support in words; of transforms that declare the real line, what they reach."""
    support = plain_support(fn)
    ends = _bounds(fn) if _is_transformed(fn) and support is constraints.real else None
    if ends is None:
        return in_a_line(support)
    return f"Interval(lower_bound={float(ends[0].min())}, upper_bound={float(ends[1].max())})"


def in_a_line(support) -> str:
    return " ".join(str(support).split())[:200]


def check_support(name: str, q, p) -> None:
    if is_point(q["fn"]):
        inside = p["fn"].support.check(q["value"])
    else:
        q_support, p_support = plain_support(q["fn"]), plain_support(p["fn"])
        whole_line = constraints.real
        # The last of several transforms may declare the real line and reach a part: draws judge.
        declared = not _is_transformed(q["fn"])
        if declared and q_support is whole_line and p_support is not whole_line:
            raise PairError(
                f"site '{name}': the guide draws from {q_support}, the model's support is "
                f"{in_a_line(p_support)}; transform the guide, e.g. with TransformedDistribution"
            )
        inside = p["fn"].support.check(q["value"])
    if not bool(inside.all()):
        raise PairError(
            f"site '{name}': the guide drew a value outside the model's support "
            f"{in_a_line(plain_support(p['fn']))} (guide support: {_drawn_from(q['fn'])})"
        )


def is_point(fn) -> bool:
    return isinstance(plain_fn(fn), dist.Delta)


def is_angle(fn) -> bool:
    """A density on [-pi, pi], which torch declares on the real line."""
    return isinstance(plain_fn(fn), torch.distributions.VonMises)


def is_mixture(fn) -> bool:
    return isinstance(plain_fn(fn), torch.distributions.MixtureSameFamily)


def plain_fn(fn):
    while isinstance(fn, torch.distributions.Independent | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn


def family_of(fn) -> str:
    """The name of a distribution without what wraps it."""
    while type(fn).__name__ in ("Independent", "MaskedDistribution", "ExpandedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


def plain_support(fn):
    """The support of one number of an event, or of what cannot be taken apart."""
    support = fn.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support in (constraints.real_vector, constraints.real):
        return constraints.real
    return support
