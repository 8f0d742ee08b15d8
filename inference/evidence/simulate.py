"""Data simulated from a model, with the latents that they were made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

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
    Raises: `PairError` where an observed site's value is none of the arguments, or a distribution
        looks at what is observed (a decoder that is fed with x).
    """
    with (
        own_store(share=True),
        own_randomness(seed),
        modes(modules_of(model), training=False),
        validation(False),
    ):
        given = sample_sites(poutine.trace(model).get_trace(*arguments))
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*arguments)
        free = sample_sites(trace)
        found = _in_place(arguments, given, free)
        values = {name: site["value"] for name, site in free.items()}
        run = poutine.condition(poutine.uncondition(model), data=values)
        again = poutine.trace(run).get_trace(*found)
        for each in (trace, again):
            each.compute_log_prob(lambda name, site: name in values)
        for name, site in sample_sites(again).items():
            if not torch.allclose(site["log_prob"], free[name]["log_prob"], rtol=1e-3, atol=1e-3):
                raise PairError(
                    f"site '{name}': its distribution looks at the data that the model observes, "
                    "so a run without them is no draw from the model: no data can be simulated"
                )
    latents = {n: s["value"] for n, s in free.items() if not given[n]["is_observed"]}
    return Simulated(found, latents)


def _in_place(
    arguments: tuple[Tensor, ...], given: dict[str, Any], free: dict[str, Any]
) -> tuple[Tensor, ...]:
    """The arguments with what was drawn in the place of what is observed."""
    found = list(arguments)
    for name, site in given.items():
        if not site["is_observed"]:
            continue
        value = site["value"]
        place = _place_of(name, value, arguments)
        new = free[name]["value"]
        found[place] = new.reshape(arguments[place].shape).to(arguments[place].dtype)
    return tuple(found)


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
