"""Active units: which latent dimensions carry information about x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.errors import PairError, RequestError
from inference.evidence.points import free_of
from inference.pair import Data
from inference.requests import whole_number
from inference.tiles import tiled


@dataclass(frozen=True)
class ActiveUnits:
    """Per latent dimension: `mean_variance` = Var_x E_q[z|x], `total_variance` = Var of q(z).

    A unit is active if mean_variance > 0.01 x total_variance, so that the answer does not depend
    on the latent's scale. `burda_count` is the raw definition mean_variance > 0.01 of
    arXiv:1509.00519, meant for N(0, I) priors.
    """

    mean_variance: Tensor
    total_variance: Tensor
    threshold: float = 0.01

    @property
    def num_units(self) -> int:
        return len(self.mean_variance)

    @property
    def activity(self) -> Tensor:
        """Share of each unit's variance that x explains (an estimate: may fall below 0)."""
        return self.mean_variance / self.total_variance.clamp_min(1e-30)

    @property
    def count(self) -> int:
        return int((self.activity > self.threshold).sum())

    @property
    def burda_count(self) -> int:
        return int((self.mean_variance > self.threshold).sum())

    def __str__(self) -> str:
        return f"{self.count} of {self.num_units} units active ({self.burda_count} by Burda's rule)"


def active_units(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    num_samples: int = 20,
    seed: int = 0,
    plate: str = "data",
    device: str | torch.device | None = None,
) -> ActiveUnits:
    """Count the latent dimensions that depend on x.

    Var_x E_q[z|x] is estimated by the covariance over x of two independent estimates of E_q[z|x],
    which is unbiased; the variance of one S-sample mean would make a collapsed unit look active by
    1/S. Sites of real numbers are
    flattened and joined in the order of the model. `device` is where data and
    modules are moved; by default data go where the modules are.

    Raises: `PairError`; `RequestError` for fewer than two data or samples.
    """
    whole_number("num_samples", num_samples, least=2)
    half = num_samples // 2
    first: list[Tensor] = []
    second: list[Tensor] = []
    spread: list[Tensor] = []
    with tiled(
        model, guide, data, num_samples, seed=seed, plate=plate, device=device, whole_rows=True
    ) as tiles:
        if tiles.num_data < 2:
            raise RequestError("data: one datum; active units need at least two")
        for start in tiles.rows():
            tile = tiles.tile(start)
            record = tiles.score(tile)
            # Labels and other codes have no mean.
            drawn = [
                n for n in free_of(record, tiles.pair) if record.latents[n].is_floating_point()
            ]
            if not drawn:
                raise PairError("the guide draws no real latents, so there are no units to count")
            sites = [tiles.draws(record, name, tile) for name in drawn]
            draws = torch.cat(sites, -1)  # [K, n, units]
            first.append(draws[:half].mean(0))
            second.append(draws[half:].mean(0))
            spread.append(draws.var(0))
    a, b = torch.cat(first), torch.cat(second)
    covariance = ((a - a.mean(0)) * (b - b.mean(0))).sum(0) / (len(a) - 1)
    within = torch.cat(spread).mean(0)
    return ActiveUnits(mean_variance=covariance, total_variance=covariance.clamp_min(0) + within)
