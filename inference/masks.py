"""Latents that masks take out of log p and log q: they go from both, and nothing else needs them.

A mask makes a site's log-density 0 where it is False, and leaves its draws as they are. Where only
the model has it, log w = log p - log q still counts log q(z|x), which has then no counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import reduce
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent

from inference.errors import PairError
from inference.isolation import own_randomness
from inference.pair import sample_sites
from inference.supports import is_point

Sites = dict[str, Any]


def check_masks(
    in_model: Sites, in_guide: Sites, summed: Collection[str], data_dim: int | None
) -> tuple[str, ...]:
    """Refuse latents that model and guide mask at different places.

    `summed`: sites that the model sums over. `poutine.mask` leaves their values' probabilities as
    they are; a distribution that is masked itself gives each value the probability 1.
    Returns: latents of the guide that are masked somewhere.
    Raises: `PairError`.
    """
    for name in summed:
        if not all(bool(mask.all()) for mask in _own_masks(in_model[name]["fn"])):
            raise PairError(
                f"site '{name}' is summed over, and its own distribution is masked (.mask(...)), "
                "which makes each of its values count 1; mask the site instead, with "
                "pyro.poutine.mask(mask=...)"
            )
    drawn = [n for n in in_guide if n in in_model and not in_model[n]["is_observed"]]
    for name in drawn:
        _check_same(name, in_model, in_guide)
    _check_auxiliary(in_model, in_guide, data_dim)
    return tuple(name for name in drawn if mask_of(in_guide[name]) is not None)


def check_unneeded(
    model: Callable, guide: Callable, arguments: tuple[Tensor, ...], masked: tuple[str, ...]
) -> None:
    """Refuse a model in which something depends on a latent where that is masked.

    There it has no density to be integrated over, and the result would hang on the guide's.
    `masked`: latents with masks. Raises: `PairError`.
    """
    with own_randomness(0), torch.no_grad():
        drawn, again = (sample_sites(poutine.trace(guide).get_trace(*arguments)) for _ in range(2))
        values = {n: s["value"] for n, s in drawn.items() if not s["is_observed"]}
        others = dict(values)
        for name in masked:
            kept = mask_of(drawn[name])
            if kept is not None:
                others[name] = torch.where(kept, values[name], again[name]["value"])
        before, after = (
            sample_sites(poutine.trace(poutine.condition(model, data=each)).get_trace(*arguments))
            for each in (values, others)
        )
        for name, site in before.items():
            # Flat, for every run puts values that are summed over into dimensions of its own.
            a, b = _score(site).flatten(), _score(after[name]).flatten()
            if not torch.allclose(a, b, rtol=1e-4, atol=1e-4, equal_nan=True):
                raise PairError(
                    f"site '{name}' depends on a latent where that is masked (sites with masks: "
                    f"{', '.join(masked)}), so the latent has no density to be integrated over; "
                    f"mask '{name}' there, too, or take the mask off the latent"
                )


def _own_masks(fn) -> list[Tensor]:
    """The masks inside a distribution (`.mask(...)`), `[batch, event]` or fewer dimensions."""
    found = []
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        if isinstance(fn, MaskedDistribution):
            found.append(_over_events(fn._mask, fn))
        fn = fn.base_dist
    return found


def _over_events(mask: Tensor | bool, fn) -> Tensor:
    mask = torch.as_tensor(mask)
    return mask.reshape(mask.shape + (1,) * fn.event_dim).bool()


def mask_of(site) -> Tensor | None:
    """Which numbers of a site count, `[batch, event]` or what broadcasts to it; None for all."""
    found = _own_masks(site["fn"])
    if site["mask"] is not None:
        found.append(_over_events(site["mask"], site["fn"]))
    found = [mask.to(site["value"].device) for mask in found]
    return None if all(bool(mask.all()) for mask in found) else reduce(torch.logical_and, found)


def _check_same(name: str, in_model: Sites, in_guide: Sites) -> None:
    p, q = mask_of(in_model[name]), mask_of(in_guide[name])
    if p is None and q is None:
        return
    if p is not None and q is not None and torch.equal(*torch.broadcast_tensors(p, q)):
        return
    how = "with pyro.poutine.mask(mask=...), or .mask(...) on its distribution"
    if f"{name.removesuffix('_unobserved')}_observed" in in_model:
        how = "for the model's obs_mask=, with pyro.poutine.mask(mask=~obs_mask)"
    raise PairError(
        f"site '{name}': the masks of model (masked {_where(p)}) and guide (masked {_where(q)}) "
        "differ, so that log p or log q lacks its counterpart; put the model's mask into the "
        f"guide, too ({how})"
    )


def _where(mask: Tensor | None) -> str:
    return "nowhere" if mask is None else "in part" if bool(mask.any()) else "everywhere"


def _check_auxiliary(in_model: Sites, in_guide: Sites, data_dim: int | None) -> None:
    """A point has its density from auxiliary draws: both are masked for the same data."""
    free = {n: s for n, s in in_guide.items() if not s["is_observed"]}
    auxiliary = {n: s for n, s in free.items() if n not in in_model and not is_point(s["fn"])}
    points = {n: s for n, s in free.items() if n in in_model and is_point(s["fn"])}
    masked = [n for n, s in {**auxiliary, **points}.items() if mask_of(s) is not None]
    if not masked or not auxiliary or not points:
        return
    a, z = (_by_datum(sites, data_dim) for sites in (auxiliary, points))
    if not (torch.equal(a.all(1), z.all(1)) and torch.equal(a.any(1), z.any(1))):
        raise PairError(
            f"site '{masked[0]}' of the guide is masked, but the points {', '.join(points)} and "
            f"the auxiliary sites {', '.join(auxiliary)} that they are made of are not masked "
            "together; put all of them under one pyro.poutine.mask(mask=...)"
        )


def _by_datum(sites: Sites, data_dim: int | None) -> Tensor:
    """Which numbers of these sites count, `[data, numbers]`."""
    rows = []
    for site in sites.values():
        fn, mask = site["fn"], mask_of(site)
        shape = fn.batch_shape + fn.event_shape
        mask = torch.ones(shape, dtype=torch.bool) if mask is None else mask.cpu().expand(shape)
        if data_dim is None:
            rows.append(mask.reshape(1, -1))
        else:
            axis = len(fn.batch_shape) + data_dim
            rows.append(mask.movedim(axis, 0).flatten(1) if mask.dim() > 1 else mask.reshape(-1, 1))
    return torch.cat(rows, 1)


def _score(site) -> Tensor:
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, 1.0, site["mask"])
