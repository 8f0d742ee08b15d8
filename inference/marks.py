"""Discrete sites that are marked to be summed over (`infer={"enumerate": "parallel"}`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from inference.errors import PairError
from inference.supports import family_of


def is_marked(site) -> bool:
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


class Unmarked(Messenger):
    """Take marks for enumeration off: of all sites, or of those named."""

    def __init__(self, names: Collection[str] | None = None):
        super().__init__()
        self.names = names

    def _pyro_sample(self, msg: Any) -> None:
        if self.names is None or msg["name"] in self.names:
            msg["infer"] = {k: v for k, v in msg["infer"].items() if k != "enumerate"}


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
            f"site '{name}' draws from {family_of(fn)} without a reparametrized sample; "
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
