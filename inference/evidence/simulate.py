"""Data simulated from a model, with the latents that they were made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from pyro import poutine
from torch import Tensor

from inference.errors import PairError
from inference.isolation import modes, modules_of, own_randomness, own_store, validation
from inference.pair import sample_sites


class Simulated(NamedTuple):
    """`arguments` as the pair takes them, and the latents behind them, by site."""

    arguments: tuple[Tensor, ...]
    latents: dict[str, Tensor]


@torch.no_grad()
def simulate(model: Callable, arguments: tuple[Tensor, ...], seed: int) -> Simulated:
    """x ~ p(x), z ~ p(z|x): the model run without its data, which stand for their number only.

    Arguments that the model does not observe (covariates) are kept.
    Raises: `PairError` where an observed site's value is none of the arguments.
    """
    with (
        own_store(share=True),
        own_randomness(seed),
        modes(modules_of(model), training=False),
        validation(False),
    ):
        given = sample_sites(poutine.trace(model).get_trace(*arguments))
        free = sample_sites(poutine.trace(poutine.uncondition(model)).get_trace(*arguments))
    found = list(arguments)
    for name, site in given.items():
        if not site["is_observed"]:
            continue
        value = site["value"]
        place = _place_of(name, value, arguments)
        new = free[name]["value"]
        found[place] = new.reshape(arguments[place].shape).to(arguments[place].dtype)
    latents = {n: s["value"] for n, s in free.items() if not given[n]["is_observed"]}
    return Simulated(tuple(found), latents)


def _place_of(name: str, value: Tensor, arguments: tuple[Tensor, ...]) -> int:
    """Which of the arguments a site observes: the one in whose memory its value lies, else the
    only one of equal numbers."""
    alike = [i for i, a in enumerate(arguments) if a.numel() == value.numel()]
    same = [i for i in alike if arguments[i].data_ptr() == value.data_ptr()]
    equal = [i for i in alike if torch.equal(arguments[i].reshape(value.shape).to(value), value)]
    places = same or equal
    if len(places) == 1:
        return places[0]
    told = f"{len(places)} of the arguments alike" if places else "none of the arguments"
    raise PairError(
        f"site '{name}' observes a value of shape {tuple(value.shape)} that is {told}, so "
        "simulated data cannot be handed in; observe an argument as it is"
    )
