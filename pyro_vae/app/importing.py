"""`--import MODULE`: bring components of one's own to the command line, only when told to."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from pyro_vae.errors import RequestError


def import_module(name: str) -> None:
    """Run a module by name, or a `.py` file by path; its components register themselves.

    Raises: `RequestError` with what Python said, on one line.
    """
    try:
        if name.endswith(".py"):
            _import_file(Path(name))
        else:
            _import_name(name)
    except RequestError as error:
        raise RequestError(f"--import {name}: {error}") from None
    except Exception as error:
        said = str(error).replace("\n", " ")
        raise RequestError(f"--import {name}: {type(error).__name__}: {said}") from None


def _import_file(path: Path) -> None:
    if not path.is_file():
        raise RequestError("no such file")
    if path.stem in sys.modules:
        held = getattr(sys.modules[path.stem], "__file__", None)
        if held is not None and Path(held).resolve() == path.resolve():
            return
        raise RequestError(f"a module '{path.stem}' is already loaded from {held}; rename the file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise RequestError("not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path.stem]
        raise


def _import_name(name: str) -> None:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)  # an installed script does not look in the current folder
    importlib.import_module(name)
