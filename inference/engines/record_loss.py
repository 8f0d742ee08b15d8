"""A loss for `pyro.infer.SVI` that is a function of one record of the pair."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.engines.scaled import PerDatum
from inference.objectives.base import Objective
from inference.pair import Pair
from inference.tracing import evaluate_loss


class RecordLoss:
    """-objective from one record, with Pyro's interface of a loss.

    For objectives that Pyro has no estimator of, and for discrete sites that are summed over:
    Pyro's `TraceEnum_ELBO` asks that all sites have one scale, which warm-up and latents outside
    the plate do not; without these the two agree.
    """

    def __init__(
        self, pair: Pair, objective: Objective, num_data: int, scaled: PerDatum, *, vectorize: bool
    ):
        self.pair, self.objective, self.num_data = pair, objective, num_data
        self.scaled, self.vectorize_particles = scaled, vectorize

    def differentiable_loss(self, model, guide, *batch) -> Tensor:
        loss, _ = evaluate_loss(
            self.pair,
            self.objective,
            batch,
            self.scaled.beta,
            self.num_data,
            vectorize=self.vectorize_particles,
            keep=self.scaled.keep,
        )
        return loss

    @torch.no_grad()
    def loss(self, model, guide, *batch) -> float:
        return float(self.differentiable_loss(model, guide, *batch).detach())

    def loss_and_grads(self, model, guide, *batch) -> float:
        loss = self.differentiable_loss(model, guide, *batch)
        loss.backward()
        return float(loss.detach())
