"""Estimates read from files."""

from __future__ import annotations

from dataclasses import MISSING, Field, fields
from os import PathLike
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from inference.errors import CheckpointError
from inference.evidence.annealed import AnnealedEstimate
from inference.evidence.auto import AutoEstimate
from inference.evidence.estimate import Estimate
from inference.evidence.predictive import PredictiveEstimate
from inference.evidence.sandwich import SandwichEstimate
from inference.evidence.saving import FORMAT
from inference.evidence.weighted import WeightedEstimate
from inference.tensor_files import read_tensors

KINDS = {
    kind.__name__: kind
    for kind in (
        Estimate,
        WeightedEstimate,
        AnnealedEstimate,
        SandwichEstimate,
        AutoEstimate,
        PredictiveEstimate,
    )
}
REMEDY = "an estimate is written by Estimate.save"
DTYPES = {"flagged": torch.bool, "by": torch.int64, "data_digests": torch.int64}  # else floating


def load_estimate(path: str | PathLike) -> Estimate:
    """The estimate that `Estimate.save` wrote, equal in every number.

    Raises: `CheckpointError` for a missing or damaged file, or one that holds something else.
    """
    tensors, meta = read_tensors(Path(path), REMEDY)
    name = meta.get("kind")
    if not isinstance(name, str) or name not in KINDS or meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: holds no estimate that this version reads (kind {name!r:.80}, format "
            f"{meta.get('format')!r:.80}); {REMEDY}"
        )
    try:
        return KINDS[name](**_checked(KINDS[name], tensors, meta.get("scalars")))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); {REMEDY}") from None


def _checked(kind: type[Estimate], tensors: dict[str, Tensor], scalars: Any) -> dict[str, Any]:
    """The fields of an estimate of this kind. Raises: `ValueError` that names a wrong one."""
    if not isinstance(scalars, dict):
        raise ValueError(f"scalars: got a {type(scalars).__name__}; expected values by name")
    known = {field.name: field for field in fields(kind)}
    for name in (*tensors, *scalars):
        if name not in known:
            raise ValueError(f"{name}: {kind.__name__} has no such field")
    hints = get_type_hints(kind)
    value = tensors.get("value")
    num_data = len(value) if value is not None and value.dim() else 0
    found: dict[str, Any] = {}
    for name, field in known.items():
        if name in tensors:
            _check_tensor(name, hints[name], tensors[name], num_data)
            found[name] = tensors[name]
        elif name in scalars:
            found[name] = _scalar(name, hints[name], scalars[name])
        elif _is_required(field):
            raise ValueError(f"{name}: is missing")
    return found


def _check_tensor(name: str, hint: Any, tensor: Tensor, num_data: int) -> None:
    """One number a datum, of the field's dtype; of `given`, one for each global draw as well."""
    if hint is not Tensor and Tensor not in getattr(hint, "__args__", ()):
        raise ValueError(f"{name}: got a tensor; expected none here")
    fits = tensor.dtype == DTYPES[name] if name in DTYPES else tensor.is_floating_point()
    if not fits:
        dtype = DTYPES.get(name, torch.float64)
        raise ValueError(f"{name}: has dtype {tensor.dtype}; expected {dtype}")
    axes = 2 if name == "given" else 1
    if tensor.dim() != axes or len(tensor) != num_data or tensor.numel() == 0:
        wanted = f"[{num_data or 'N'}" + (", draws]" if name == "given" else "]")
        raise ValueError(f"{name}: has shape {list(tensor.shape)}; expected {wanted}")


def _scalar(name: str, hint: Any, value: Any) -> Any:
    """A value as the field has it: JSON has lists for tuples."""
    if isinstance(value, list):
        value = tuple(value)
    config = ConfigDict(arbitrary_types_allowed=True, strict=True)
    try:
        TypeAdapter(hint, config=config).validate_python(value)
    except ValidationError as error:
        expected = error.errors()[0]["msg"]
        raise ValueError(f"{name}: got {value!r:.80} ({expected})") from None
    return value


def _is_required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING
