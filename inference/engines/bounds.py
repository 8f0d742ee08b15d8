"""The bound of held-out data, recorded and compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import torch
from torch import Tensor

from inference.compiling import compile_graph
from inference.isolation import own_randomness, validation
from inference.log_weights import record_of
from inference.objectives.elbo import ELBO
from inference.pair import Pair
from inference.precision import products
from inference.tracing import capture, check_gradients

# Compiling takes 5 to 20 seconds and saves some milliseconds a tile.
REPAID_AFTER = 500


class RecordedBound:
    """The objective at beta = 1 of batches like one, without gradients, in nats per datum.

    Raises: `Untraceable`, `CompilationError`.
    """

    def __init__(
        self,
        pair: Pair,
        objective: ELBO,
        num_data: int,
        batch: Sequence[Tensor],
        *,
        vectorize: bool,
        precision: str,
    ):
        self.doubtful = False  # user code has run since it was last compared with the handlers
        self.parameters = list(pyro.get_param_store()._params.values())

        def loss(*data: Tensor) -> Tensor:
            with validation(False), products(precision):
                record = record_of(pair, data, objective.num_particles, vectorize=vectorize)
            check_gradients(record, pair)  # an eager bound would not be of this record
            return objective.loss(record, 1.0, num_data)

        with own_randomness(), torch.no_grad():
            graph = capture(lambda *data: (loss(*data),), batch, self.parameters)
            examples = [t.detach().clone() for t in (*self.parameters, *batch)]
            self._run: Callable = compile_graph(graph, examples)

    @torch.no_grad()
    def __call__(self, batch: Sequence[Tensor]) -> float:
        (loss,) = self._run(*self.parameters, *batch)
        return -float(loss)
