"""Run a Pyro pair without leaving traces: own parameter store, own randomness, own modes."""

from __future__ import annotations

import functools
import hashlib
import inspect
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn
from torch.distributions import Distribution


def is_plain(value: Tensor) -> bool:
    """Does this store entry come from a bare `pyro.param` (not from a module)?"""
    return not isinstance(value, nn.Parameter)


@contextmanager
def own_store(*, share: bool = False) -> Iterator[Callable[[], None]]:
    """A parameter store of one's own, which starts from the caller's plain `pyro.param`s.

    Module parameters stay with their modules: a store that still knows a *former* module under
    the same name would otherwise silently detach the new one. Once the function it yields has been
    called, the values that plain parameters have at the end are written back to the caller's
    store, be that end an exception or not. With `share` the plain parameters are the caller's own
    tensors, so that gradients reach them.
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
    keep = False

    def keep_values() -> None:
        nonlocal keep
        keep = True

    try:
        with store.scope(start):
            try:
                yield keep_values
            finally:
                if keep:
                    for name, value in store._params.items():
                        if is_plain(value):
                            kept = value if share else value.detach().clone()
                            trained[name] = (kept, store._constraints[name])
                # `scope` hands the inner tensors back to `start`; nothing else refers to them.
    finally:
        _write_back(plain, trained)


def _write_back(plain: dict[str, Tensor], trained: dict[str, tuple[Tensor, Any]]) -> None:
    """Values into the caller's tensors, and parameters that the caller did not have."""
    store = pyro.get_param_store()
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
    """Random states (torch's on every device, numpy's, Python's) end as they were.

    With a seed, all start from it.
    """
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    before = random_state()
    with torch.random.fork_rng(devices=devices):
        try:
            if seed is not None:
                seed_all(seed)
            yield
        finally:
            set_random_state(before)


def seed_all(seed: int) -> None:
    """Seed every global generator: torch's on all devices, numpy's and Python's."""
    seed_torch(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  (the state that others draw from)
    random.seed(seed)


def seed_torch(seed: int) -> None:
    """Seed torch's generators on all devices."""
    if _accelerated():
        torch.manual_seed(seed)
    else:  # the above takes a stack trace for devices that are not there: 0.5 ms
        torch.default_generator.manual_seed(seed)


@functools.cache
def _accelerated() -> bool:
    return torch.accelerator.is_available()


def random_state(device: torch.device | None = None) -> dict[str, Any]:
    """The global generators: torch's on the CPU and on `device`, numpy's and Python's."""
    state = {
        "cpu": torch.get_rng_state(),
        "numpy": np.random.get_state(),  # noqa: NPY002
        "python": random.getstate(),
    }
    if device is not None and device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    torch.set_rng_state(state["cpu"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(state["python"])
    if device is not None and device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


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
        elif isinstance(item, list | tuple | dict):
            for part in item.values() if isinstance(item, dict) else item:
                if isinstance(part, nn.Module):
                    found[id(part)] = part
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
    """Pyro's and torch.distributions' argument checks on or off, restored afterwards.

    Off is off for all: a distribution that was made while they were on (`.expand` in a module's
    `__init__`) would go on checking by itself.
    """
    before = Distribution._validate_sample
    try:
        Distribution._validate_sample = _CHECK if enabled else _no_check  # type: ignore[method-assign]
        with pyro.validation_enabled(enabled):
            yield
    finally:
        Distribution._validate_sample = before  # type: ignore[method-assign]


_CHECK = Distribution._validate_sample


def _no_check(self: Distribution, value: Tensor) -> None:
    pass
