"""Tensors and JSON in one safetensors file: atomic, whole or refused, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from inference.errors import CheckpointError
from inference.files import write_bytes

TEXT, DIGEST = "pyro_vae", "digest"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write both: at any moment, the old file or the new one is whole."""
    owned = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
    text = json.dumps(meta)
    payload = serialize(owned, metadata={TEXT: text, DIGEST: digest(owned, text)})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, payload)


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What `write_tensors` wrote. Raises: `CheckpointError` naming the file and the remedy."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if metadata[DIGEST] != digest(tensors, metadata[TEXT]):
            raise ValueError("its content does not match its digest")
        meta = json.loads(metadata[TEXT])
        if not isinstance(meta, dict):
            raise TypeError(f"its metadata are a {type(meta).__name__}; expected a mapping")
        return tensors, meta
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; {remedy}") from None
    except (SafetensorError, KeyError, ValueError, TypeError, OSError) as error:
        raise CheckpointError(
            f"{path}: damaged ({type(error).__name__}: {error}); {remedy}"
        ) from None


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """A hash of names, shapes and values: one flipped bit shows."""
    found = hashlib.blake2b(text.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous().reshape(-1)
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(values.view(torch.uint8).numpy().data)
    return found.hexdigest()


def data_digest(arguments: Sequence[Tensor]) -> str:
    """A hash of the arguments of a pair."""
    return digest({str(i): tensor for i, tensor in enumerate(arguments)})


def row_digests(arguments: Sequence[Tensor]) -> Tensor:
    """A hash of each datum, `[N]` int64."""
    kinds = repr([(tensor.dtype, tuple(tensor.shape[1:])) for tensor in arguments]).encode()
    rows = [
        tensor.detach().cpu().contiguous().reshape(len(tensor), -1).view(torch.uint8).numpy()
        for tensor in arguments
    ]
    found = []
    for parts in zip(*rows, strict=True):
        hashed = hashlib.blake2b(kinds, digest_size=8)
        for part in parts:
            hashed.update(part.data)
        found.append(int.from_bytes(hashed.digest(), "little", signed=True))
    return torch.tensor(found, dtype=torch.int64)
