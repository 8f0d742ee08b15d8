"""The objective of the beta-VAE."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from inference.objectives.base import Rows
from inference.objectives.kl_terms import KLObjective, weighted_elbo
from inference.record import LogWeights


class BetaELBO(KLObjective, name="beta_elbo"):
    """E_q[log p(x|z)] - weight KL(q(z|x) || p(z)), the beta-VAE's, nats per datum.

    `weight` is the paper's beta, which warm-up multiplies. Above 1 it lies below the ELBO, and so
    below log p(x); below 1 it bounds nothing. Source: Higgins et al. 2017 (ICLR, beta-VAE).
    """

    optimum: ClassVar[str] = (
        "no density of x: of all models and guides, the best reconstruction for its KL, at the "
        "exchange rate `weight`"
    )
    weight: float = Field(default=4.0, gt=0)

    @property
    def weighs_kl(self) -> bool:
        return self.weight != 1 or super().weighs_kl

    def beta(self, step: int, steps_per_epoch: int) -> float:
        return self.weight * super().beta(step, steps_per_epoch)

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        return weighted_elbo(record, rows, self.kl, beta)
