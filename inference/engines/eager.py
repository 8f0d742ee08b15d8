"""The reference engine: `pyro.infer.SVI` itself."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from inference.errors import NonFiniteError
from inference.isolation import random_state, set_random_state, validation
from inference.objectives.elbo import ELBO
from inference.optimizer import SingleOptimizer
from inference.pair import GivenSubsample, Pair, frame_of, sample_sites


class PerDatum(Messenger):
    """Scale sites to nats per datum, and the KL terms by beta.

    Plate sites weigh 1/batch and global sites 1/N, so that the loss is the whole data set's
    negative ELBO divided by N; clip norms and learning rates do not depend on N.
    """

    def __init__(self, pair: Pair, num_data: int):
        super().__init__()
        self.pair, self.num_data, self.beta = pair, num_data, 1.0
        self.keep: Tensor | None = None  # of a plate's rows, those that count

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        frame = frame_of(msg, self.pair.plate)
        # A plate that subsamples has scaled by full_size / size already.
        scale = 1 / (self.num_data if frame is None else (frame.full_size or frame.size))
        if self.keep is not None and frame is not None:
            keep = self.keep.reshape(-1, *(1 for _ in range(-frame.dim - 1)))
            msg["mask"] = keep if msg["mask"] is None else msg["mask"] & keep
            scale *= len(self.keep) / int(self.keep.sum())
        if not msg["is_observed"]:
            scale *= self.beta
        msg["scale"] = msg["scale"] * scale


class Eager:
    """One SVI step at a time; Pyro's validation is on for the first."""

    name = "eager"

    def __init__(
        self,
        pair: Pair,
        objective: ELBO,
        optimizer: SingleOptimizer,
        num_data: int,
        device: torch.device,
        *,
        vectorize: bool,
    ):
        self.pair, self.device = pair, device
        self.handler = PerDatum(pair, num_data)
        self.model, self.guide = self.handler(pair.model), self.handler(pair.guide)
        # One dimension more than the pair's plates: for the particles.
        loss = objective.pyro_loss(vectorize=vectorize, max_plate_nesting=pair.max_plate_nesting)
        self.loss = loss

        def loss_and_grads(*args, **kwargs) -> float:
            with warnings.catch_warnings():
                # Pyro warns of a NaN loss; here it is an error.
                warnings.filterwarnings("ignore", "Encountered NaN")
                value = loss.loss_and_grads(*args, **kwargs)
            if not abs(value) < float("inf"):
                raise NonFiniteError(f"the loss is {value}")
            return value

        self.svi = SVI(self.model, self.guide, optimizer, loss.loss, loss_and_grads)
        self._checked = False

    def step(self, batch: tuple[Tensor, ...], beta: float) -> float:
        """One update of the weights; the objective before it, in nats per datum.

        Raises: `NonFiniteError` before the weights are touched, naming the first culprit.
        """
        self.handler.beta = beta
        before = random_state(self.device)
        try:
            with validation(not self._checked):
                objective = -self.svi.step(*batch)
        except (NonFiniteError, ValueError) as error:
            if isinstance(error, ValueError) and "found invalid values" not in str(error):
                raise
            set_random_state(before, self.device)
            for parameter in pyro.get_param_store()._params.values():
                parameter.grad = None  # a later training would add to it
            culprit = self._culprit(batch)
            # Pyro's validation lists every value; its first words are enough.
            said = str(error).partition(", but found invalid values")[0]
            raise NonFiniteError(f"{said}{culprit}") from None
        self._checked = True
        return objective

    @torch.no_grad()
    def evaluate(self, batch: tuple[Tensor, ...]) -> float:
        """The bound at beta = 1, in nats per datum."""
        self.handler.beta = 1.0
        with validation(False):
            return -self.svi.evaluate_loss(*batch)

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

    @torch.no_grad()
    def _culprit(self, batch: tuple[Tensor, ...]) -> str:
        """The first site whose value or density is not finite, with the same noise."""
        with validation(False):
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
