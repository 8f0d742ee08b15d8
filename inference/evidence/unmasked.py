"""Latents without their masks."""

from __future__ import annotations

from typing import Any

from pyro.distributions import MaskedDistribution
from pyro.poutine.messenger import Messenger
from torch.distributions import Independent


class Unmasked(Messenger):
    """Take masks off a model's latents, whose densities then integrate to one.

    A mask takes a latent out of both programs, and nothing that is observed needs it there. Where
    a density of its own stands in the guide's place (a Gaussian, a grid, a sum over all values),
    the model's must stand against it: the integral over what is masked is then 1.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["mask"] = None
            msg["fn"] = _bare(msg["fn"])


def _bare(fn):
    if isinstance(fn, MaskedDistribution):
        return _bare(fn.base_dist)
    if isinstance(fn, Independent):
        base = _bare(fn.base_dist)
        return fn if base is fn.base_dist else base.to_event(fn.reinterpreted_batch_ndims)
    return fn
