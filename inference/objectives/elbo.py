"""The evidence lower bound."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, model_validator
from pyro.infer import Trace_ELBO
from torch import Tensor

from inference.record import LogWeights


class ELBO(BaseModel):
    """E_q[log p(x|z) + beta (log p(z) - log q(z|x))], nats per datum; beta = 1 is the bound.

    `num_particles` single-sample bounds are averaged. During warm-up (`warmup_epochs` or
    `warmup_steps`) beta grows linearly to 1 (arXiv:1602.02282). The optimum is log p(x), reached
    where q(z|x) = p(z|x). Gradients are Pyro's `Trace_ELBO` (reparametrized where possible, score
    function elsewhere, by the eager engine alone).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["elbo"] = "elbo"
    num_particles: PositiveInt = 1
    warmup_epochs: NonNegativeInt = 0
    warmup_steps: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_warmup(self):
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} and warmup_steps {self.warmup_steps}: "
                "give one of them"
            )
        return self

    def warmup(self, steps_per_epoch: int) -> int:
        """Steps until beta is 1."""
        return self.warmup_steps or self.warmup_epochs * steps_per_epoch

    def beta(self, step: int, steps_per_epoch: int) -> float:
        """The weight of the KL terms at a step counted from 0: above 0, and 1 after warm-up."""
        return min(1.0, (step + 1) / max(1, self.warmup(steps_per_epoch)))

    def loss(
        self,
        record: LogWeights,
        beta: float | Tensor,
        num_data: int,
        keep: Tensor | None = None,
    ) -> Tensor:
        """The same objective, negative, as a function of one record: a scalar, float64.

        Sites in the data plate are averaged over its rows (over those that `keep [rows]` marks),
        the others divided by `num_data`. Differentiable where all latents are reparametrized.
        """

        def per_datum(score: Tensor) -> Tensor:  # [K, rows], or [K] outside the plate
            score = score.mean(0)
            if score.dim() == 0:
                return score / num_data
            return score.mean() if keep is None else (score * keep).sum() / keep.sum()

        likelihood, kl = [], []
        for name, score in record.log_p.items():
            if name in record.observed:
                likelihood.append(per_datum(score))
            else:
                kl.append(-per_datum(score))
        for name, score in record.log_q.items():
            if name in record.latents or name in record.auxiliary:
                kl.append(per_datum(score))
            else:  # a term of log q that is no draw (pyro.factor)
                likelihood.append(-per_datum(score))
        loss = torch.zeros((), dtype=torch.float64, device=score.device)
        if kl:
            loss = loss + beta * torch.stack(kl).sum()
        return loss - torch.stack(likelihood).sum() if likelihood else loss

    def pyro_loss(self, *, vectorize: bool, max_plate_nesting: int) -> Trace_ELBO:
        """Pyro's own estimator of this objective."""
        return Trace_ELBO(
            num_particles=self.num_particles,
            vectorize_particles=vectorize and self.num_particles > 1,
            max_plate_nesting=max_plate_nesting,
        )


OBJECTIVES = {"elbo": ELBO}
