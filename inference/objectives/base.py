"""What training maximises: functions of one record of draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, PositiveInt
from torch import Tensor

from inference.errors import PairError
from inference.record import LogWeights


class Objective(BaseModel):
    """A function of the log-weights record, in nats per datum, larger is better.

    A subclass writes `value`, and says what its optimum is. `scoring` is what its gradients need of
    a record: `plain`; `stopped` (log q's own parameters held still); `doubly` (that, and draws that
    pass through `record.taps` before they are scored).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimum: ClassVar[str] = ""
    scoring: ClassVar[str] = "plain"
    name: str
    num_particles: PositiveInt = 1

    def warmup(self, steps_per_epoch: int) -> int:
        """Steps until beta is 1."""
        return 0

    def beta(self, step: int, steps_per_epoch: int) -> float:
        """The weight of the KL terms at a step counted from 0, for objectives that warm up."""
        return 1.0

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        """The objective, a scalar, float64."""
        raise NotImplementedError(f"{type(self).__name__} must write value(record, rows, beta)")

    def loss(
        self,
        record: LogWeights,
        beta: float | Tensor,
        num_data: int,
        keep: Tensor | None = None,
    ) -> Tensor:
        """-objective of one record; sites outside the data plate count 1/`num_data`."""
        return -self.value(record, Rows(num_data, keep), beta)

    def pyro_loss(self, *, vectorize: bool, max_plate_nesting: int) -> Any:
        """Pyro's own estimator of this objective; None where it has none."""
        return None


class Rows:
    """Means over the data of a batch, of those rows that `keep [rows]` marks."""

    def __init__(self, num_data: int, keep: Tensor | None):
        self.num_data, self.keep = num_data, keep

    def mean(self, values: Tensor) -> Tensor:
        """Of `[rows]`; of what stands outside the data plate `[]`, its share."""
        if values.dim() == 0:
            return values / self.num_data
        if self.keep is None:
            return values.mean()
        return (values * self.keep).sum() / self.keep.sum()


def total(scores: Mapping[str, Tensor], what: str) -> Tensor:
    """The sum over sites `[K, rows]`. Raises: `PairError` for sites outside the plate."""
    for name, score in scores.items():
        if score.dim() < 2:
            raise PairError(
                f"site '{name}' stands outside the data plate, so {what} has no weights of each "
                "datum; train by objective 'elbo'"
            )
    return sum(scores.values())  # type: ignore[return-value]


def log_weight(record: LogWeights, what: str, *, stopped: bool = False) -> Tensor:
    """log w `[K, rows]`; with `stopped`, log q as a function of the draws alone."""
    log_q = record.log_q
    if stopped:
        assert record.log_q_stopped is not None
        log_q = record.log_q_stopped
    return total(record.log_p, what) - total(log_q, what)


def log_mean(log_w: Tensor) -> Tensor:
    """log 1/K sum_k w_k `[rows]`."""
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """The first's value, the second's gradient."""
    return value.detach() + surrogate - surrogate.detach()
