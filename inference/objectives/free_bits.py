"""The ELBO with free bits."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from inference.errors import PairError
from inference.objectives.base import Rows
from inference.objectives.kl_terms import KLObjective, kl_by_number, kl_of, likelihood_of
from inference.pair import Pair
from inference.record import LogWeights


class FreeBits(KLObjective, name="free_bits"):
    """E_q[log p(x|z)] - beta sum_j max(nats, KL_j), nats per datum.

    KL_j is the batch's mean of a group's KL term: what it has below `nats` is free, so that no
    group is given up early in training. A group is a latent site (`per` `site`), or each number of
    a latent's vector (`number`, which takes independent numbers in guide and model). The maximum
    is of the batch's mean, as in the source, not of each datum's KL.
    Source: arXiv:1606.04934, appendix C.8.
    """

    optimum: ClassVar[str] = (
        "the ELBO's, wherever every group's KL exceeds `nats` there; else the best reconstruction "
        "with that KL for free, and no bound on log p(x) is gained by it"
    )
    nats: float = Field(default=0.5, gt=0)
    per: Literal["site", "number"] = "number"

    @property
    def weighs_kl(self) -> bool:
        return True

    def check(self, pair: Pair) -> None:
        super().check(pair)
        if self.per == "number" and pair.scaled_sites:
            raise PairError(
                f"site '{pair.scaled_sites[0]}' is scaled by poutine.scale, which KL terms of "
                "single numbers do not see; use per='site', or remove the scale"
            )

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        value = likelihood_of(record, rows)
        if self.per == "site":
            groups = torch.stack(list(kl_of(record, rows, self.kl).values()))
        else:
            names = [name for name in record.log_q if name in record.latents]
            groups = torch.cat([kl_by_number(record, n, rows, self.kl) for n in names])
        return value - beta * groups.clamp(min=self.nats).sum()
