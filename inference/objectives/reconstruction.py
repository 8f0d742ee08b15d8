"""The objective of a plain autoencoder."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from inference.objectives.base import Objective, Rows
from inference.objectives.kl_terms import likelihood_of
from inference.record import LogWeights


class Reconstruction(Objective, name="reconstruction"):
    """E_q[log p(x|z)], nats per datum: the ELBO without its KL terms.

    With a guide of points and a Gaussian of fixed sigma, squared error: a plain autoencoder
    (Hinton and Salakhutdinov, Science 313, 2006). No bound on log p(x).
    """

    optimum: ClassVar[str] = (
        "no density of x: the best reconstruction, which a guide without any spread gives"
    )
    enumerates: ClassVar[bool] = True

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        return likelihood_of(record, rows)
