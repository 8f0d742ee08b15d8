"""`key=value`: dotted paths into a spec, applied to the mapping that a YAML file holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from pyro_vae.component import OneOf, Registry, shorten
from pyro_vae.errors import Problem, RequestError, SpecError
from pyro_vae.yaml_files import parse_yaml


def parse_overrides(overrides: Iterable[str]) -> tuple[list[tuple[list[str], Any]], list[Problem]]:
    """`["train.epochs=3"]` as `[(["train", "epochs"], 3)]`, with a problem per mistake.

    Shorter paths come first, so that `model.prior.components=200 model.prior=vamp` means the same
    in either order; of one path given twice the last counts.
    """
    found: list[tuple[list[str], Any]] = []
    problems: list[Problem] = []
    for given in overrides:
        key, equals, text = given.partition("=")
        path = key.strip().split(".")
        if not equals or not all(path):
            problems.append(Problem((), f"'{given}': expected key=value, e.g. train.epochs=3"))
            continue
        try:
            found.append((path, parse_yaml(text, f"{key}={shorten(text)}")))
        except SpecError as error:
            problems += error.problems
    return sorted(found, key=lambda item: len(item[0])), problems


def apply_overrides(
    spec_class: type[BaseModel], data: Mapping[str, Any], overrides: Iterable[str]
) -> tuple[dict[str, Any], list[Problem]]:
    """`data` with the overrides in it, and what is wrong with those that are not.

    Whether the fields exist and the values fit is for `spec_class` to say.

    A component that `data` gives by name, or leaves to its default, becomes a mapping with that
    name when a field of it is set.
    """
    settings, problems = parse_overrides(overrides)
    settings = [_whole_component(spec_class, data, *item) for item in settings]
    settings.sort(key=lambda item: len(item[0]))
    whole = dict(data)
    for path, value in settings:
        place = whole
        for depth, key in enumerate(path[:-1], 1):
            held = place.get(key)
            member = _registry_at(spec_class, path[:depth])
            if held is None:
                held = {} if member is None else {"name": _default_at(spec_class, path[:depth])}
            elif isinstance(held, str) and member is not None:
                held = {"name": held}
            if not isinstance(held, dict):
                text = f"holds {shorten(held)}, which has no field '{path[depth]}'"
                problems.append(Problem(tuple(path[:depth]), text))
                break
            place[key] = dict(held)
            place = place[key]
        else:
            place[path[-1]] = value
    return whole, problems


def _whole_component(
    spec_class: type[BaseModel], data: Mapping[str, Any], path: list[str], value: Any
) -> tuple[list[str], Any]:
    """`data.name=arrays` as `data=arrays`: another component does not keep this one's fields."""
    if path[-1] != "name" or len(path) < 2 or _registry_at(spec_class, path[:-1]) is None:
        return path, value
    held: Any = data
    for key in path[:-1]:
        held = held.get(key) if isinstance(held, Mapping) else None
    same = isinstance(held, Mapping) and held.get("name") == value
    return (path, value) if same else (path[:-1], value)


def _field_at(spec_class: type[BaseModel], path: list[str]):
    """The pydantic field at a dotted path, or None."""
    field = None
    cls: Any = spec_class
    for key in path:
        if not (isinstance(cls, type) and issubclass(cls, BaseModel)):
            return None
        field = cls.model_fields.get(key)
        if field is None:
            return None
        cls = field.annotation
    return field


def _registry_at(spec_class: type[BaseModel], path: list[str]) -> Registry | None:
    field = _field_at(spec_class, path)
    marks = [item for item in (field.metadata if field else []) if isinstance(item, OneOf)]
    return marks[0].registry if marks else None


def _default_at(spec_class: type[BaseModel], path: list[str]) -> str:
    default = _field_at(spec_class, path).default
    return default if isinstance(default, str) else default["name"]


def split_request(request: Sequence[str]) -> tuple[str | None, list[str]]:
    """`["mnist", "train.epochs=3"]` as `("mnist", ["train.epochs=3"])`."""
    sources = [word for word in request if "=" not in word]
    if len(sources) > 1:
        raise RequestError(
            [
                Problem((), f"'{word}': a second spec after '{sources[0]}'; changes are key=value")
                for word in sources[1:]
            ]
        )
    return (sources[0] if sources else None), [word for word in request if "=" in word]
