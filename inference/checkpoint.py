"""Checkpoints: one safetensors file, written atomically, without pickle."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.errors import CheckpointError
from inference.files import sweep
from inference.tensor_files import read_tensors, write_tensors

FILE = "state.safetensors"
FORMAT = 2

OptimizerState = dict[str, dict[str, Any]]


@dataclass
class Snapshot:
    """Weights (unconstrained, by parameter name), module buffers, and the optimizer's state."""

    weights: dict[str, Tensor]
    buffers: dict[str, Tensor]
    optimizer: OptimizerState

    def copy(self) -> Snapshot:
        def own(item):
            return item.detach().clone() if isinstance(item, Tensor) else item

        return Snapshot(
            {n: own(t) for n, t in self.weights.items()},
            {n: own(t) for n, t in self.buffers.items()},
            {n: {k: own(v) for k, v in s.items()} for n, s in self.optimizer.items()},
        )


@dataclass
class Checkpoint:
    """Everything that the rest of a training depends on."""

    current: Snapshot
    best: Snapshot | None
    random: dict[str, Tensor]  # as `random_tensors` has it
    progress: dict[str, Any]  # epoch, batch, step, stopping, running sums, seconds
    settings: dict[str, Any]  # what must be equal for a resume
    history: list[dict[str, Any]] = field(default_factory=list)


def save_checkpoint(folder: str | Path, checkpoint: Checkpoint) -> Path:
    """Write `folder/state.safetensors`: at any moment, the old file or the new one is whole."""
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, Any] = {}
    for label, snapshot in (("current", checkpoint.current), ("best", checkpoint.best)):
        if snapshot is None:
            continue
        for name, tensor in snapshot.weights.items():
            tensors[f"{label}/weights/{name}"] = tensor
        for name, tensor in snapshot.buffers.items():
            tensors[f"{label}/buffers/{name}"] = tensor
        for name, state in snapshot.optimizer.items():
            for key, item in state.items():
                address = f"{label}/optimizer/{name}/{key}"
                if isinstance(item, Tensor):
                    tensors[address] = item
                else:
                    scalars[address] = item
    for name, tensor in checkpoint.random.items():
        tensors[f"random/{name}"] = tensor
    path = Path(folder) / FILE
    meta = {
        "format": FORMAT,
        "has_best": checkpoint.best is not None,
        "scalars": scalars,
        "progress": checkpoint.progress,
        "settings": checkpoint.settings,
        "history": checkpoint.history,
    }
    try:
        write_tensors(path, tensors, meta)
    except TypeError as error:
        raise CheckpointError(f"an optimizer state holds what JSON cannot: {error}") from None
    sweep(path)
    return path


def has_checkpoint(folder: str | Path) -> bool:
    return (Path(folder) / FILE).exists()


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint. Raises `CheckpointError` naming the file if it is missing or damaged."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint here; train without resume first")
    remedy = "restore it from a copy, or train anew in another folder"
    tensors, meta = read_tensors(path, remedy)
    try:
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {meta['format']}, this version reads {FORMAT}")
        labels = ["current", "best"] if meta["has_best"] else ["current"]
        snapshots = {label: Snapshot({}, {}, {}) for label in labels}
        random: dict[str, Tensor] = {}
        for address, item in {**tensors, **meta["scalars"]}.items():
            label, _, rest = address.partition("/")
            if label == "random":
                random[rest] = item
                continue
            kind, _, name = rest.partition("/")
            if kind == "optimizer":
                name, _, key = name.rpartition("/")
                snapshots[label].optimizer.setdefault(name, {})[key] = item
            else:
                getattr(snapshots[label], kind)[name] = item
        return Checkpoint(
            current=snapshots["current"],
            best=snapshots.get("best"),
            random=random,
            progress=meta["progress"],
            settings=meta["settings"],
            history=meta["history"],
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {error}); {remedy}"
        ) from None


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of the epochs that a checkpoint has finished. Raises `CheckpointError`."""
    return load_checkpoint(folder).history


def random_tensors(state: dict[str, Any]) -> dict[str, Tensor]:
    """A state of `isolation.random_state` as tensors, without loss."""
    _, words, spare = state["python"]
    name, keys, *counts, cached = state["numpy"]
    if name != "MT19937":
        raise CheckpointError(f"numpy's global generator is {name}; only MT19937 can be saved")
    return {
        "python": torch.tensor(words),
        "python spare": torch.tensor([] if spare is None else [spare], dtype=torch.float64),
        "numpy": torch.tensor([*keys.tolist(), *counts]),
        "numpy spare": torch.tensor(cached, dtype=torch.float64),
        **{name: state[name] for name in ("cpu", "cuda") if name in state},
    }


def random_from(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The inverse of `random_tensors`. Raises `CheckpointError` if a part is missing."""
    try:
        spare = tensors["python spare"].tolist()
        *keys, position, has_spare = tensors["numpy"].tolist()
        cached = float(tensors["numpy spare"])
        return {
            "python": (3, tuple(tensors["python"].tolist()), spare[0] if spare else None),
            "numpy": ("MT19937", np.array(keys, np.uint32), position, has_spare, cached),
            "cpu": tensors["cpu"],
            **({"cuda": tensors["cuda"]} if "cuda" in tensors else {}),
        }
    except KeyError as error:
        raise CheckpointError(f"resume: the checkpoint lacks the random state {error}") from None
