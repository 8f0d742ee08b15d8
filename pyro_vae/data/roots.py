"""Where data files are looked for, and where downloads are kept."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def data_root() -> Path:
    """`$PYRO_VAE_DATA`, else the cache."""
    named = os.environ.get("PYRO_VAE_DATA")
    return Path(named).expanduser() if named else cache_root()


def cache_root() -> Path:
    """`$XDG_CACHE_HOME/pyro-vae`, else `~/.cache/pyro-vae`."""
    named = os.environ.get("XDG_CACHE_HOME")
    return (Path(named) if named else Path("~/.cache").expanduser()) / "pyro-vae"


def search_roots() -> list[Path]:
    """The data root, and the cache, where downloads go if the data root is read-only."""
    return list(dict.fromkeys([data_root(), cache_root()]))


def writable_root() -> Path | None:
    """The first of `search_roots` that can be written to."""
    for root in search_roots():
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root):
                return root
        except OSError:
            continue
    return None
