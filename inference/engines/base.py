"""What every engine offers: steps that update the weights, and bounds of held-out data."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from inference.engines.record_loss import RecordLoss
from inference.engines.scaled import PerDatum
from inference.errors import EngineWarning
from inference.isolation import validation
from inference.objectives.base import Objective
from inference.objectives.elbo import ELBO
from inference.optimizer import SingleOptimizer
from inference.pair import GivenSubsample, Pair
from inference.precision import products


class Engine:
    """Runs training steps of one pair.

    An engine adds up, over an epoch, the objective (times data) and the gradient norm of its
    steps. Reading the sums may wait for a device, so the training loop does it every `read_every`
    steps and where it needs them.
    """

    name: str
    read_every: int = 1

    def __init__(
        self,
        pair: Pair,
        objective: Objective,
        optimizer: SingleOptimizer,
        num_data: int,
        device: torch.device,
        *,
        vectorize: bool,
        modules: Sequence[nn.Module] = (),
        precision: str = "float32",
    ):
        self.pair, self.objective, self.optimizer = pair, objective, optimizer
        self.num_data, self.device, self.vectorize = num_data, device, vectorize
        self.modules, self.precision = list(modules), precision
        self.remarks: list[str] = []
        self.handler = PerDatum(pair, num_data)
        # Bounds of held-out data are ELBOs, whatever is trained: so they can be compared.
        self.bound: Objective = objective
        if not isinstance(objective, ELBO):
            self.bound = ELBO(num_particles=objective.num_particles)
        self.pyro_loss: Any = self._loss_of(objective)
        self.bound_loss: Any = self._loss_of(self.bound)
        self.model, self.guide = self.handler(pair.model), self.handler(pair.guide)

    def remark(self, sentence: str) -> None:
        """Say, once and in the result, how this training is run otherwise than announced."""
        self.remarks.append(sentence)
        warnings.warn(f"the {self.name} engine: {sentence}", EngineWarning, stacklevel=2)

    def doubt(self) -> None:
        """Code of the user's has run between steps: it may have changed more than tensors."""

    def _loss_of(self, objective: Objective) -> Any:
        """Pyro's own estimator of an objective; where it has none, a function of one record."""
        found = None
        if not self.pair.enumerated:
            found = objective.pyro_loss(
                vectorize=self.vectorize, max_plate_nesting=self.pair.max_plate_nesting
            )
        return found or RecordLoss(
            self.pair, objective, self.num_data, self.handler, vectorize=self.vectorize
        )

    def step(self, batch: tuple[Tensor, ...], beta: float, size: int) -> None:
        """One update of the weights from `size` data; its objective, before it, joins the sums.

        Raises: `NonFiniteError`, at the latest when the sums are read; no weight is touched by a
        step that is not finite, nor by one after it.
        """
        raise NotImplementedError

    def step_rows(
        self, arguments: tuple[Tensor, ...], rows: Tensor, beta: float, size: int
    ) -> None:
        """The same of these rows of the data."""
        self.step(tuple(a[rows] for a in arguments), beta, size)

    def start(self, objective_sum: float, norm_sum: float) -> None:
        """Set the sums: zeros at an epoch's start, what a checkpoint holds when resuming."""
        raise NotImplementedError

    def sums(self) -> tuple[float, float]:
        """Objective (nats, times data) and gradient norm, summed since `start`."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self, batch: tuple[Tensor, ...], often: int = 1) -> float:
        """The ELBO at beta = 1, in nats per datum; of such batches, `often` in the training."""
        self.handler.beta = 1.0
        with validation(False), products(self.precision), self._rows(batch):
            return -self.bound_loss.loss(self.model, self.guide, *batch)

    def _rows(self, batch: tuple[Tensor, ...]) -> AbstractContextManager:
        """A plate that declares the full size stands for the rows at hand, not for drawn ones."""
        if self.pair.subsampling != "prescaled":
            return nullcontext()
        return GivenSubsample(self.pair.plate, torch.arange(len(batch[0]), device=self.device))  # type: ignore[arg-type]

    def evaluate_rows(self, arguments: tuple[Tensor, ...], start: int) -> float:
        """The same, of as many data from `start` on as the pair's own plate takes.

        At the end of the data, where fewer are left, rows seen before fill up and do not count.
        """
        size, plate = self.pair.subsample_size, self.pair.plate
        first = min(start, len(arguments[0]) - size)
        rows = torch.arange(first, first + size, device=arguments[0].device)
        self.handler.keep = rows >= start
        try:
            with GivenSubsample(plate, rows):  # type: ignore[arg-type]
                return self.evaluate(arguments)
        finally:
            self.handler.keep = None
