"""This repository: a training step of each engine, and `inference.log_marginal`.

The only place that knows how `inference` is driven from inside.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import torch

import inference
from benchmarks.workers.our_vae import build
from benchmarks.workers.torch_parts import data_of

_held = contextlib.ExitStack()  # contexts of the row being measured


def engines() -> dict[str, list[str]]:
    """Every engine by name, of training and of log p(x), but the one that chooses among them."""
    from inference.evidence import weighing
    from inference.fit import ENGINES

    known = {"training": ENGINES, "evidence": weighing.ENGINES}
    return {work: [name for name in names if name != "auto"] for work, names in known.items()}


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    _held.close()
    return evidence(task) if task["work"] == "evidence" else training(task)


def training(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    """`Training.step` as `inference.fit` calls it, without its progress bar."""
    from inference.isolation import modes, modules_of, own_randomness, own_store, seed_all
    from inference.precision import switches
    from inference.training import State

    data = data_of(task)
    vae = build(task, data)
    modules = modules_of(vae.model, vae.guide)
    _held.enter_context(own_store())
    _held.enter_context(own_randomness(0))
    _held.enter_context(modes(modules, training=True))
    _held.enter_context(switches("float32", data.device))
    with modes(modules, training=False):
        under_way = _init(task, vae, data, modules)
    seed_all(0)
    state = State()
    order = under_way.order(0)

    def run(n: int) -> dict[str, Any]:
        nonlocal order
        before, seen = state.objective_sum, state.batch
        for _ in range(n):
            if state.batch == under_way.steps_per_epoch:
                under_way.finish_epoch(state)
                order = under_way.order(state.epoch)
                before, seen = 0.0, 0
            under_way.step(state, order)
        under_way.read(state)  # waits for the device
        num_data = (state.batch - seen) * task["batch"]
        return {"value": -(state.objective_sum - before) / num_data}

    run(task["warmup"])
    return run, ""


def _init(task: dict[str, Any], vae: Any, data: torch.Tensor, modules: list) -> Any:
    from inference.optimizer import SingleOptimizer
    from inference.training import init

    made = init(
        vae.model,
        vae.guide,
        (data,),
        objective=inference.ELBO(),
        optimizer=SingleOptimizer("adam", 1e-3, None, None),
        batch_size=task["batch"],
        device=data.device,
        epochs=10**6,
        modules=modules,
        engine=task["kind"],
    )
    if made.engine.name != task["kind"]:
        raise RuntimeError(f"engine {made.engine.name} ran instead: {made.engine_reason}")
    return made


def evidence(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    """`inference.log_marginal` with everything that it tells: error, ESS, k-hat.

    What a call costs before its first tile (a look at the pair, compiling) is measured by a call
    on few data, and told apart as `fixed`. The whole work pays it once: as it was for the very
    first call (`once`), or, where not `cold`, with compiled code at hand.
    """
    data = data_of(task)
    vae = build(task, data)
    samples = task["num_samples"]
    estimator = inference.Importance(num_samples=samples)

    def seconds_of(n: int) -> tuple[float, Any]:
        started = time.perf_counter()
        found = inference.log_marginal(
            vae.model,
            vae.guide,
            data[:n],
            estimator=estimator,
            engine=task["kind"],
            precision=task.get("precision", "float32"),
            progress=False,
        )
        if task["device"] == "cuda":
            torch.cuda.synchronize()
        if found.engine != task["kind"]:
            raise RuntimeError(f"engine {found.engine} ran instead")
        return time.perf_counter() - started, found

    few, first = task.get("few", 0), 0.0

    def run(n: int) -> dict[str, Any]:
        seconds, found = seconds_of(n)
        reply = {"seconds": seconds, "value": found.mean}
        if few and few < n:
            small, _ = seconds_of(few)
            alone = few * (seconds - small) / (n - few)
            reply["fixed"] = max(0.0, small - alone)
            if task.get("cold"):
                reply["once"] = max(0.0, first - alone)
        return reply

    note = ""
    if task["warm"]:
        first, _ = seconds_of(few or 1)
        _, found = seconds_of(task["n"])  # tiles of few and of many data may differ in shape
        note = f"tile {found.tile[0]} x {found.tile[1]}"
        if task.get("cold"):
            note += f"; the first call, compiling and all, took {first:.1f} s on {few} images"
    return run, note
