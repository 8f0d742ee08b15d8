"""A classifier outside all models: the judge of pictures, and what few labels give alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from inference.isolation import own_randomness
from pyro_vae.networks.base import Network

ROWS = 1024


def trained(
    network: Network,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int = 0,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> nn.Module:
    """The network `[N, *shape]` to logits of 10 classes after `steps` of Adam on cross entropy.

    Its rate falls to 0 along half a cosine. `transform` gives each batch fresh randomness.
    """
    with own_randomness(seed):
        net = network.make(tuple(x.shape[1:]), (10,))
        optimizer = torch.optim.Adam(net.parameters(), lr=learning_rate)
        falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        rows = torch.empty(0, dtype=torch.long)
        for _ in range(steps):
            if len(rows) < min(batch_size, len(x)):
                rows = torch.randperm(len(x))
            some, rows = rows[:batch_size], rows[batch_size:]
            seen = x[some] if transform is None else transform(x[some])
            optimizer.zero_grad()
            cross_entropy(net(seen), y[some]).backward()
            optimizer.step()
            falling.step()
    return net.eval()


@torch.no_grad()
def read(net: nn.Module, x: Tensor) -> Tensor:
    """The most probable class of each row."""
    return torch.cat([net(some).argmax(-1) for some in x.split(ROWS)])


def share(right: Tensor) -> dict[str, Any]:
    """The share of True, with its binomial error."""
    found = float(right.double().mean())
    return {"share": found, "std_error": math.sqrt(found * (1 - found) / len(right))}


def by_class(guessed: Tensor, y: Tensor) -> dict[str, Any]:
    """The share read as their label: of all, and of each class that there is."""
    right = guessed == y
    each = {str(label): share(right[y == label]) for label in y.unique().tolist()}
    return {**share(right), "num": len(y), "by_class": each}
