"""Chains that go to the posterior, are tuned there, and are then kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from inference.evidence.hmc import Chains
from inference.evidence.space import Data
from inference.evidence.tempering import Tuned, Walk
from inference.progress import Progress


def annealed(walk: Walk, data: Data, tuned: Tuned, betas: Tensor, bar: Progress) -> Chains:
    """Chains that went from f_0 to the posterior, through `betas [T + 1, data]`."""
    chains = walk.begin(data, walk.tiles.num_samples)
    for beta in betas[1:]:
        chains = walk.move(chains, beta, tuned, data).chains
        bar.advance()
    return chains


def warmed(
    walk: Walk, data: Data, chains: Chains, tuned: Tuned, warmup: int, bar: Progress
) -> tuple[Chains, Tuned]:
    """Step sizes for the posterior: each dimension's scale from the first half of the way."""
    beta = torch.ones_like(chains.start[0])
    half, seen = warmup // 2, []
    log_step, steps = tuned.step.log(), []
    for i in range(warmup):
        moved = walk.move(chains, beta, tuned, data)
        chains = moved.chains
        since = i if i < half else i - half
        error = moved.acceptance.mean(0) - walk.settings.acceptance
        log_step = log_step + error / (since + 1) ** 0.5
        if i < half:
            seen.append(chains.u)
        else:
            steps.append(log_step)
        tuned = tuned._replace(step=log_step.exp())
        if i + 1 == half:
            scale = torch.cat(seen[half // 2 :]).std(0).clamp_min(1e-6)
            # Steps are in units of the scale: the same on average as before.
            log_step = log_step + (tuned.scale / scale).log().mean(-1)
            tuned = tuned._replace(scale=scale, step=log_step.exp())
        bar.advance()
    step = torch.stack(steps[len(steps) // 2 :]).mean(0).exp()
    return chains, tuned._replace(step=step)


def kept(
    walk: Walk,
    data: Data,
    chains: Chains,
    tuned: Tuned,
    num_draws: int,
    thin: int,
    values: Callable[[Tensor], Tensor],
    bar: Progress,
) -> tuple[Tensor, Tensor]:
    """`values` of the points of frozen chains `[chains, draws, data, D]`; acceptance `[data]`."""
    beta = torch.ones_like(chains.start[0])
    acceptance, found = torch.zeros_like(beta), []
    for _ in range(num_draws):
        for _ in range(thin):
            moved = walk.move(chains, beta, tuned, data)
            chains = moved.chains
            acceptance += moved.acceptance.mean(0) / (num_draws * thin)
            bar.advance()
        found.append(values(chains.u))
    return torch.stack(found, 1), acceptance
