"""The thermodynamic variational objective."""

from __future__ import annotations

from itertools import pairwise
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from inference.objectives.base import Objective, Rows
from inference.objectives.weights import log_guide, log_weight, with_gradient_of
from inference.record import LogWeights
from inference.stopped import Scoring


class Thermodynamic(Objective, name="thermodynamic"):
    """The left Riemann sum of int_0^1 E_b[log w] db = log p(x).

        sum_j (b_{j+1} - b_j) E_{b_j}[log w],   E_b under q(z|x)^(1 - b) p(x, z)^b, normalized

    by the K draws of the guide, reweighted by w^b. `partitions` intervals: the first ends at
    `first`, the others are equally long in log b; one interval is the ELBO. It lies between the
    ELBO and log p(x). Gradients are the paper's covariance estimator,

        E_b[d log w] + Cov_b(log w, d log of the path's density),

    in which no draw is differentiated: latents may be discrete. Their bias is of order 1/K.
    Source: arXiv:1907.00031.
    """

    optimum: ClassVar[str] = "log p(x), reached where q(z|x) = p(z|x)"
    scoring: ClassVar[Scoring] = "fixed draws"
    weighs_draws: ClassVar[bool] = True
    num_particles: int = Field(default=10, ge=2)
    partitions: PositiveInt = 5
    first: float = Field(default=0.03, gt=0, lt=1)

    def points(self) -> list[float]:
        """b_0 = 0 to b_J = 1."""
        if self.partitions == 1:
            return [0.0, 1.0]
        steps = self.partitions - 1
        return [0.0, *(self.first ** (1 - j / steps) for j in range(steps + 1))]

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        log_w, log_q = log_weight(record, self.name), log_guide(record, self.name)
        fixed = log_w.detach()
        points = self.points()
        value = surrogate = torch.zeros_like(fixed[0])
        for low, high in pairwise(points):
            weight = (low * fixed).softmax(0)
            mean = (weight * fixed).sum(0)
            value = value + (high - low) * mean
            path = log_q + low * log_w  # (1 - b) log q + b log p(x, z)
            change = (weight * (log_w + (fixed - mean) * path)).sum(0)
            surrogate = surrogate + (high - low) * change
        return with_gradient_of(rows.mean(value), rows.mean(surrogate))
