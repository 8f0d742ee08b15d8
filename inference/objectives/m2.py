"""The bound of semi-supervised models, with the term that trains their classifier."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import Tensor

from inference.errors import PairError
from inference.objectives.base import Rows
from inference.objectives.kl_terms import KLObjective, weighted_elbo
from inference.record import LogWeights

NOTE = "log_classifier"


class M2(KLObjective, name="m2"):
    """ELBO + alpha log q(y|x) where the label is known, nats per datum (arXiv:1406.5298, eq. 9).

    The guide notes log q(y|x) `[rows]` at known labels, 0 where there is none, by
    `pyro.deterministic("log_classifier", ...)`. `alpha` weighs it for each labelled datum: the
    paper's 0.1 N for all of them is 0.1 N / (number of labels) here.
    """

    optimum: ClassVar[str] = (
        "log p(x, y) of labelled and log p(x) of other data, where q(y, z|x) is the posterior and "
        "the classifier is sure of all labels; elsewhere alpha trades the two"
    )
    alpha: float = Field(default=60.0, ge=0)

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        value = weighted_elbo(record, rows, self.kl, beta)
        told = [part.notes[NOTE] for part in record.draws if NOTE in part.notes]
        if not told:
            raise PairError(
                f"objective 'm2': the guide notes no '{NOTE}'; write pyro.deterministic("
                f"'{NOTE}', ...) with log q(y|x) of known labels there, or train by 'elbo'"
            )
        # The same in every draw: the classifier sees x alone.
        return value + self.alpha * rows.mean(told[0].reshape(-1, told[0].shape[-1])[0].double())
