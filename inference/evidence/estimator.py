"""What every estimator of log p(x) is: a frozen value that answers a request."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import torch
from pydantic import BaseModel, ConfigDict

from inference.errors import RequestError
from inference.evidence.estimate import Estimate
from inference.evidence.kept import Kept
from inference.global_draws import GIVEN_GLOBALS, GivenGlobals
from inference.pair import Data
from inference.tiles import Tiles, tiled


@dataclass(frozen=True)
class Request:
    """The question put to an estimator, as `log_marginal` has it."""

    model: Callable
    guide: Callable
    data: Data
    seed: int = 0
    plate: str | None = "data"
    engine: str = "auto"
    precision: str = "float32"
    device: str | torch.device | None = None
    progress: bool = True
    kept: Kept = field(default_factory=Kept)

    @property
    def quantity(self) -> str:
        if isinstance(self.model, GivenGlobals):
            return GIVEN_GLOBALS
        return "log p(x)" if self.plate is not None else "joint log p(x)"

    def check_precision(self, estimator: str) -> None:
        """Raises: `RequestError` for a precision that chains and sums were not made for."""
        if self.precision not in ("float32", "float64"):
            raise RequestError(
                f"precision: '{self.precision}' is for estimator='importance'; {estimator} takes "
                "float32 or float64"
            )

    def tiled(
        self,
        num_samples: int,
        *,
        whole_rows: bool = False,
        model: Callable | None = None,
        guide: Callable | None = None,
    ) -> AbstractContextManager[Tiles]:
        """Tiles over data and samples; `model` and `guide` in the place of the pair's own."""
        return tiled(
            self.model,
            self.guide,
            self.data,
            num_samples,
            seed=self.seed,
            plate=self.plate,
            device=self.device,
            precision=self.precision,
            whole_rows=whole_rows,
            instead=(model or self.model, guide or self.guide),
        )


class Estimator(BaseModel):
    """A way to estimate log p(x), with its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def run(self, request: Request) -> Estimate:
        """The estimate. Raises: `PairError`, `RequestError`, `NonFiniteError`."""
        raise NotImplementedError
