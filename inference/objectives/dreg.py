"""The importance weighted bound with doubly reparametrized gradients."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt

from inference.objectives.base import Objective, log_mean, log_weight, with_gradient_of


class DReG(Objective):
    """The value of `iwae`; gradients of the guide without their score term (arXiv:1810.04152).

        d/dtheta: sum_k w~_k d log w_k / dtheta,   d/dphi: sum_k w~_k^2 (d log w_k / dz_k) dz_k/dphi

    with w~ the normalized weights: unbiased as those of `iwae`, with less variance. Parameters that
    stand in p as well (the guide's, in a VampPrior) get the first kind there. Every draw passes a
    tap before it is scored, where its gradient is multiplied by w~_k once more; draws that the
    guide makes of other draws do not pass it, so that no factor comes twice.
    """

    optimum: ClassVar[str] = "that of iwae"
    scoring: ClassVar[str] = "doubly"
    name: Literal["dreg"] = "dreg"
    num_particles: PositiveInt = 5

    def value(self, record, rows, beta):
        log_w = log_weight(record, self.name, stopped=True)
        weight = log_w.detach().softmax(0)
        record.scale_taps(weight)
        surrogate = rows.mean((weight * log_w).sum(0))
        return with_gradient_of(rows.mean(log_mean(log_w.detach())), surrogate)
