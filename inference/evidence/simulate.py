"""Data simulated from a model, with the latents that they were made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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

    What a site observes is an argument, a view of one (`x.T`, `x[:, 0]`) or a plain copy. What the
    model does not observe (covariates) is kept.
    Raises: `PairError` where an observed site's value is none of the arguments, or is seen anew as
        something else than was drawn, or a distribution looks at what is observed (a decoder that
        is fed with x).
    """
    with (
        own_store(share=True),
        own_randomness(seed),
        modes(modules_of(model), training=False),
        validation(False),
    ):
        # Each in memory of its own and in order, so that memory tells what a site observes.
        arguments = tuple(a.clone(memory_format=torch.contiguous_format) for a in arguments)
        given = sample_sites(poutine.trace(model).get_trace(*arguments))
        trace = poutine.trace(poutine.uncondition(model)).get_trace(*arguments)
        free = sample_sites(trace)
        observed = [name for name, site in given.items() if site["is_observed"]]
        found, drawn = _in_place(arguments, {n: (given[n], free[n]) for n in observed})
        latents = {name: site["value"] for name, site in free.items() if name not in drawn}
        again = poutine.trace(poutine.condition(model, data=latents)).get_trace(*found)
        for each in (trace, again):
            each.compute_log_prob(lambda name, site: name in free)
        seen = sample_sites(again)
        for name, value in drawn.items():
            if not torch.allclose(seen[name]["value"], value, rtol=0, atol=0, equal_nan=True):
                raise PairError(
                    f"site '{name}': of simulated data the model observes other numbers than were "
                    "drawn, since it observes a changed copy of its argument; hand in the data in "
                    "the order in which the site observes them, or observe a view (x.T, x.permute)"
                )
        for name, site in seen.items():
            if not torch.allclose(site["log_prob"], free[name]["log_prob"], rtol=1e-3, atol=1e-3):
                raise PairError(
                    f"site '{name}': its distribution looks at the data that the model observes, "
                    "so a run without them is no draw from the model: no data can be simulated"
                )
    return Simulated(found, latents)


def _in_place(
    arguments: tuple[Tensor, ...], observed: Mapping[str, tuple[Any, Any]]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The arguments with what was drawn in the place of what is observed, and what each site
    should then see.

    Args:
        observed: each site as the model has it, and without data.
    """
    found = tuple(a.clone() for a in arguments)
    filled = [torch.zeros(a.numel(), dtype=torch.bool, device=a.device) for a in arguments]
    drawn = {}
    for name, (site, free) in observed.items():
        value, new = site["value"], free["value"]
        if new.numel() != value.numel():
            raise PairError(
                f"site '{name}' draws a value of shape {tuple(new.shape)} and observes one of "
                f"shape {tuple(value.shape)}; expand its distribution to what it observes"
            )
        place, index = _place_of(name, value, arguments)
        before = int(filled[place].sum())
        filled[place][index] = True
        if int(filled[place].sum()) - before < len(index):
            raise PairError(
                f"site '{name}' observes numbers of argument {place} that are observed elsewhere, "
                "too, where another value is drawn: no data can be simulated"
            )
        held = new.reshape(-1).to(arguments[place].dtype)
        if not (held.is_floating_point() or torch.equal(held.to(new.dtype), new.reshape(-1))):
            raise PairError(
                f"site '{name}' draws fractions, and argument {place}, which it observes, holds "
                f"{held.dtype}; hand in floats"
            )
        found[place].view(-1)[index] = held
        drawn[name] = held.reshape(value.shape).to(value.dtype)
    return found, drawn


def _place_of(name: str, value: Tensor, arguments: tuple[Tensor, ...]) -> tuple[int, Tensor]:
    """Which of the arguments a site observes, and where in it each number of the value stands.

    It is the one in whose memory the value lies, else the only one of equal numbers.
    """
    for place, argument in enumerate(arguments):
        same = value.untyped_storage().data_ptr() == argument.untyped_storage().data_ptr()
        if same and value.dtype == argument.dtype:
            numbers = torch.arange(argument.numel(), device=argument.device)
            view = numbers.as_strided(value.shape, value.stride(), value.storage_offset())
            return place, view.reshape(-1)
    alike = [i for i, a in enumerate(arguments) if a.numel() == value.numel()]
    equal = [i for i in alike if torch.equal(arguments[i].reshape(value.shape).to(value), value)]
    if len(equal) == 1:
        return equal[0], torch.arange(value.numel(), device=arguments[equal[0]].device)
    told = f"{len(equal)} of the arguments alike" if equal else "none of the arguments"
    raise PairError(
        f"site '{name}' observes a value of shape {tuple(value.shape)} that is {told}, so "
        "simulated data cannot be handed in; observe an argument as it is, or a view of it"
    )
