"""A loss for `pyro.infer.SVI` where discrete sites are summed over."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.engines.scaled import PerDatum
from inference.errors import PairError
from inference.isolation import own_randomness, validation
from inference.objectives.elbo import ELBO
from inference.pair import Pair
from inference.particles import record_of
from inference.record import LogWeights
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
        _check_kl_terms(record, self.objective)
        return self.objective.loss(record, self.scaled.beta, self.num_data, self.scaled.keep)

    @torch.no_grad()
    def loss(self, model, guide, *batch) -> float:
        return float(self.differentiable_loss(model, guide, *batch).detach())

    def loss_and_grads(self, model, guide, *batch) -> float:
        loss = self.differentiable_loss(model, guide, *batch)
        loss.backward()
        return float(loss.detach())


def check_warmup(pair: Pair, objective: ELBO, arguments: tuple[Tensor, ...]) -> None:
    """Refuse warm-up where the model's sums leave no KL term by itself. Raises: `PairError`."""
    if not pair.enumerated or not (objective.warmup_epochs or objective.warmup_steps):
        return
    with own_randomness(0), validation(False), torch.no_grad():
        _check_kl_terms(record_of(pair, arguments, 1, vectorize=False), objective)


def _check_kl_terms(record: LogWeights, objective: ELBO) -> None:
    if record.entangled and (objective.warmup_epochs or objective.warmup_steps):
        latent, observed = record.entangled[0]
        raise PairError(
            f"sites '{latent}' and '{observed}' depend on the same enumerated values, over which "
            f"the model sums log p({latent}) and log p({observed}|...) together, so warm-up cannot "
            f"weigh the first alone; train without warm-up, or enumerate in the guide, too"
        )
