"""Maps from R^d to the supports of latents."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import Transform, biject_to, constraints

from inference.errors import PairError
from inference.evidence.stereographic import Stereographic
from inference.supports import in_a_line, is_angle, is_mixture, plain_support

SLACK = 1e-5  # of a bound, by which draws may lie beyond it: a transform's ends are rounded


@dataclass(frozen=True)
class Bounded:
    """An interval, or half of the line, between bounds that each datum may have its own of.

    `kind` is the constraint, made of bounds alone, and `sides` its names for them.
    """

    kind: type
    sides: tuple[str, ...]

    def bounds(self, fn, value: Tensor) -> list[Tensor]:
        """Those of every number of a value that a distribution gave."""
        support = plain_support(fn)
        ends = [torch.as_tensor(getattr(support, side)).to(value) for side in self.sides]
        return [end.expand(value.shape) for end in ends]

    def map_at(self, bounds: tuple[Tensor, ...]) -> Transform:
        """The map to between these bounds, number by number."""
        return biject_to(self.kind(*bounds))

    def inverse(self, name: str, value: Tensor, bounds: tuple[Tensor, ...]) -> Tensor:
        """The free numbers behind values between these bounds.

        Raises: `PairError` for values that lie beyond them.
        """
        inside = value
        for side, bound in zip(self.sides, bounds, strict=True):
            low = side == "lower_bound"
            beyond = bound - value if low else value - bound
            if bool((beyond > SLACK * bound.abs()).any()):
                raise PairError(
                    f"site '{name}': the guide drew a value {'below' if low else 'above'} the "
                    f"model's {'lower' if low else 'upper'} bound; draw from within the support, "
                    "or use estimator='importance'"
                )
            # On a bound itself no free number leads: the next number that the arithmetic knows.
            limits = torch.finfo(value.dtype)
            least = limits.eps * bound.abs() + limits.tiny
            inside = inside.maximum(bound + least) if low else inside.minimum(bound - least)
        return self.map_at(bounds).inv(inside)


def map_to(name: str, fn) -> Transform | Bounded | None:
    """The map from R^d to a site's support; None where that is R^d itself.

    Raises: `PairError` where there is none.
    """
    support = plain_support(fn)
    if is_angle(fn):
        return biject_to(constraints.interval(-math.pi, math.pi))
    if support is constraints.real:
        return None
    if support is sphere:
        return Stereographic()
    sides = tuple(side for side in ("lower_bound", "upper_bound") if hasattr(support, side))
    try:
        whole = biject_to(fn.support)
    except NotImplementedError:
        raise PairError(
            f"site '{name}': no map leads from R^d to its support {in_a_line(support)}; use "
            "estimator='importance'"
        ) from None
    if any(isinstance(getattr(support, side), Tensor) for side in sides) and not is_mixture(fn):
        return Bounded(type(support), sides)
    return whole
