"""k-means, the clusters that need no model."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.isolation import own_randomness

ROUNDS = 100  # at most


def k_means(x: Tensor, count: int, *, seed: int = 0, restarts: int = 5) -> Tensor:
    """Centers `[count, features]` of x `[N, features]`: the best of some restarts.

    Lloyd's algorithm from the centers of k-means++ (Arthur and Vassilvitskii, SODA 2007), until no
    row changes its cluster.
    """
    best, least = x[:count], float("inf")
    with own_randomness(seed):
        for _ in range(restarts):
            centers, before = spread(x, count), None
            for _ in range(ROUNDS):
                nearest = clusters(x, centers)
                if before is not None and torch.equal(nearest, before):
                    break
                before = nearest
                sums = torch.zeros_like(centers).index_add_(0, nearest, x)
                sizes = torch.bincount(nearest, minlength=count)[:, None]
                centers = torch.where(sizes > 0, sums / sizes.clamp_min(1), centers)
            total = float(distances(x, centers).min(1).values.mean())
            if total < least:
                best, least = centers, total
    return best


def clusters(x: Tensor, centers: Tensor) -> Tensor:
    """The nearest center of each row."""
    return distances(x, centers).argmin(1)


def distances(x: Tensor, centers: Tensor) -> Tensor:
    """Squared `[N, count]`, less |x|^2, which is the same for all centers."""
    return centers.square().sum(1) - 2 * x @ centers.T


def spread(x: Tensor, count: int) -> Tensor:
    """Rows, each chosen in proportion to its squared distance from those before."""
    chosen = x[torch.randint(len(x), (1,))]
    least = (x - chosen).square().sum(1)
    while len(chosen) < count:
        row = x[torch.multinomial(least, 1)]
        chosen = torch.cat([chosen, row])
        least = torch.minimum(least, (x - row).square().sum(1))
    return chosen
