"""A loss for `pyro.infer.SVI` where discrete sites are summed over."""

from __future__ import annotations

import torch

from inference.engines.scaled import PerDatum
from inference.log_weights import record_of
from inference.objectives.elbo import ELBO
from inference.pair import Pair
from inference.tracing import check_gradients


class EnumeratedLoss:
    """-objective from one record of the pair, with Pyro's interface of a loss.

    Pyro's `TraceEnum_ELBO` asks that all sites have one scale, which warm-up and latents outside
    the plate do not; without these the two agree.
    """

    def __init__(
        self, pair: Pair, objective: ELBO, num_data: int, scaled: PerDatum, *, vectorize: bool
    ):
        self.pair, self.objective, self.num_data = pair, objective, num_data
        self.scaled, self.vectorize_particles = scaled, vectorize

    def differentiable_loss(self, model, guide, *batch) -> torch.Tensor:
        particles = self.objective.num_particles
        record = record_of(self.pair, batch, particles, vectorize=self.vectorize_particles)
        check_gradients(record, self.pair)
        return self.objective.loss(record, self.scaled.beta, self.num_data, self.scaled.keep)

    @torch.no_grad()
    def loss(self, model, guide, *batch) -> float:
        return float(self.differentiable_loss(model, guide, *batch).detach())

    def loss_and_grads(self, model, guide, *batch) -> float:
        loss = self.differentiable_loss(model, guide, *batch)
        loss.backward()
        return float(loss.detach())
