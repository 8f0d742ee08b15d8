"""The thermodynamic variational objective."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt

from inference.objectives.base import Objective, log_weight, total, with_gradient_of


class Thermodynamic(Objective):
    """The left Riemann sum of int_0^1 E_beta[log w] dbeta = log p(x) (arXiv:1907.00031).

    E_beta is under q^(1 - beta) p(z, x)^beta, by the K draws reweighted by w^beta. `partitions`
    intervals, the first up to `first` and the others of equal length in log beta; one interval is
    the ELBO. Gradients are the covariance estimator, without differentiated draws.
    """

    optimum: ClassVar[str] = "log p(x), where q(z|x) = p(z|x)"
    scoring: ClassVar[str] = "fixed draws"
    name: Literal["thermodynamic"] = "thermodynamic"
    num_particles: int = Field(default=10, ge=2)
    partitions: PositiveInt = 5
    first: float = Field(default=0.03, gt=0, lt=1)

    def value(self, record, rows, beta):
        log_w = log_weight(record, self.name)
        log_p, log_q = total(record.log_p, self.name), total(record.log_q, self.name)
        points = torch.cat(
            [
                torch.zeros(1, dtype=torch.float64),
                torch.logspace(math.log10(self.first), 0, self.partitions, dtype=torch.float64),
            ]
        ).to(log_w.device)
        if self.partitions == 1:
            points = points.new_tensor([0.0, 1.0])
        value = surrogate = log_w.new_zeros(())
        fixed = log_w.detach()
        for low, high in zip(points[:-1], points[1:], strict=True):
            weight = (low * fixed).softmax(0)
            mean = (weight * fixed).sum(0)
            value = value + (high - low) * rows.mean(mean)
            # d E[f] = E[d f] + Cov(f, d log of the path's density), f = log w.
            path = (1 - low) * log_q + low * log_p
            grown = weight * (log_w + (fixed - mean) * path)
            surrogate = surrogate + (high - low) * rows.mean(grown.sum(0))
        return with_gradient_of(value, surrogate)
