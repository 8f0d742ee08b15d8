"""Names for the axes of draws: chain, draw, the plates, and what is left by site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyro.distributions import Unit
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from inference.errors import RequestError
from inference.pair import Pair
from inference.particles import PARTICLES

SAMPLE_DIMS = ("chain", "draw")


@dataclass(frozen=True)
class Site:
    """What a model says of one of its sites while it runs.

    `plates`: names by (negative) dimension. `observed`: the value, where it is observed.
    """

    plates: dict[int, str]
    batch_shape: tuple[int, ...]
    event_dim: int
    observed: Tensor | None


class SiteNotes(Messenger):
    """Notes every site of a model that holds data or draws: no subsamples, no `pyro.factor`."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: dict[str, Site] = {}

    def _pyro_post_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if site_is_subsample(msg) or msg["infer"].get("_deterministic") or isinstance(fn, Unit):
            return
        frames = [f for f in msg["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]
        self.sites[msg["name"]] = Site(
            plates={f.dim: f.name for f in frames},
            batch_shape=tuple(fn.batch_shape),
            event_dim=fn.event_dim,
            observed=msg["value"] if msg["is_observed"] else None,
        )


def observed(site: Site, pair: Pair, *, folded: bool) -> Tensor:
    """An observed value with a number for every draw, datum and place in a plate."""
    value = site.observed
    assert value is not None
    batch = value.dim() - site.event_dim
    # Dimensions of enumerated sites are further left.
    first = -pair.max_plate_nesting - (not folded)
    wide = site.batch_shape[first:] if first else ()
    shape = torch.broadcast_shapes(value.shape[:batch], wide)
    return value.expand(*shape, *value.shape[batch:])


def arranged(
    value: Tensor, site: Site, pair: Pair, count: int, *, folded: bool
) -> tuple[Tensor, list[str | None]]:
    """A site's value as `[draws, data, ...]`, and of every axis behind the plate it is, or None.

    All data are one for `plate=None`. Axes of length 1 that belong to no plate are left out.
    `folded`: rows run over data, then draws.
    """
    nesting, data_dim = pair.max_plate_nesting, pair.data_dim
    batch = nesting + (not folded)
    value = value.reshape((1,) * (batch + site.event_dim - value.dim()) + tuple(value.shape))
    if folded:
        rows = value.movedim(nesting + data_dim, 0)  # type: ignore[operator]
        value = rows.reshape(-1, count, *rows.shape[1:]).transpose(0, 1)
    else:
        axis = None if data_dim is None else 1 + nesting + data_dim
        value = value.unsqueeze(1) if axis is None else value.movedim(axis, 1)
    others = [dim for dim in range(-nesting, 0) if dim != data_dim]
    names = [site.plates.get(dim) for dim in others]
    spare = [i for i, name in enumerate(names) if name is None and value.shape[i + 2] == 1]
    if spare:
        value = value.squeeze([i + 2 for i in spare])
        names = [name for i, name in enumerate(names) if i not in spare]
    return value, names + [None] * site.event_dim


@dataclass(frozen=True)
class Axes:
    """The names and lengths of one variable's axes behind chain and draw."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]


def named(
    name: str,
    shape: Sequence[int],
    given: Sequence[str | None],
    wanted: Mapping[str, Sequence[str]],
) -> Axes:
    """Axes with the names they have, those of `wanted[name]` for the others, or `<name>_dim_0`, ...

    Raises: `RequestError`.
    """
    unnamed = sum(g is None for g in given)
    own = wanted.get(name)
    if own is None:
        own = [f"{label(name)}_dim_{i}" for i in range(unnamed)]
    elif isinstance(own, str) or not all(isinstance(each, str) for each in own):
        raise RequestError(
            f"dims: '{name}' has {own!r}; expected a list of names, e.g. ['{name}_dim_0']"
        )
    elif len(own) != unnamed:
        raise RequestError(
            f"dims: '{name}' has {len(own)} names, {list(own)}; its values {list(shape)} have "
            f"{unnamed} axes to name, beside {[g for g in given if g is not None] or 'no plate'}"
        )
    rest = iter(own)
    dims = tuple(next(rest) if g is None else label(g) for g in given)
    if len({*dims, *SAMPLE_DIMS}) < len(dims) + len(SAMPLE_DIMS):
        raise RequestError(
            f"'{name}': two axes of one name in {[*SAMPLE_DIMS, *dims]}; give others in dims=, or "
            "rename the plate"
        )
    return Axes(dims, tuple(shape))


def label(name: str) -> str:
    """A name that files take, too: '/' stands for a group in there."""
    return name.replace("/", ".")


def check_dims(dims: Any, variables: Sequence[str]) -> None:
    """Raises: `RequestError` for names of what is not there."""
    if not isinstance(dims, Mapping):
        raise RequestError(f"dims: got {dims!r}; expected a mapping of sites to lists of names")
    for name in dims:
        if name not in variables:
            raise RequestError(f"dims: '{name}' is unknown. Choices: {', '.join(variables)}")


def coordinates(every: Mapping[str, Axes], wanted: Any) -> dict[str, np.ndarray]:
    """A label for every place along every dimension: 0, 1, ... where none are wanted.

    Raises: `RequestError` for coordinates of another length or of no dimension, for one name of
        axes of different lengths, and for variables named like a dimension.
    """
    if not isinstance(wanted, Mapping):
        raise RequestError(f"coords: got {wanted!r}; expected a mapping of dimensions to labels")
    sizes: dict[str, tuple[int, str]] = {}
    for name, axes in every.items():
        for dim, size in zip(axes.dims, axes.shape, strict=True):
            known, other = sizes.setdefault(dim, (size, name))
            if known != size:
                raise RequestError(
                    f"dims: '{dim}' names an axis of length {known} of '{other}' and one of length "
                    f"{size} of '{name}'; give them different names in dims="
                )
    for name in every:
        if label(name) in {*sizes, *SAMPLE_DIMS}:
            raise RequestError(
                f"'{name}' is a variable and a dimension at once; rename the site, or the "
                "dimension in dims="
            )
    found = {dim: np.arange(size) for dim, (size, _) in sizes.items()}
    for dim, labels in wanted.items():
        if dim not in sizes:
            raise RequestError(f"coords: '{dim}' is unknown. Choices: {', '.join(sizes)}")
        labels = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if labels.shape != (sizes[dim][0],):
            raise RequestError(
                f"coords: '{dim}' has labels of shape {list(labels.shape)}; expected "
                f"[{sizes[dim][0]}]"
            )
        found[dim] = labels
    return found
