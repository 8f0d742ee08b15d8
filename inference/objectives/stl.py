"""The ELBO with path derivatives: "sticking the landing"."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from inference.objectives.base import Objective, Rows
from inference.record import LogWeights
from inference.stopped import Scoring


class STL(Objective, name="stl"):
    """The value of `elbo`; its gradient without the guide's score term.

        d/dphi: (d/dz [log p(x, z) - log q(z|x)]) dz/dphi

    The score's mean is 0: what it adds is noise, which is all the noise that there is where
    q(z|x) = p(z|x). The guide is run twice a step. Source: arXiv:1703.09194.
    """

    optimum: ClassVar[str] = "that of elbo: log p(x), reached where q(z|x) = p(z|x)"
    scoring: ClassVar[Scoring] = "stopped"

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        terms = [rows.mean(score.mean(0)) for score in record.log_p.values()]
        terms += [-rows.mean(score.mean(0)) for score in record.log_q_stopped.values()]
        return torch.stack(terms).sum()
