"""The beta-VAE's objective."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from inference.objectives.elbo import ELBO


class BetaELBO(ELBO):
    """E_q[log p(x|z)] - weight KL(q(z|x) || p(z)) (beta-VAE, Higgins et al. 2017).

    `weight` is its beta, after warm-up. With one above 1 it lies below the ELBO.
    """

    optimum: ClassVar[str] = "a trade of reconstruction for KL; a bound on log p(x) from beta 1 on"
    name: Literal["beta_elbo"] = "beta_elbo"  # type: ignore[assignment]
    weight: float = Field(default=4.0, gt=0)

    def beta(self, step: int, steps_per_epoch: int) -> float:
        return self.weight * super().beta(step, steps_per_epoch)
