"""Importance weights of a record, for the objectives that weigh draws."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from inference.errors import PairError
from inference.record import LogWeights


def log_weight(record: LogWeights, what: str) -> Tensor:
    """log w `[K, rows]` = log p(x, z) - log q(z|x); `[K]` where no site stands in a data plate.

    `what`: the objective's name. Raises: `PairError` for sites outside the plate.
    """
    return _total(record, record.log_p, what) - _total(record, record.log_q, what)


def stopped_log_weight(record: LogWeights, what: str) -> Tensor:
    """The same, log q a function of the draws alone."""
    return _total(record, record.log_p, what) - _total(record, record.log_q_stopped, what)


def log_guide(record: LogWeights, what: str) -> Tensor:
    """log q of the draws: without the guide's factors, which are no density of theirs."""
    drawn = record.latents.keys() | record.auxiliary.keys()
    return _total(record, {n: s for n, s in record.log_q.items() if n in drawn}, what)


def log_mean(log_w: Tensor) -> Tensor:
    """log 1/K sum_k w_k `[rows]`."""
    return torch.logsumexp(log_w, 0) - math.log(len(log_w))


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """The first's value, the second's gradient."""
    return value.detach() + surrogate - surrogate.detach()


def _total(record: LogWeights, scores: dict[str, Tensor], what: str) -> Tensor:
    everything = {**record.log_q, **record.log_p}
    if any(score.dim() > 1 for score in everything.values()):
        for name, score in everything.items():
            if score.dim() < 2:
                raise PairError(
                    f"site '{name}' stands outside the data plate, so objective '{what}' has no "
                    "weights of each datum; train by objective 'elbo', or ask for one joint "
                    "weight with plate=None"
                )
    first = next(iter(everything.values()))
    return sum(scores.values(), start=torch.zeros_like(first))
