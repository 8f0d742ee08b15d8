"""The importance weighted bound with doubly reparametrized gradients."""

from __future__ import annotations

from typing import ClassVar

from pydantic import PositiveInt
from torch import Tensor

from inference.objectives.base import Objective, Rows
from inference.objectives.weights import log_mean, stopped_log_weight, with_gradient_of
from inference.record import LogWeights
from inference.stopped import Scoring


class DReG(Objective, name="dreg"):
    """The value of `iwae` with gradients of the guide that have no score term.

        d/dtheta: sum_k w~_k d log w_k / dtheta,   d/dphi: sum_k w~_k^2 (d log w_k / dz_k) dz_k/dphi

    with w~ the normalized weights: unbiased as those of `iwae`, with less variance. Parameters that
    stand in p as well (the guide's, in a VampPrior) get the first kind there. Every draw passes a
    tap before it is scored, where its gradient is multiplied by w~_k once more; draws that the
    guide makes of other draws do not pass it, so that no factor comes twice. The guide is run
    twice a step. Source: arXiv:1810.04152.
    """

    optimum: ClassVar[str] = (
        "that of iwae: log p(x), reached where q(z|x) = p(z|x), and for any guide as K grows"
    )
    scoring: ClassVar[Scoring] = "stopped"
    weighs_draws: ClassVar[bool] = True
    num_particles: PositiveInt = 5

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        log_w = stopped_log_weight(record, self.name)
        weight = log_w.detach().softmax(0)
        record.scale_taps(weight)
        return with_gradient_of(rows.mean(log_mean(log_w)), rows.mean((weight * log_w).sum(0)))
