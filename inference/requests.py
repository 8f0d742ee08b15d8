"""Checks of what callers ask for: each refusal is one sentence that names the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from inference.errors import RequestError

Kind = TypeVar("Kind")


def whole_number(name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RequestError(f"{name}: got {value!r}; expected a whole number of at least {least}")


def positive(name: str, value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not (value > 0 and math.isfinite(value)):
        raise RequestError(f"{name}: got {value!r}; expected a positive number")


def member(name: str, value: Any, kind: type[Kind], family: Mapping[str, type[Kind]]) -> Kind:
    """A value of `kind`, or the one with default settings that the family has under a name."""
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and value in family:
        return family[value]()
    if isinstance(value, type) and issubclass(value, kind):
        raise RequestError(
            f"{name}: got the class {value.__name__}; expected a value, e.g. {value.__name__}()"
        )
    raise RequestError(f"{name}: {value!r} is unknown. Choices: {', '.join(family)}")


def one_of(name: str, value: Any, choices: Iterable[str]) -> None:
    if value not in choices:
        raise RequestError(f"{name}: {value!r} is unknown. Choices: {', '.join(choices)}")


def usable_device(device: str | torch.device) -> torch.device:
    """The device asked for, if it is there."""
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise RequestError(
            f"device: '{device}' is not available here ({str(error).splitlines()[0]}); use cpu"
        ) from None
    return found


def device_of(modules: Iterable[nn.Module], arguments: tuple[Tensor, ...]) -> torch.device:
    """Where a pair is: the device of its first module parameter, else that of the data."""
    for module in modules:
        for parameter in module.parameters():
            return parameter.device
    return arguments[0].device
