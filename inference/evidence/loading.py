"""Estimates read from files."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

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


def load_estimate(path: str | PathLike) -> Estimate:
    """The estimate that `Estimate.save` wrote, equal in every number.

    Raises: `CheckpointError` for a missing or damaged file, or one that holds something else.
    """
    remedy = "an estimate is written by Estimate.save"
    tensors, meta = read_tensors(Path(path), remedy)
    kind = KINDS.get(meta.get("kind", ""))
    if kind is None or meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: holds no estimate that this version reads; {remedy}")
    try:
        scalars = {k: tuple(v) if isinstance(v, list) else v for k, v in meta["scalars"].items()}
        held: dict[str, Any] = {**tensors, **scalars}
        return kind(**held)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); {remedy}") from None
