"""Results that are frozen dataclasses of tensors and scalars: in files, and several as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inference.errors import RequestError
from inference.tensor_files import write_tensors

FORMAT = 1
# What parts of one whole may differ in, and what the whole then says.
MAY_DIFFER: dict[str, Callable[[list], Any]] = {
    "seed": min,
    "seconds": sum,
    "degrees": min,
    "tile": max,
    "num_temperatures": max,
    "engine": lambda values: " and ".join(dict.fromkeys(values)),
    "engine_reason": lambda values: "; ".join(dict.fromkeys(values)),
    "num_chains": max,
    "notes": lambda values: tuple(dict.fromkeys(note for notes in values for note in notes)),
}


def save(estimate: Any, path: str | PathLike) -> None:
    """Write an estimate to one safetensors file, atomically."""
    tensors, scalars = _split(estimate)
    meta = {"format": FORMAT, "kind": type(estimate).__name__, "scalars": scalars}
    write_tensors(Path(path), tensors, meta)


def concatenate(parts: Sequence[Any]) -> Any:
    """Estimates of several data sets as one of all of them, in this order."""
    if not isinstance(parts, Sequence):
        raise RequestError(
            f"concatenate: got a {type(parts).__name__}; expected a list, "
            "Estimate.concatenate([first, second])"
        )
    if not parts:
        raise RequestError("concatenate: got no estimate; expected one or more")
    first = parts[0]
    if any(type(part) is not type(first) for part in parts):
        kinds = ", ".join(dict.fromkeys(part.estimator for part in parts))
        raise RequestError(f"concatenate: got estimates by {kinds}; expected one estimator")
    if first.is_joint:
        raise RequestError(
            "concatenate: each is one evidence of all of its data, and such do not add up; "
            "estimate log p of all data at once"
        )
    if hasattr(first, "given"):
        raise RequestError(
            "concatenate: estimates under global draws share these draws; estimate all data at once"
        )
    split = [_split(part) for part in parts]
    joined: dict[str, Any] = {}
    for name in split[0][1]:
        values = [getattr(part, name) for part in parts]
        if name in MAY_DIFFER:
            joined[name] = MAY_DIFFER[name](values)
        elif any(value != values[0] for value in values):
            told = ", ".join(map(str, dict.fromkeys(values)))
            raise RequestError(f"concatenate: {name} is {told}; expected one and the same")
    names = [sorted(tensors) for tensors, _ in split]
    if any(each != names[0] for each in names):
        raise RequestError("concatenate: some estimates lack what others hold")
    tensors = {name: torch.cat([held[name] for held, _ in split]) for name in names[0]}
    changed: dict[str, Any] = {**tensors, **joined}
    return replace(first, **changed)


def _split(estimate: Any) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and the rest of an estimate's fields, but for those that are None."""
    held = {field.name: getattr(estimate, field.name) for field in fields(estimate)}
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    scalars = {n: v for n, v in held.items() if n not in tensors and v is not None}
    return tensors, scalars
