"""Draws and parameters whose gradients are stopped, where an objective's estimator asks for it."""

from __future__ import annotations

from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from inference.dimensions import Dimensions
from inference.errors import PairError
from inference.supports import is_point, plain_fn

Scoring = Literal["paths", "fixed draws", "stopped"]


class FixedDraws(Messenger):
    """Draws carry no gradient: neither to their own site nor to those that depend on them.

    To be entered outside of the handler that records a trace.
    Raises: `PairError` for point masses that depend on parameters: they have no score.
    """

    def _pyro_post_sample(self, msg: Any) -> None:
        value, fn = msg["value"], msg["fn"]
        if msg["is_observed"] or site_is_subsample(msg) or not isinstance(value, Tensor):
            return
        if is_point(fn) and (value.requires_grad or _density_of_point(fn)):
            raise PairError(
                f"site '{msg['name']}' is a point mass that depends on parameters, so draws of it "
                "have no score; draw it from a density, or train by objective 'elbo' or 'iwae'"
            )
        msg["value"] = value.detach()


class HeldStill(TorchFunctionMode):
    """Every operation sees these tensors as constants, wherever it has them from.

    So a program need not be taken apart to find its parameters: modules', `pyro.param`'s and those
    behind constraints are all met where they are used.
    """

    def __init__(self, tensors: list[Tensor]):
        super().__init__()
        self.still = {id(tensor) for tensor in tensors}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") == "__get__":  # an attribute: `.T`, but `.requires_grad`
            found = func(*args, **kwargs)
            return self._constant(found) if id(args[0]) in self.still else found
        args, kwargs = tree_map_only(Tensor, self._seen, (args, kwargs))
        return func(*args, **kwargs)

    def _seen(self, tensor: Tensor) -> Tensor:
        return tensor.detach() if id(tensor) in self.still else tensor

    def _constant(self, found: Any) -> Any:
        return found.detach() if isinstance(found, Tensor) else found


class Taps:
    """Draws on their way to the densities that score them.

    A tap is an identity; once `weight` is set, it multiplies the gradient that comes back to a draw
    by that draw's weight. What the guide makes of its draws does not pass a tap.
    """

    def __init__(self, dimensions: Dimensions):
        self.dimensions = dimensions
        self.weight: Tensor | None = None  # of each particle and datum

    def __call__(self, value: Tensor, event_dim: int) -> Tensor:
        tapped = value.view_as(value)
        if tapped.requires_grad:
            tapped.register_hook(lambda gradient: self._weighted(gradient, event_dim))
        return tapped

    def _weighted(self, gradient: Tensor, event_dim: int) -> Tensor:
        if self.weight is None:
            return gradient
        batch_dim = gradient.dim() - event_dim
        weight = self.dimensions.spread(self.weight, batch_dim).to(gradient.dtype)
        return gradient * weight.reshape(weight.shape + (1,) * event_dim)


def _density_of_point(fn) -> bool:
    """Does the density that a point was given depend on parameters?"""
    return getattr(plain_fn(fn).log_density, "requires_grad", False)


def tapped(guide_trace, taps: Taps):
    """The guide's trace with draws that pass a tap on their way to the model."""
    found = guide_trace.copy()
    for name, site in guide_trace.nodes.items():
        if _is_draw(site):
            found.nodes[name] = {**site, "value": taps(site["value"], site["fn"].event_dim)}
    return found


def rescored(guide, tapped_trace, arguments, reduce, factors: list[str]) -> dict[str, Tensor]:
    """log q of the same draws, of each site, with the guide's parameters held still.

    Points (`Delta`) follow from the other draws. `factors`, which are no draws (the reverse model
    of an auxiliary guide), keep their parameters' gradients: those are no score.
    """
    known = poutine.Trace()
    for name, site in tapped_trace.nodes.items():
        if site_is_subsample(site) or (_is_draw(site) and not is_point(site["fn"])):
            known.nodes[name] = site

    def run():
        return poutine.trace(poutine.replay(guide, trace=known)).get_trace(*arguments)

    with HeldStill(list(pyro.get_param_store()._params.values())):
        still = run()
        scores = {n: reduce(s, latent=False)[0] for n, s in still.nodes.items() if _is_draw(s)}
    if factors:
        live = run()
        scores |= {name: reduce(live.nodes[name], latent=False)[0] for name in factors}
    return scores


def _is_draw(site) -> bool:
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
        and isinstance(site["value"], torch.Tensor)
    )
