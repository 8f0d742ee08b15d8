"""The bound of held-out data, recorded and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.capture import capture
from inference.compiling import compile_graph
from inference.isolation import own_randomness, validation
from inference.objectives.base import Objective
from inference.optimizer import by_name
from inference.pair import Pair
from inference.particles import record_of
from inference.precision import products
from inference.suitability import check_gradients
from inference.tracing import check_particles, hold_against_eager, site_values

# Compiling takes 5 to 20 seconds and saves some milliseconds a batch: repaid after so many.
BATCHES_TO_REPAY = 500


class RecordedBound:
    """The objective at beta = 1 of batches like one, without gradients, in nats per datum.

    Raises: `Untraceable`, `CompilationError`.
    """

    def __init__(
        self,
        pair: Pair,
        objective: Objective,
        num_data: int,
        batch: Sequence[Tensor],
        *,
        vectorize: bool,
        precision: str,
    ):
        check_particles(objective, vectorize=vectorize)
        self.doubtful = True  # not compared with the handlers since user code ran
        self.parameters = by_name()
        self._complaints: list[str] = []

        def loss(*data: Tensor) -> tuple[Tensor, Tensor]:
            with validation(False), products(precision), torch.no_grad():
                record = record_of(pair, data, objective.num_particles, vectorize=vectorize)
            check_gradients(record, pair)  # an eager bound would not be of this record
            values = site_values(record)
            self._complaints[:] = values
            scores = torch.stack([v.double() for v in values.values()])
            return objective.loss(record, 1.0, num_data), scores

        self._eager = loss
        with own_randomness(), torch.no_grad():
            self._graph = capture(loss, batch, list(self.parameters.values()))
            examples = [t.detach().clone() for t in (*self.parameters.values(), *batch)]
            self._run: Callable = compile_graph(self._graph, examples)

    @torch.no_grad()
    def __call__(self, batch: Sequence[Tensor]) -> float:
        loss, _ = self._run(*self.parameters.values(), *batch)
        return -float(loss)

    def check(self, batch: Sequence[Tensor]) -> None:
        """Is it still what the handlers compute? Raises: `Untraceable` if not."""
        hold_against_eager(
            self._eager, self._graph, self.parameters, tuple(batch), self._complaints
        )
