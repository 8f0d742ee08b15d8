"""Files that are either old or new, never half: written beside their place, then renamed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

TEMPORARY = ".writing-"  # prefix of a file that a killed process may leave behind


def write_bytes(path: Path, content: bytes) -> None:
    """Write the whole file or leave it as it was, even if the machine stops half-way.

    Readable to all but where the umask forbids it.
    """
    beside = path.parent / f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def sweep(path: Path) -> None:
    """Remove what processes killed while writing `path` left beside it."""
    for left_over in path.parent.glob(f"{TEMPORARY}{path.name}-*"):
        left_over.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
