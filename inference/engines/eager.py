"""The reference engine: `pyro.infer.SVI` itself."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from torch import Tensor

from inference.engines.base import Engine
from inference.errors import NonFiniteError
from inference.isolation import random_state, set_random_state, validation
from inference.pair import GivenSubsample, sample_sites
from inference.precision import products


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

    def _rows(self, batch: tuple[Tensor, ...]) -> AbstractContextManager:
        """A plate that declares the full size stands for the rows at hand, not for drawn ones."""
        if self.pair.subsampling != "prescaled":
            return nullcontext()
        return GivenSubsample(self.pair.plate, torch.arange(len(batch[0]), device=self.device))  # type: ignore[arg-type]

    @torch.no_grad()
    def _culprit(self, batch: tuple[Tensor, ...]) -> str:
        """The first site whose value or density is not finite, with the same noise."""
        with validation(False), products(self.precision), self._rows(batch):
            guide_trace = poutine.trace(self.guide).get_trace(*batch)
            replayed = poutine.replay(self.model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*batch)
            for part, trace in (("guide", guide_trace), ("model", model_trace)):
                for name, site in sample_sites(trace).items():
                    if not _finite(site["value"]):
                        return f"; site '{name}' of the {part} drew a value that is not finite"
                    if not _finite(site["fn"].log_prob(site["value"])):
                        return f"; site '{name}' of the {part} has a log-density that is not finite"
        return ""


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())
