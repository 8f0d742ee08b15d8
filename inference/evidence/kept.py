"""What finished tiles gave, in a file, so that a stopped estimate goes on where it stood."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import Tensor

from inference.errors import CheckpointError
from inference.files import sweep
from inference.isolation import is_plain, modules_of
from inference.pair import Data
from inference.tensor_files import digest, read_tensors, write_tensors
from inference.tiles import numbers_per_tile, tiled

SECONDS = 15.0  # between two writes
FORMAT = 2


class Kept:
    """Tensors of finished parts of some work, by name.

    Without a path nothing is kept. On leaving its `with` block the file is removed if the work is
    done, and written if it broke off.

    Args:
        question: everything that the result depends on, for JSON.
    Raises: `CheckpointError` where the file is damaged or belongs to another question.
    """

    def __init__(self, path: Path | None = None, question: dict[str, Any] | None = None):
        self.path, self.question = path, {"format": FORMAT, **(question or {})}
        self._parts: dict[str, list[Tensor]] = {}
        self._written = time.monotonic()
        if path is None:
            return
        sweep(path)
        if not path.exists():
            return
        remedy = "remove it to begin anew"
        tensors, asked = read_tensors(path, remedy)
        other = [key for key in self.question if asked.get(key) != self.question[key]]
        if other:
            told = ", ".join(f"{key} ({asked.get(key)}, now {self.question[key]})" for key in other)
            raise CheckpointError(
                f"{path}: holds the beginning of another estimate, which differs in {told}; "
                f"{remedy}, or name another file"
            )
        for address, tensor in sorted(tensors.items()):
            self._parts.setdefault(address.rpartition("/")[0], []).append(tensor)

    @property
    def num_parts(self) -> int:
        return len(self._parts)

    def get(self, name: str, device: torch.device | str = "cpu") -> list[Tensor] | None:
        """The tensors of a part, on a device; None if it is still to do."""
        held = self._parts.get(name)
        return None if held is None else [tensor.to(device) for tensor in held]

    def put(self, name: str, tensors: Sequence[Tensor]) -> None:
        """Keep a part, and from time to time write all of them."""
        if self.path is None:
            return
        self._parts[name] = [tensor.detach().cpu().clone() for tensor in tensors]
        if self.due:
            self._write()

    @property
    def due(self) -> bool:
        """Is it time to keep what is half done, too?"""
        return self.path is not None and time.monotonic() - self._written > SECONDS

    def drop(self, name: str) -> None:
        """Keep a part no longer."""
        self._parts.pop(name, None)

    def has(self, name: str) -> bool:
        """Is there such a part, with names?"""
        return self.get(f"{name}/names") is not None

    def get_named(self, name: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The tensors of a part that is there, by their names."""
        keys, tensors = self.get(f"{name}/names"), self.get(name, device)
        assert keys is not None
        assert tensors is not None
        return dict(zip(bytes(keys[0].tolist()).decode().split("/"), tensors, strict=True))

    def put_named(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """The same for tensors that have names."""
        names = torch.tensor(list("/".join(tensors).encode()), dtype=torch.uint8)
        self.put(name, list(tensors.values()))
        self.put(f"{name}/names", [names])

    def within(self, name: str) -> Within:
        """The same for a part of the work that has parts of its own."""
        return Within(self, name)

    def __enter__(self) -> Kept:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self.path is None:
            return
        if kind is None:
            self.path.unlink(missing_ok=True)
        elif self._parts:
            self._write()

    def _write(self) -> None:
        assert self.path is not None
        tensors = {
            f"{name}/{index:03d}": tensor
            for name, parts in self._parts.items()
            for index, tensor in enumerate(parts)
        }
        write_tensors(self.path, tensors, self.question)
        self._written = time.monotonic()


class Within(Kept):
    """Parts of a part."""

    def __init__(self, kept: Kept, name: str):
        super().__init__()
        self._kept, self._name = kept, name

    def get(self, name: str, device: torch.device | str = "cpu") -> list[Tensor] | None:
        return self._kept.get(f"{self._name}/{name}", device)

    def put(self, name: str, tensors: Sequence[Tensor]) -> None:
        self._kept.put(f"{self._name}/{name}", tensors)

    @property
    def due(self) -> bool:
        return self._kept.due

    def drop(self, name: str) -> None:
        self._kept.drop(f"{self._name}/{name}")


def pair_digest(model: Callable, guide: Callable, data: Data, **options: Any) -> str:
    """A hash of what a pair computes.

    Of all its parameters and buffers, plain ones in the store too; and of the log-weights that it
    gives the first data with the same noise, in which everything else has a part: code, tensors
    that it closes over, latents that were given.
    """
    held = {
        f"{i} {name}": tensor
        for i, module in enumerate(modules_of(model, guide))
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)
    }
    plain = pyro.get_param_store()._params.items()
    held |= {f"store {name}": value for name, value in plain if is_plain(value)}
    with tiled(model, guide, data, 2, seed=0, **options) as tiles:
        held["log w"] = tiles.score(tiles.tile(0)).log_weight
        return digest(held, f"{tiles.device} {numbers_per_tile(tiles.device)}")


def version() -> str:
    """Of this package, on which tiles and draws depend."""
    try:
        return metadata.version("pyro-vae")
    except metadata.PackageNotFoundError:
        return "unknown"
