"""JSON, text and tensors in files that are either old or new, never half."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from inference.files import TEMPORARY, write_bytes
from pyro_vae.errors import RunError

__all__ = [
    "TEMPORARY",
    "json_line",
    "plain",
    "read_json",
    "read_json_lines",
    "read_tensors",
    "read_text",
    "write_bytes",
    "write_json",
    "write_json_lines",
    "write_tensors",
    "write_text",
]


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def json_line(row: Mapping[str, Any]) -> str:
    return json.dumps(plain(row), allow_nan=False) + "\n"


def write_json_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, "".join(map(json_line, rows)))


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(held, dict(metadata)))


def read_text(path: Path, remedy: str) -> str:
    """The file's text. Raises `RunError` that names the file and what to do."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path}: missing; {remedy}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: damaged ({error}); {remedy}") from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    text = read_text(path, remedy)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise RunError(f"{path}: damaged (not JSON: {error}); {remedy}") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: damaged (not a JSON object); {remedy}")
    return value


def read_json_lines(path: Path, remedy: str) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(read_text(path, remedy).splitlines(), 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise RunError(f"{path}: damaged (line {number} is not a JSON object); {remedy}")
        rows.append(row)
    return rows


def read_tensors(path: Path, remedy: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises `RunError`."""
    if not path.exists():
        raise RunError(f"{path}: missing; {remedy}")
    try:
        with safe_open(str(path), framework="pt") as file:
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path}: damaged ({error}); {remedy}") from None
