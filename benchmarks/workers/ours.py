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
    from inference.layout import init
    from inference.optimizer import SingleOptimizer

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

    Whole calls where the row asks for them. Else what a call does before its first tile (a look at
    the pair, compiling) is done here and told as `once`, and a slice streams the first data.
    """
    data = data_of(task)
    vae = build(task, data)
    return (calls if task["calls"] else streams)(task, vae, data)


def calls(task: dict[str, Any], vae: Any, data: torch.Tensor) -> tuple[Callable[[int], dict], str]:
    def run(n: int) -> dict[str, Any]:
        found = inference.log_marginal(
            vae.model,
            vae.guide,
            data[:n],
            estimator=inference.Importance(num_samples=task["num_samples"]),
            engine=task["kind"],
            precision=task.get("precision", "float32"),
            progress=False,
        )
        _wait(task)
        if found.engine != task["kind"]:
            raise RuntimeError(f"engine {found.engine} ran instead")
        return {"value": found.mean}

    if task["warm"]:
        run(task["n"])
    return run, "each time by a call of its own, compiling and all"


def streams(
    task: dict[str, Any], vae: Any, data: torch.Tensor
) -> tuple[Callable[[int], dict], str]:
    from inference.evidence import importance, streaming
    from inference.evidence.weighing import Weighing
    from inference.tiles import tiled

    started = time.perf_counter()
    tiles = _held.enter_context(
        tiled(
            vae.model,
            vae.guide,
            data,
            task["num_samples"],
            seed=0,
            plate="data",
            precision=task.get("precision", "float32"),
        )
    )
    weighing = Weighing(tiles, importance.weights, task["kind"])
    if weighing.engine != task["kind"]:
        raise RuntimeError(f"engine {weighing.engine} ran instead: {weighing.reason}")
    _wait(task)
    once = time.perf_counter() - started

    def run(n: int) -> dict[str, Any]:
        states = importance.stream(weighing, num_data=n)
        found = [streaming.finish(state)["value"] for _, state in states]
        values = torch.cat(found)
        mean = float(values.mean())  # waits for the device
        return {"value": mean, "pieces": len(values), "once": once}

    run(min(task["n"], 2 * tiles.data_per_tile))
    note = f"tile {tiles.data_per_tile} x {tiles.samples_per_tile}"
    return run, f"{note}; {once:.1f} s before the first"


def _wait(task: dict[str, Any]) -> None:
    if task["device"] == "cuda":
        torch.cuda.synchronize()
