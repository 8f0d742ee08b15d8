"""What the torch rows share: data and batches on a device, and layers with the given weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.network import SIDE, Sizes, binary_data, weights
from benchmarks.workers.tiles import TILES


def data_of(task: dict[str, Any]) -> Tensor:
    """`[N, 784]`, or `[N, 28, 28]` for the convolutional network, on the task's device."""
    data = torch.from_numpy(binary_data(task["num_data"])).to(task["device"])
    return data.reshape(-1, SIDE, SIDE) if task["model"] == "conv" else data


def batches(task: dict[str, Any]) -> Iterator[Tensor]:
    """Rows of one batch after another, shuffled anew each epoch; without the ragged last one."""
    size, count = task["batch"], task["num_data"]
    while True:
        order = torch.randperm(count, device=task["device"])
        for start in range(0, count - size + 1, size):
            yield order[start : start + size]


def mlp(layers: list) -> nn.Sequential:
    """Linear layers with the given weights, tanh between them."""
    parts: list[nn.Module] = []
    for matrix, bias in layers:
        linear = nn.Linear(matrix.shape[1], matrix.shape[0])
        set_weights(linear, (matrix, bias))
        parts += [linear, nn.Tanh()]
    return nn.Sequential(*parts[:-1])


@torch.no_grad()
def set_weights(linear: nn.Linear, values: tuple) -> None:
    linear.weight.copy_(torch.from_numpy(values[0]))
    linear.bias.copy_(torch.from_numpy(values[1]))


def networks(task: dict[str, Any]) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder of the task's size."""
    made = weights(Sizes.of(task))
    return mlp(made["encoder"]), mlp(made["decoder"])


def steps(task: dict[str, Any], step: Callable[[Tensor], Tensor]) -> Callable[[int], dict]:
    """A run of `n` training steps `step(rows) -> loss`; tells the mean loss per datum."""
    order = batches(task)

    def run(n: int) -> dict[str, Any]:
        total = torch.zeros((), device=task["device"])
        for _ in range(n):
            total += step(next(order))
        return {"value": float(total) / n}  # waits for the device

    return run


def tiles(task: dict[str, Any]) -> list[int]:
    """Tiles to try; on a GPU, large ones."""
    if task["device"] == "cuda":
        return [5_000, 20_000, 80_000]
    return list(TILES) if task["search"] else [1000]
