"""One batch by name: the data, and what else a VAE's programs take beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from pyro.distributions import is_validation_enabled
from torch import Tensor

from pyro_vae.errors import RequestError
from pyro_vae.part import Shapes

COLUMNS = ("x", "y", "mask", "exposure")


@dataclass(frozen=True)
class Given:
    """Rows of a batch: data `x [N, *data]`, labels `y [N]` (int64, -1 where one is missing),
    `mask [N, *data]` (bool, True where x is known) and `exposure [N]` or `[N, *data]`."""

    x: Tensor | None = None
    y: Tensor | None = None
    mask: Tensor | None = None
    exposure: Tensor | None = None

    @property
    def size(self) -> int:
        """Rows; one where nothing is given."""
        found = [len(item) for item in self if item is not None and item.dim()]
        return found[0] if found else 1

    def __iter__(self):
        return (getattr(self, field.name) for field in fields(self))


def read(
    columns: Sequence[str],
    shapes: Shapes,
    values: Sequence[Tensor | None],
    named: Mapping[str, Tensor | None],
) -> Given:
    """The batch of positional and named tensors, checked. Raises: `RequestError`."""
    takes = ", ".join(columns)
    if len(values) > len(columns):
        raise RequestError(f"{len(values)} tensors for a VAE that takes {takes}")
    found = dict(zip(columns, values, strict=False))
    for name, value in named.items():
        if name not in columns or found.get(name) is not None:
            why = "was given twice" if name in columns else f"this VAE takes {takes}"
            raise RequestError(f"{name}: {why}")
        found[name] = value
    given = Given(**found)
    if given.x is not None:
        _check_shape("x", given.x, shapes.data)
    if given.y is not None:
        check_labels(given.y, shapes.classes)
    if given.mask is not None:
        _check_shape("mask", given.mask, shapes.data)
        if given.mask.dtype != torch.bool:
            raise RequestError(
                f"mask has type {given.mask.dtype}; expected torch.bool, True where x is known"
            )
    if given.exposure is not None and given.exposure.dim() > 1:
        _check_shape("exposure", given.exposure, shapes.data)
    for name in columns:
        item = getattr(given, name)
        if item is not None and len(item) != given.size:
            raise RequestError(
                f"{name} has {len(item)} rows and {columns[0]} {given.size}; give one row per datum"
            )
    return given


def check_exposure(exposure: Tensor | None) -> None:
    """A rate times an exposure must stay a positive number. Raises: `RequestError`.

    Not with Pyro's validation off, as labels.
    """
    if exposure is None or not is_validation_enabled():
        return
    wrong = ~((exposure > 0) & exposure.isfinite())
    if wrong.any():
        raise RequestError(
            f"exposure: {int(wrong.sum())} of {exposure.numel()} are zero, negative or not finite "
            f"(the first is {exposure[wrong][0].item()}); give positive numbers"
        )


def _check_shape(name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape[1:]) != shape:
        raise RequestError(
            f"{name} has shape {tuple(value.shape)}; expected [batch, "
            f"{', '.join(map(str, shape))}] as in data_shape={shape}"
        )


def check_labels(y: Tensor, classes: int) -> None:
    if y.dim() != 1 or y.is_floating_point() or y.dtype == torch.bool:
        raise RequestError(
            f"y has shape {tuple(y.shape)} and type {y.dtype}; expected integers [batch], from 0 "
            f"to {classes - 1}, or -1 where a label is missing"
        )


def check_values(y: Tensor | None, classes: int, *, needed: bool) -> None:
    """Refuse labels of no class, and those that are missing (-1) where they are `needed`: p(x|y).

    Not with Pyro's validation off, as in training and in recorded programs, which read no values:
    a label that is needed makes NaN of its datum there.
    """
    if y is None or not y.numel() or not is_validation_enabled():
        return
    wrong, missing = (y < -1) | (y >= classes), int((y == -1).sum())
    if wrong.any():
        also = "" if needed else ", or -1 where a label is missing"
        raise RequestError(
            f"y: {int(y[wrong][0])} is no label; expected integers from 0 to {classes - 1}{also}"
        )
    if needed and missing:
        raise RequestError(
            f"y: {missing} of {y.numel()} labels are missing (-1); this VAE is p(x|y), so leave "
            "these data out, or build it with label 'latent'"
        )
