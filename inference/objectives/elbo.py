"""The evidence lower bound."""

from __future__ import annotations

from typing import ClassVar

from pyro.infer import Trace_ELBO
from torch import Tensor

from inference.objectives.base import Rows
from inference.objectives.kl_terms import KLObjective, weighted_elbo
from inference.record import LogWeights


class ELBO(KLObjective, name="elbo"):
    """E_q[log p(x|z) + beta (log p(z) - log q(z|x))], nats per datum; beta = 1 is the bound.

    `num_particles` single-sample bounds are averaged. During warm-up (`warmup_epochs` or
    `warmup_steps`) beta grows linearly to 1 (arXiv:1602.02282). With `kl` `analytic` each latent's
    KL is taken in closed form (arXiv:1312.6114, appendix B), and refused where none is known.
    Sampled, its gradients are Pyro's `Trace_ELBO` (reparametrized where possible, score function
    elsewhere, by the eager engine alone).
    """

    optimum: ClassVar[str] = "log p(x), reached where q(z|x) = p(z|x)"

    def value(self, record: LogWeights, rows: Rows, beta: float | Tensor) -> Tensor:
        return weighted_elbo(record, rows, self.kl, beta)

    def pyro_loss(self, *, vectorize: bool, max_plate_nesting: int) -> Trace_ELBO | None:
        if self.kl == "analytic":
            return None
        return Trace_ELBO(
            num_particles=self.num_particles,
            vectorize_particles=vectorize and self.num_particles > 1,
            max_plate_nesting=max_plate_nesting,
        )
