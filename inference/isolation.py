"""Run a Pyro pair without leaving traces: own parameter store, own randomness, own modes."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from torch import Tensor, nn


def is_plain(value: Tensor) -> bool:
    """Does this store entry come from a bare `pyro.param` (not from a module)?"""
    return not isinstance(value, nn.Parameter)


@contextmanager
def own_store(*, keep_plain: bool = False, share: bool = False) -> Iterator[None]:
    """A parameter store of one's own, which starts from the caller's plain `pyro.param`s.

    Module parameters stay with their modules: a store that still knows a *former* module under
    the same name would otherwise silently detach the new one. With `keep_plain`, trained values
    of plain parameters are written back to the caller's store at the end. With `share` the plain
    parameters are the caller's own tensors, so that gradients reach them.
    """
    store = pyro.get_param_store()
    plain = {name: value for name, value in store._params.items() if is_plain(value)}
    start: Any = {
        "params": {
            n: v if share else v.detach().clone().requires_grad_(True) for n, v in plain.items()
        },
        "constraints": {name: store._constraints[name] for name in plain},
    }
    trained: dict = {}
    with store.scope(start):
        try:
            yield
        finally:
            if keep_plain:
                for name, value in store._params.items():
                    if is_plain(value):
                        trained[name] = (value.detach().clone(), store._constraints[name])
            # `scope` hands the inner tensors back to `start`; nothing else refers to them.
    for name, (value, constraint) in trained.items():
        if name in plain:
            plain[name].data.copy_(value)
        else:
            store.set_state(
                {
                    "params": {name: value.requires_grad_(True)},
                    "constraints": {name: constraint},
                }
            )


@contextmanager
def own_randomness(seed: int | None = None) -> Iterator[None]:
    """torch's random state, on every device, is what it was when this ends."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        if seed is not None:
            torch.manual_seed(seed)
        yield


def derived_seed(*parts: object) -> int:
    """A seed for one task of many, independent between tasks: the hash of its address."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def modules_of(*functions: Callable) -> list[nn.Module]:
    """The modules that Pyro functions use: themselves, their owner, what they close over."""
    found: dict[int, nn.Module] = {}

    def visit(item: object, depth: int) -> None:
        if isinstance(item, nn.Module):
            found[id(item)] = item
        elif isinstance(item, functools.partial):
            for part in (item.func, *item.args, *item.keywords.values()):
                visit(part, depth)
        elif isinstance(getattr(item, "__self__", None), nn.Module):
            found[id(item.__self__)] = item.__self__  # type: ignore[attr-defined]
        elif callable(item) and depth > 0:
            function = inspect.unwrap(getattr(item, "__func__", item))
            owner = getattr(item, "__self__", item)
            if not isinstance(owner, type) and not inspect.isfunction(owner):
                for value in getattr(owner, "__dict__", {}).values():
                    visit(value, 0)
            if inspect.isfunction(function):
                names = inspect.getclosurevars(function)
                for value in (*names.nonlocals.values(), *names.globals.values()):
                    # Modules and, one level down, functions that wrap them.
                    visit(value, depth - 1 if not isinstance(value, nn.Module) else 0)

    for function in functions:
        visit(function, 2)
    # A module inside another one is its parent's business.
    inner = {id(c) for m in found.values() for c in m.modules() if c is not m}
    return [module for key, module in found.items() if key not in inner]


@contextmanager
def modes(modules: list[nn.Module], *, training: bool) -> Iterator[None]:
    """Set train/eval on modules and all their children, and restore each one's mode."""
    before = {child: child.training for module in modules for child in module.modules()}
    for module in modules:
        module.train(training)
    try:
        yield
    finally:
        for child, mode in before.items():
            child.training = mode


@contextmanager
def validation(enabled: bool) -> Iterator[None]:
    """Pyro's and torch.distributions' argument checks on or off, restored afterwards."""
    with pyro.validation_enabled(enabled):
        yield
