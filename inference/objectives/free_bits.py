"""The ELBO with free bits."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from inference.errors import PairError
from inference.objectives.base import Rows
from inference.objectives.kl_terms import KLObjective, in_plate, kl_by_number, kl_of, likelihood_of
from inference.pair import Pair
from inference.record import LogWeights


class FreeBits(KLObjective, name="free_bits"):
    """E_q[log p(x|z)] - beta sum_j max(nats, KL_j), nats per datum.

    KL_j is the batch's mean of a group's KL term: what it has below `nats` is free, so that no
    group is given up early in training. A group is a latent site (`per` `site`), or each number of
    a latent's vector (`number`, which takes independent numbers in guide and model; a discrete site
    is one group). The maximum is of the batch's mean, as in the source, not of each datum's KL.
    Latents outside the data plate, such as a decoder's weights, are weighed as in the ELBO: their
    share of a datum lies below any bound, so that all of it would be free.
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
        sites = kl_of(record, rows, self.kl)
        groups, whole = [], []  # those with free bits, and those that are no group
        for name, kl in sites.items():
            paired = name in record.log_q and name in record.latents
            if not paired or not in_plate(record, name):
                whole.append(kl)
            elif self.per == "site" or _is_code(record, name):
                groups.append(kl.clamp(min=self.nats))
            else:
                numbers = kl_by_number(record, name, rows, self.kl)
                groups.append(numbers.clamp(min=self.nats).sum())
        return value - beta * torch.stack([*groups, *whole]).sum()


def _is_code(record: LogWeights, name: str) -> bool:
    return record.draws[0].guide_fn[name].support.is_discrete
