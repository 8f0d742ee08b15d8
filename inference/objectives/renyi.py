"""The variational Renyi bound."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from inference.objectives.base import Objective, Rows
from inference.objectives.weights import log_mean, log_weight
from inference.record import LogWeights


class Renyi(Objective, name="renyi"):
    """The variational Renyi bound: 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha).

    alpha = 0 is `iwae`, alpha = 1 (its limit) the ELBO; from 0 on it lies below log p(x), and the
    lower the larger alpha is. For alpha < 0 it is an upper bound as K grows without bound, and none
    at finite K. Gradients go through all of it. Source: arXiv:1602.02311.
    """

    optimum: ClassVar[str] = (
        "log p(x), reached where q(z|x) = p(z|x); a larger alpha seeks modes more, a smaller one "
        "covers more mass"
    )
    weighs_draws: ClassVar[bool] = True
    num_particles: int = Field(default=5, ge=2)
    alpha: float = 0.5

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        log_w = log_weight(record, self.name)
        if self.alpha == 1:
            return rows.mean(log_w.mean(0))
        return rows.mean(log_mean((1 - self.alpha) * log_w) / (1 - self.alpha))
