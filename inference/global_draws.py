"""Latents outside the data plate (a regression's weights, a Bayesian decoder): drawn, and fixed.

Given such draws w the data are independent, and log p(x | w) splits by datum as log p(x) does not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.errors import PairError, RequestError
from inference.isolation import modes, modules_of, own_randomness, own_store, validation
from inference.pair import Data, Pair, as_arguments, examine, frame_of, sample_sites
from inference.requests import whole_number

GIVEN_GLOBALS = "log p(x | global draws)"


class GivenGlobals(partial):
    """A program whose sites outside the plate have given values and are no longer seen.

    What is left is a program of the data plate alone: p(x_n, z_n | w), or q(z_n | x_n, w).
    """

    values: Mapping[str, Tensor]

    def __new__(cls, program: Callable, values: Mapping[str, Tensor], plate: str):
        def hidden(site: Any) -> bool:
            if site["type"] != "sample" or site["is_observed"]:
                return False
            # An autoguide draws w through an auxiliary site beside it.
            auxiliary = site["infer"].get("is_auxiliary") and frame_of(site, plate) is None
            return site["name"] in values or bool(auxiliary)

        made = super().__new__(cls, poutine.block(_Given(values)(program), hide_fn=hidden))
        made.values = values
        return made


class _Given(Messenger):
    def __init__(self, values: Mapping[str, Tensor]):
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


def given_globals(
    model: Callable, guide: Callable, values: Mapping[str, Tensor], *, plate: str = "data"
) -> tuple[Callable, Callable]:
    """The pair with its global latents at given values: any estimator tells log p(x_n | w) of it.

        log_marginal(*given_globals(model, guide, {"w": w}), x)

    Args:
        model, guide: any Pyro pair.
        values: of every latent outside the plate, by site, each as the site draws it.
        plate: name of the data plate.
    Returns: model and guide of the local latents.
    """
    return GivenGlobals(model, values, plate), GivenGlobals(guide, values, plate)


def global_draws(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    num_draws: int = 10,
    seed: int = 0,
    plate: str = "data",
) -> dict[str, Tensor]:
    """w_s ~ q(w), s = 1..S, of every latent outside the plate.

    Args:
        data: handed to the guide as a whole, which may look at it.
        num_draws: S.
        seed: of the draws; the caller's random state is left alone.
    Returns: `[S, ...]` by site.
    Raises: `PairError` if the pair does not fit, or has no latents outside the plate.
    """
    whole_number("num_draws", num_draws)
    arguments = as_arguments(data)
    with (
        own_store(),
        own_randomness(seed),
        modes(modules_of(model, guide), training=False),
        torch.no_grad(),
    ):
        pair = examine(model, guide, arguments, plate)
        names = global_latents(pair)
        rows = []
        with validation(False):
            for _ in range(num_draws):
                sites = sample_sites(poutine.trace(pair.guide).get_trace(*arguments))
                rows.append([sites[name]["value"].detach() for name in names])
    return {names[i]: torch.stack([row[i] for row in rows]) for i in range(len(names))}


def global_latents(pair: Pair) -> tuple[str, ...]:
    """The latents outside the plate. Raises: `PairError` if there are none."""
    found = tuple(name for name in pair.latents if name in pair.global_sites)
    if not found:
        raise PairError(
            f"every latent stands in plate '{pair.plate}', so there is nothing global to be given; "
            "use log_marginal for log p(x)"
        )
    return found


def check_draws(draws: Mapping[str, Tensor], wanted: tuple[str, ...]) -> int:
    """How many draws there are. Raises: `RequestError` naming the site."""
    for name in wanted:
        if name not in draws:
            raise RequestError(
                f"draws: site '{name}' is missing; every latent outside the plate needs its values "
                f"(here: {', '.join(wanted)})"
            )
    for name in draws:
        if name not in wanted:
            raise RequestError(
                f"draws: '{name}' is no latent outside the plate (those are: {', '.join(wanted)})"
            )
    counts = {name: len(value) if value.dim() else 0 for name, value in draws.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise RequestError(f"draws: {counts} draws by site; expected [S, ...] with one S for all")
    return next(iter(counts.values()))
