"""The objective of the beta-TCVAE: a heavier total correlation."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from inference.objectives.base import Rows
from inference.objectives.kl_terms import KLObjective, numbers_of, weighted_elbo
from inference.objectives.single_latent import single_latent
from inference.record import LogWeights


class TotalCorrelation(KLObjective, name="total_correlation"):
    """The ELBO, less (weight - 1) TC: the beta-TCVAE's, nats per datum.

        TC = KL(q(z) || prod_j q(z_j)) = E_q(z)[log q(z) - sum_j log q(z_j)],

    q(z) the aggregate of q(z|x) over N data. `weight` is the paper's beta; its alpha and gamma are
    1. Aggregates are estimated by minibatch-weighted sampling from a batch of M data,

        log q(z_n) ~ log 1/(N M) sum_m q(z_n | x_m),   log q(z_nj) likewise,

    which is biased; at M = N by (L - 1) log N, a constant. The guide's density of each datum is
    asked at the draws of all others, so it takes one latent site, a vector of numbers that are
    independent given x. Source: arXiv:1802.04942.
    """

    optimum: ClassVar[str] = (
        "no density of x: the ELBO's for weight 1; above, one whose latent numbers are independent "
        "over the data, at the price of the bound"
    )
    enumerates: ClassVar[bool] = False
    weight: float = Field(default=6.0, gt=0)

    @property
    def weighs_kl(self) -> bool:
        return True

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        value = weighted_elbo(record, rows, self.kl, beta)
        name = single_latent(record, self.name)
        found = []
        for part in record.draws:
            z, q = part.latents[name], numbers_of(part.guide_fn[name], name)
            if z.dim() == 2:  # no dimension of particles
                z = z.unsqueeze(0)
            # [K, M, L] as [M, K, 1, L], against the densities [K, M, L]: n, k, m, number.
            scores = q.log_prob(z.transpose(0, 1).unsqueeze(2)).double()
            size = math.log(rows.num_data * z.shape[1])
            whole = scores.sum(-1).logsumexp(2) - size
            numbers = (scores.logsumexp(2) - size).sum(-1)
            found.append((whole - numbers).mean())
        return value - (self.weight - 1) * torch.stack(found).mean()
