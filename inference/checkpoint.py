"""Checkpoints: one safetensors file, written atomically, without pickle."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from inference.errors import CheckpointError

FILE = "state.safetensors"
FORMAT = 1

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
    random: dict[str, Tensor]  # torch's states: "cpu", and "cuda" where used
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
    try:
        meta = json.dumps(
            {
                "format": FORMAT,
                "has_best": checkpoint.best is not None,
                "scalars": scalars,
                "progress": checkpoint.progress,
                "settings": checkpoint.settings,
                "history": checkpoint.history,
            }
        )
    except TypeError as error:
        raise CheckpointError(f"an optimizer state holds what JSON cannot: {error}") from None
    owned = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    payload = serialize(owned, metadata={"pyro_vae": meta, "digest": digest(owned, meta)})
    path = write_atomically(Path(folder) / FILE, payload)
    for left_over in path.parent.glob(f".{FILE}.*"):  # of a process killed while writing
        left_over.unlink(missing_ok=True)
    return path


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """A hash of names, shapes and values: one flipped bit shows."""
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_atomically(path: Path, payload: bytes) -> Path:
    """Write beside `path`, flush to disk, then rename over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Read a checkpoint. Raises `CheckpointError` naming the file if it is missing or damaged."""
    path = Path(folder) / FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint here; train without resume first")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            meta = json.loads(metadata["pyro_vae"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if meta["format"] != FORMAT:
            raise CheckpointError(f"{path}: format {meta['format']}, this version reads {FORMAT}")
        if metadata["digest"] != digest(tensors, metadata["pyro_vae"]):
            raise ValueError("its content does not match its digest")
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
    except (SafetensorError, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {error}); restore it from a copy, or train "
            "anew in another folder"
        ) from None


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of the epochs that a checkpoint has finished. Raises `CheckpointError`."""
    return load_checkpoint(folder).history


def random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
