"""The matrix products alone: what the arithmetic of the layers needs, by `torch.mm(out=)`."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from benchmarks.network import Sizes, products_of_step
from benchmarks.workers.search import fastest
from benchmarks.workers.torch_parts import tiles


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    if task.get("precision") == "tf32":
        torch.set_float32_matmul_precision("high")
    return evidence(task) if task["work"] == "evidence" else training(task)


def training(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    """Every product of one step's layers, forward and backward."""
    shapes = products_of_step(task["batch"], Sizes.of(task), task.get("components", 0))
    ready = [_product(m, k, n, task["device"]) for m, k, n in shapes]

    def run(n: int) -> dict[str, Any]:
        for _ in range(n):
            for a, b, out in ready:
                torch.mm(a, b, out=out)
        _wait(task)
        return {}

    run(task["warmup"])
    flops = sum(2 * m * k * n for m, k, n in shapes)
    return run, f"{len(shapes)} products, {flops / 1e9:.3g} GFLOP"


def evidence(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    """The decoder's products for K samples of each of n data, in tiles of the best size."""
    widths = Sizes.of(task).decoder
    samples = task["num_samples"]

    def make(way: tuple[int, bool]) -> Callable[[int], dict]:
        rows, transposed = way
        hidden = [torch.randn(rows, width, device=task["device"]) for width in widths]
        matrices = [
            torch.randn(b, a, device=task["device"]).T
            if transposed
            else torch.randn(a, b, device=task["device"])
            for a, b in pairwise(widths)
        ]

        def multiply(left: int) -> dict[str, Any]:
            while left > 0:
                size = min(rows, left)
                for i, matrix in enumerate(matrices):
                    torch.mm(hidden[i][:size], matrix, out=hidden[i + 1][:size])
                left -= size
            _wait(task)
            return {}

        return multiply

    ways = [(rows, transposed) for rows in tiles(task) for transposed in (True, False)]
    if not task["search"]:
        ways = ways[:1]
    few = 60_000 if task["device"] == "cpu" else 1_000_000
    (rows, transposed), multiply = fastest(ways, make, lambda way: way(few))
    layout = "[out, in]" if transposed else "[in, out]"
    told = f"tiles of {rows} rows, weights stored {layout}"
    return lambda n: multiply(n * samples), told


def _product(m: int, k: int, n: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    made = torch.randn(m, k, device=device), torch.randn(k, n, device=device)
    return *made, torch.empty(m, n, device=device)


def _wait(task: dict[str, Any]) -> None:
    if task["device"] == "cuda":
        torch.cuda.synchronize()
