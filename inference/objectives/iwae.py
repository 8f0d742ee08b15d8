"""The importance weighted bound."""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor

from inference.objectives.base import Objective, Rows
from inference.objectives.weights import log_mean, log_weight
from inference.record import LogWeights


class IWAE(Objective, name="iwae"):
    """The importance weighted bound: E log 1/K sum_k w_k, w_k = p(x, z_k) / q(z_k|x).

    Between the ELBO (K = 1) and log p(x) (K to infinity). Gradients go through all of it; those of
    the guide have a signal-to-noise ratio that falls as 1/sqrt K (arXiv:1802.04537), which `dreg`
    mends. Source: arXiv:1509.00519.
    """

    optimum: ClassVar[str] = (
        "log p(x), reached where q(z|x) = p(z|x), and for any guide as K grows without bound"
    )
    weighs_draws: ClassVar[bool] = True
    num_particles: PositiveInt = 5

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        return rows.mean(log_mean(log_weight(record, self.name)))
