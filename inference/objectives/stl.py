"""The ELBO with path derivatives: "sticking the landing"."""

from __future__ import annotations

from typing import ClassVar, Literal

from inference.objectives.base import Objective, log_weight


class STL(Objective):
    """The value of `elbo`; its gradient without the guide's score term (arXiv:1703.09194).

    The score has mean 0 but for its noise: where q(z|x) = p(z|x) this gradient has none.
    """

    optimum: ClassVar[str] = "that of elbo"
    scoring: ClassVar[str] = "stopped"
    name: Literal["stl"] = "stl"

    def value(self, record, rows, beta):
        return rows.mean(log_weight(record, self.name, stopped=True).mean(0))
