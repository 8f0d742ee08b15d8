"""The variational Renyi bound."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from inference.objectives.base import Objective, log_mean, log_weight


class Renyi(Objective):
    """1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha) (arXiv:1602.02311).

    alpha 0 is `iwae`, alpha to 1 the ELBO; for alpha in [0, 1) it lies below log p(x). Outside, it
    bounds nothing at finite K.
    """

    optimum: ClassVar[str] = "log p(x), where q(z|x) = p(z|x)"
    name: Literal["renyi"] = "renyi"
    num_particles: int = Field(default=5, ge=2)
    alpha: float = 0.5

    def value(self, record, rows, beta):
        log_w = log_weight(record, self.name)
        if self.alpha == 1:
            return rows.mean(log_w.mean(0))
        return rows.mean(log_mean((1 - self.alpha) * log_w) / (1 - self.alpha))
