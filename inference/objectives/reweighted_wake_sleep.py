"""Reweighted wake-sleep."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from inference.objectives.base import Objective, log_mean, log_weight, total, with_gradient_of


class ReweightedWakeSleep(Objective):
    """The model climbs the IWAE bound, the guide descends KL(p(z|x) || q) (arXiv:1406.2751).

        model: sum_k w~_k d log p(x, z_k),   guide (wake-phi): sum_k w~_k d log q(z_k|x)

    No draw is differentiated, so latents may be discrete. Few particles bias both.
    """

    optimum: ClassVar[str] = "log p(x); the guide covers the posterior rather than seeks its mode"
    name: Literal["reweighted_wake_sleep"] = "reweighted_wake_sleep"
    scoring: ClassVar[str] = "fixed draws"
    num_particles: int = Field(default=5, ge=2)

    def value(self, record, rows, beta):
        log_w = log_weight(record, self.name).detach()
        weight = log_w.softmax(0)
        both = total(record.log_p, self.name) + total(record.log_q, self.name)
        return with_gradient_of(rows.mean(log_mean(log_w)), rows.mean((weight * both).sum(0)))
