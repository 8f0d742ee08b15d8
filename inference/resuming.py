"""What a checkpoint holds of a training, and how a training goes on from it."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from torch import Tensor

from inference.checkpoint import Checkpoint, Snapshot, random_from, random_tensors
from inference.errors import CheckpointError
from inference.isolation import random_state, set_random_state
from inference.stopping import Stopping
from inference.training import State, Training

# What a checkpoint tells of a `State`, beside weights and history.
PROGRESS = {
    *("epoch", "batch", "step", "objective_sum", "norm_sum", "seconds", "finished"),
    *("best", "best_epoch", "waited"),
}


def checkpoint_of(training: Training, state: State, settings: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        current=training.snapshot(),
        best=state.best,
        random=random_tensors(random_state(training.device)),
        progress={
            "epoch": state.epoch,
            "batch": state.batch,
            "step": state.step,
            "objective_sum": state.objective_sum,
            "norm_sum": state.norm_sum,
            "seconds": state.seconds,
            "finished": state.finished,
            "best": state.stopping.best,
            "best_epoch": state.stopping.best_epoch,
            "waited": state.stopping.waited,
        },
        settings=settings,
        history=state.history,
    )


def _may_grow(training: Training, before: int | None, epochs: int) -> bool:
    """May a training meant for `before` epochs go on to `epochs`?"""
    return before is not None and before <= epochs and not training.schedule.depends_on_total


def restore(training: Training, saved: Checkpoint, settings: dict[str, Any]) -> State:
    """Weights, optimizer and random states as they were; the `State` to go on from."""
    changed = [
        f"{key} was {saved.settings.get(key)!r}, now {settings.get(key)!r}"
        for key in sorted(saved.settings.keys() | settings.keys())
        if saved.settings.get(key) != settings.get(key)
        and key != "engine"  # all give the same
        and not (key == "epochs" and _may_grow(training, saved.settings.get(key), settings[key]))
    ]
    if changed:
        raise CheckpointError(
            f"resume: the training has changed: {'; '.join(changed)}. Resume with the same "
            "settings, or start a new training"
        )
    p = saved.progress
    missing = sorted(PROGRESS - p.keys())
    if missing:
        raise CheckpointError(f"resume: the checkpoint lacks '{missing[0]}'")
    random = random_from(saved.random)
    put(training, saved.current)
    if p["step"]:  # no engine takes its next step for a first one
        training.optimizer.adopt(pyro.get_param_store()._params.values())
    set_random_state(random, training.device)
    training.engine.start(p["objective_sum"], p["norm_sum"])
    return State(
        epoch=p["epoch"],
        batch=p["batch"],
        step=p["step"],
        objective_sum=p["objective_sum"],
        norm_sum=p["norm_sum"],
        seconds=p["seconds"],
        # More epochs may be asked for, but early stopping has decided.
        finished=p["finished"],
        stopping=Stopping(p["best"], p["best_epoch"], p["waited"]),
        best=saved.best,
        history=saved.history,
    )


@torch.no_grad()
def put(training: Training, snapshot: Snapshot) -> None:
    """Copy a snapshot's values into the live parameters and the optimizer.

    Raises: `CheckpointError`.
    """
    live = training.snapshot()
    for kind in ("weights", "buffers"):
        here, there = getattr(live, kind), getattr(snapshot, kind)
        if here.keys() != there.keys():
            odd = sorted(here.keys() ^ there.keys())[0]
            raise CheckpointError(f"resume: '{odd}' is not in both the pair and the checkpoint")
        for name, tensor in here.items():
            if tensor.shape != there[name].shape:
                raise CheckpointError(
                    f"resume: '{name}' has shape {tuple(tensor.shape)} in the pair and "
                    f"{tuple(there[name].shape)} in the checkpoint"
                )
            tensor.copy_(there[name])
    training.optimizer.set_state(
        {
            name: {key: _state_item(item, live.weights[name]) for key, item in values.items()}
            for name, values in snapshot.optimizer.items()
        }
    )


def _state_item(item: Any, parameter: Tensor) -> Any:
    if not isinstance(item, Tensor):
        return item
    # Fused optimizers keep the step count on the parameter's device, in float32.
    item = item.to(parameter.device)
    if item.shape == parameter.shape:  # and the rest in the order of its memory
        return torch.empty_like(parameter, dtype=item.dtype).copy_(item)
    return item.clone()
