"""Reweighted wake-sleep."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from inference.objectives.base import Objective, Rows
from inference.objectives.weights import log_guide, log_mean, log_weight, with_gradient_of
from inference.record import LogWeights
from inference.stopped import Scoring


class ReweightedWakeSleep(Objective, name="reweighted_wake_sleep"):
    """The model climbs the bound of `iwae`, the guide descends KL(p(z|x) || q(z|x)).

        model: sum_k w~_k d log p(x, z_k),   guide (wake-phi): sum_k w~_k d log q(z_k|x)

    No draw is differentiated, so latents may be discrete. The model's gradient is that of `iwae`,
    unbiased; the guide's has a bias of order 1/K. The value is that of `iwae`.
    Source: arXiv:1406.2751; 1805.10469 for its gradients.
    """

    optimum: ClassVar[str] = (
        "log p(x) for the model; its guide covers the posterior, where others seek a mode of it"
    )
    scoring: ClassVar[Scoring] = "fixed draws"
    weighs_draws: ClassVar[bool] = True
    num_particles: int = Field(default=5, ge=2)

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        log_w, log_q = log_weight(record, self.name), log_guide(record, self.name)
        weight = log_w.detach().softmax(0)
        # log w + log q is log p(x, z), and an auxiliary guide's reverse model with it.
        gained = log_w + 2 * log_q
        return with_gradient_of(rows.mean(log_mean(log_w)), rows.mean((weight * gained).sum(0)))
