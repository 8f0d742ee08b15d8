"""YAML in and out: plain data only, no code, no surprises."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from pyro_vae.errors import SpecError

MAX_BYTES = 1_000_000


# Odd tags on odd nodes (`!!bool maybe`, `!!map [1]`) make yaml's constructors fail in many ways.
_FAILURES = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` that reads 1e-3 as a number and refuses aliases and repeated keys."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            try:
                repeated = name in seen
            except TypeError:
                raise yaml.MarkedYAMLError(
                    problem="a key must be a plain word", problem_mark=key.start_mark
                ) from None
            if repeated:
                raise yaml.MarkedYAMLError(
                    problem=f"the key '{name}' stands twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """`yaml.SafeDumper` that writes what `_Loader` reads back: no aliases, quotes on '1e-3'."""

    def ignore_aliases(self, data):
        return True


# YAML 1.1 reads 1e-3 as a string; YAML 1.2, and everyone who writes a learning rate, as a number.
for _side in (_Loader, _Dumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+0123456789."),
    )


def parse_yaml(text: str, where: str = "YAML") -> Any:
    """Plain data from YAML text. Raises `SpecError` with line and column."""
    try:
        return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds no objects
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise SpecError(f"{where}{place}: not readable as YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        first = str(error).splitlines()[0]
        raise SpecError(f"{where}: not readable as YAML: {first}") from None
    except _FAILURES as error:
        raise SpecError(f"{where}: not readable as YAML: {type(error).__name__}") from None


def load_yaml(path: str | PathLike) -> Any:
    """Plain data from a YAML file. Raises `SpecError`."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            raise SpecError(f"{path}: larger than {MAX_BYTES} bytes, which no spec is")
        text = raw.decode("utf-8")
    except SpecError:
        raise
    except FileNotFoundError:
        raise SpecError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read as text: {error}") from None
    return parse_yaml(text, str(path))


def dump_yaml(data: Any) -> str:
    """YAML text that `parse_yaml` reads back as equal plain data."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
