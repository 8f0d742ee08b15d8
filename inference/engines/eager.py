"""The reference engine: `pyro.infer.SVI` itself."""

from __future__ import annotations

import warnings

import pyro
import torch
from pyro.infer import SVI
from torch import Tensor

from inference.engines.base import Engine
from inference.errors import NonFiniteError
from inference.isolation import random_state, set_random_state, validation
from inference.particles import record_of
from inference.precision import products
from inference.tracing import first_bad, site_values


class Eager(Engine):
    """One SVI step at a time; Pyro's validation is on for the first."""

    name = "eager"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

        def loss_and_grads(*inputs, **options) -> float:
            with warnings.catch_warnings():
                # Pyro warns of a NaN loss; here it is an error.
                warnings.filterwarnings("ignore", "Encountered NaN")
                value = self.pyro_loss.loss_and_grads(*inputs, **options)
            if not abs(value) < float("inf"):
                raise NonFiniteError(f"the loss is {value}")
            return value

        self.svi = SVI(self.model, self.guide, self.optimizer, self.pyro_loss.loss, loss_and_grads)
        # Running statistics and the like, which a forward pass may change.
        self.buffers = [buffer for module in self.modules for buffer in module.buffers()]
        self._checked = False
        self._objective = self._norm = 0.0

    def start(self, objective_sum: float, norm_sum: float) -> None:
        self._objective, self._norm = objective_sum, norm_sum

    def sums(self) -> tuple[float, float]:
        return self._objective, self._norm

    def step(self, batch: tuple[Tensor, ...], beta: float, size: int) -> None:
        self.handler.beta = beta
        before = random_state(self.device)
        kept = [buffer.clone() for buffer in self.buffers]
        try:
            with validation(not self._checked), products(self.precision), self._rows(batch):
                objective = -self.svi.step(*batch)
        except (NonFiniteError, ValueError) as error:
            if isinstance(error, ValueError) and "found invalid values" not in str(error):
                raise
            set_random_state(before, self.device)
            for parameter in pyro.get_param_store()._params.values():
                parameter.grad = None  # a later training would add to it
            culprit = self._culprit(batch)
            for buffer, value in zip(self.buffers, kept, strict=True):
                buffer.copy_(value)
            # Pyro's validation lists every value; its first words are enough.
            said = str(error).partition(", but found invalid values")[0]
            raise NonFiniteError(f"{said}{culprit}") from None
        self._checked = True
        self._objective += size * objective
        self._norm += self.optimizer.grad_norm

    @torch.no_grad()
    def _culprit(self, batch: tuple[Tensor, ...]) -> str:
        """The first site whose value or density is not finite, with the same noise."""
        particles = self.objective.num_particles
        with validation(False), products(self.precision):
            record = record_of(self.pair, batch, particles, vectorize=self.vectorize)
        values = site_values(record)
        site = first_bad(values, map(float, values.values()))
        return f"; {site}" if site else ""
