"""InfoVAE: a maximum mean discrepancy between draws of q(z) and of the prior."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from inference.objectives.base import Rows
from inference.objectives.kl_terms import KLObjective, weighted_elbo
from inference.objectives.single_latent import single_latent
from inference.record import LogWeights


class InfoVAE(KLObjective, name="info_vae"):
    """E_q[log p(x|z)] - (1 - alpha) KL(q(z|x) || p(z)) - (alpha + weight - 1) MMD^2(q(z), p(z)).

    q(z) is the aggregate of q(z|x) over data. alpha = 1 (the default) is the MMD-VAE, whose KL term
    is gone. The discrepancy is the unbiased estimate from the batch's draws z_n and as many draws
    v_n of the prior,

        MMD^2 = mean_{n != m} k(z_n, z_m) + mean_{n != m} k(v_n, v_m) - 2 mean_{n, m} k(z_n, v_m),
        k(a, b) = exp(-|a - b|^2 / L),   L numbers in z,

    averaged over particles; a batch of one datum has none. Draws of a prior without a
    reparametrized sample carry no gradient: it learns by the other terms. It takes one latent site.
    Source: arXiv:1706.02262.
    """

    optimum: ClassVar[str] = (
        "for alpha < 1, p(x) that of the data and q(z|x) = p(z|x), where the families hold both; "
        "at alpha = 1 the best reconstruction with q(z) = p(z); its value bounds nothing"
    )
    enumerates: ClassVar[bool] = False
    alpha: float = Field(default=1.0, le=1)
    weight: float = Field(default=1000.0, ge=0)

    @model_validator(mode="after")
    def _no_reward_of_discrepancy(self):
        if self.alpha + self.weight < 1:
            raise ValueError(
                f"alpha {self.alpha} and weight {self.weight}: their sum must be 1 or more, or the "
                "discrepancy would be rewarded; raise weight"
            )
        return self

    @property
    def weighs_kl(self) -> bool:
        return True

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        value = weighted_elbo(record, rows, self.kl, beta * (1 - self.alpha))
        name = single_latent(record, self.name)
        found = []
        for part in record.draws:
            fn, z = part.model_fn[name], part.latents[name]
            prior = fn.rsample() if fn.has_rsample else fn.sample()
            shape = (-1, z.shape[-1 - fn.event_dim], fn.event_shape.numel())  # [K, rows, L]
            found.append(discrepancy(z.reshape(shape), prior.expand_as(z).reshape(shape)))
        return value - (self.alpha + self.weight - 1) * torch.stack(found).mean()


def discrepancy(z: Tensor, v: Tensor) -> Tensor:
    """MMD^2 of draws `[K, rows, L]`, averaged over K; 0 for one row."""
    rows = z.shape[1]
    if rows < 2:
        return z.new_zeros((), dtype=torch.float64)

    def kernel(a: Tensor, b: Tensor) -> Tensor:  # [K, rows, rows]
        squares = (a.unsqueeze(2) - b.unsqueeze(1)).double().square().sum(-1)
        return torch.exp(-squares / z.shape[-1])

    def others(k: Tensor) -> Tensor:
        # k(a, a) = 1, without a gradient.
        return (k.sum((1, 2)) - rows) / (rows * (rows - 1))

    return (others(kernel(z, z)) + others(kernel(v, v)) - 2 * kernel(z, v).mean((1, 2))).mean()
