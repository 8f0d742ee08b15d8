"""The best parameters of a local guide, many data at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inference.isolation import seed_torch
from inference.particles import Scorer
from inference.progress import Progress

LEVELS = (0.05, 0.02, 0.005, 0.001)  # learning rates, each until it gains nothing more
ROUND = 50  # steps
MOST_ROUNDS = 8  # of a level
STILL = 0.002  # nats per datum that a round must gain, else the next level begins
LOOKS = 64  # draws of each datum that a round's gain is told from


class Fitted(NamedTuple):
    """Where the optimisation of some data ended.

    `gain`, `gain_std_error`: of the mean ELBO in the last round, nats, by draws of its own.
    """

    parameters: tuple[Tensor, ...]
    num_steps: int
    gain: float
    gain_std_error: float


def fit_local(
    scorer: Scorer,
    data: Sequence[Tensor],
    start: Sequence[Tensor],
    *,
    num_particles: int,
    seed: int,
    bar: Progress | None = None,
) -> Fitted:
    """Maximise the ELBO of each datum over its own parameters.

        max over lambda_n of E_q(z|lambda_n)[log p(x_n, z) - log q(z|lambda_n)]

    Adam on reparametrised draws; parameters of different data share nothing, not even a step size.
    A round's result is the mean of its later iterates, and its gain is told from draws that no step
    has seen. The learning rate falls where a round gains less than `STILL`; the last level's last
    round tells whether the optimum was reached.

    Args:
        scorer: of the pair whose arguments are the data and then the parameters.
        data, start: rows, `[n, ...]` each.
    """
    free = [part.clone().requires_grad_() for part in start]
    best = [part.clone() for part in start]
    optimizer = torch.optim.Adam(free, betas=(0.9, 0.99))
    steps, gain, error = 0, 0.0, 0.0
    for rate in LEVELS:
        optimizer.param_groups[0]["lr"] = rate
        for _ in range(MOST_ROUNDS):
            mean = [torch.zeros_like(part) for part in start]
            for i in range(ROUND):
                seed_torch(seed + steps)
                _step(scorer, data, free, optimizer, num_particles)
                steps += 1
                if i >= ROUND // 2:
                    for total, part in zip(mean, free, strict=True):
                        total += part.detach() / (ROUND - ROUND // 2)
                if bar is not None:
                    bar.advance()
            gain, error = _gain(scorer, data, best, mean, seed - 1 - steps)
            best = mean
            if gain <= STILL:
                break
    return Fitted(tuple(best), steps, gain, error)


def _step(
    scorer: Scorer,
    data: Sequence[Tensor],
    free: list[Tensor],
    optimizer: torch.optim.Optimizer,
    num_particles: int,
) -> None:
    with torch.enable_grad():
        record = scorer((*data, *free), num_particles)
        loss = -record.log_weight.sum() / num_particles
        found = torch.autograd.grad(loss, free, allow_unused=True)
    for part, gradient in zip(free, found, strict=True):
        if gradient is None:
            gradient = torch.zeros_like(part)
        # A draw without density leaves its own datum where it is for this step, and no other's.
        part.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
    optimizer.step()


def _gain(
    scorer: Scorer, data: Sequence[Tensor], old: list[Tensor], new: list[Tensor], seed: int
) -> tuple[float, float]:
    """How much the mean ELBO rose, with the same noise for both; its standard error."""
    weights = []
    for parameters in (old, new):
        seed_torch(seed)
        weights.append(scorer((*data, *parameters), LOOKS).log_weight)
    rise = weights[1] - weights[0]
    error = rise.var(0).sum().sqrt() / (LOOKS**0.5 * rise.shape[1])
    return float(rise.mean()), float(error)
