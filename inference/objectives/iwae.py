"""The importance weighted bound."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import PositiveInt

from inference.objectives.base import Objective, log_mean, log_weight


class IWAE(Objective):
    """E log 1/K sum_k w_k, w_k = p(x, z_k) / q(z_k|x) (arXiv:1509.00519).

    Between the ELBO (K = 1) and log p(x) (K to infinity). Gradients through all of it: those of the
    guide have a signal-to-noise ratio that falls as 1/sqrt K (arXiv:1802.04537); `dreg` mends that.
    """

    optimum: ClassVar[str] = "log p(x), where q(z|x) = p(z|x); with K large, for other guides too"
    name: Literal["iwae"] = "iwae"
    num_particles: PositiveInt = 5

    def value(self, record, rows, beta):
        return rows.mean(log_mean(log_weight(record, self.name)))
