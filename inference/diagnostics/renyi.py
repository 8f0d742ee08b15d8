"""Variational bounds beside the ELBO: what a guide is like, and no estimate of log p(x).

References: Renyi bounds, Li and Turner, arXiv:1602.02311; CUBO, Dieng, Tran, Ranganath, Paisley,
Blei, arXiv:1611.00328, the same formula for alpha < 0.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference.errors import RequestError
from inference.evidence import streaming
from inference.evidence.estimator import Request
from inference.evidence.importance import stream, weights
from inference.evidence.smoothing import khat_threshold
from inference.evidence.weighing import Weighing, check_engine
from inference.pair import Data
from inference.progress import Progress, working


@dataclass(frozen=True)
class VariationalBounds:
    """Bounds L_alpha of every datum, nats. See `variational_bounds`. No `Estimate` of log p(x).

    Args:
        alphas: A of them.
        value, std_error: `[A, N]` float64; the error is that of K draws (delta method), NaN for
            K = 1.
        khat: `[A, N]`, the Pareto tail index of w^(1 - alpha); NaN for alpha = 1, which needs none.
        khat_threshold: above it an error is not to be believed, and the mean may be infinite.
    """

    alphas: tuple[float, ...]
    value: Tensor
    std_error: Tensor
    khat: Tensor
    khat_threshold: float
    num_samples: int
    seed: int
    seconds: float
    engine: str
    engine_reason: str

    @property
    def num_data(self) -> int:
        return self.value.shape[1]

    @property
    def mean(self) -> tuple[float, ...]:
        """Of the data set, for each alpha."""
        return tuple(self.value.mean(1).tolist())

    @property
    def mc_std_error(self) -> tuple[float, ...]:
        """What more draws would take off the means' errors."""
        return tuple((self.std_error.square().sum(1).sqrt() / self.num_data).tolist())

    @property
    def num_khat_bad(self) -> tuple[int, ...]:
        return tuple((self.khat > self.khat_threshold).sum(1).tolist())

    def arrays(self) -> dict[str, Tensor]:
        """The per-datum tensors by name, such as `value_0.5`."""
        return {
            f"{name}_{alpha:g}": getattr(self, name)[i]
            for i, alpha in enumerate(self.alphas)
            for name in ("value", "std_error", "khat")
        }

    def summary(self) -> dict[str, Any]:
        """The scalars by name, for JSON."""
        columns = zip(self.alphas, self.mean, self.mc_std_error, self.num_khat_bad, strict=True)
        return {
            "quantity": "variational bounds, no estimate of log p(x)",
            "bounds": [
                {
                    "alpha": alpha,
                    "name": name_of(alpha),
                    "side": side_of(alpha),
                    "mean": mean,
                    "mc_std_error": error,
                    "khat_bad_share": bad / self.num_data,
                }
                for alpha, mean, error, bad in columns
            ],
            "khat_threshold": self.khat_threshold,
            "num_samples": self.num_samples,
            "num_data": self.num_data,
            "seed": self.seed,
            "seconds": self.seconds,
            "engine": self.engine,
            "engine_reason": self.engine_reason,
        }

    def __str__(self) -> str:
        """One honest paragraph."""
        said = [
            f"Variational bounds of this guide, nats per datum (mean of {self.num_data}), by "
            f"{self.num_samples:,} draws each; no estimate of log p(x)."
        ]
        errors = zip(self.alphas, self.mean, self.mc_std_error, strict=True)
        told = {alpha: f"{name_of(alpha)} {mean:.3f} +- {e:.2g}" for alpha, mean, e in errors}
        below = [text for alpha, text in told.items() if alpha >= 0]
        if below:
            said.append(f"Below log p(x) in expectation: {', '.join(below)}.")
        above = [text for alpha, text in told.items() if alpha < 0]
        if above:
            said.append(
                f"Above log p(x) with infinitely many draws only, too low with {self.num_samples:,}"
                f", and so no bound at all: {', '.join(above)}."
            )
        for alpha, bad in zip(self.alphas, self.num_khat_bad, strict=True):
            if bad:
                said.append(
                    f"{name_of(alpha)}: for {bad} data k-hat of w^{1 - alpha:g} exceeds "
                    f"{self.khat_threshold:.2f}; its errors may be much larger than printed"
                    + (", and with infinitely many draws it may be infinite." if alpha < 0 else ".")
                )
        return " ".join(said)


def name_of(alpha: float) -> str:
    """What the field calls L_alpha."""
    if alpha == 1:
        return "ELBO"
    if alpha < 0:
        return f"CUBO_{1 - alpha:g}"
    return f"Renyi({alpha:g})"


def side_of(alpha: float) -> str:
    """On which side of log p(x) L_alpha lies."""
    if alpha >= 0:
        return "below in expectation"
    return "above with infinitely many draws only; no bound"


def variational_bounds(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    alphas: Sequence[float] = (1.0, 0.5, 0.0, -1.0),
    num_samples: int = 1000,
    seed: int = 0,
    plate: str | None = "data",
    engine: str = "auto",
    precision: str = "float32",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> VariationalBounds:
    """Renyi bounds and CUBO of every datum, from the same draws. No estimates of log p(x).

        L_alpha = 1/(1 - alpha) log E_q[(p(x, z)/q(z|x))^(1 - alpha)],   z_k ~ q(z|x)

    It falls with alpha: the ELBO at alpha = 1, log p(x) at alpha = 0, above it for alpha < 0, where
    it is CUBO_n with n = 1 - alpha. K draws make all but the ELBO too low, about by
    (1 - alpha) s^2 / 2 for an error s. So for alpha in [0, 1] it lies below log p(x) in
    expectation (at 0 it is `Importance`), and for alpha < 0 on either side: CUBO is an upper bound
    in population only. The distances between them tell how far the guide is from the posterior.

    Args:
        alphas: numbers of at most 1.
        num_samples: K.
        model, guide, data, seed, plate, engine, precision, device: as in `log_marginal`.
    Raises: `PairError`, `RequestError`, `NonFiniteError` as `log_marginal`.
    """
    started = time.perf_counter()
    every = _checked(alphas)
    check_engine(engine)
    request = Request(
        model, guide, data, seed, plate, engine, precision=precision, device=device,
        progress=progress,
    )  # fmt: skip
    gather = _Gather(tuple(1 - alpha for alpha in every if alpha != 1))
    parts = []
    with request.tiled(num_samples) as tiles:
        with working("preparing bounds", progress):
            weighing = Weighing(tiles, weights, engine)
        num_tiles = len(tiles.rows()) * len(tiles.columns())
        with Progress("bounds", num_tiles, progress, unit="tiles") as bar:
            for _, state in stream(weighing, bar, gather=gather):
                assert state is not None  # none was done before
                parts.append([column.cpu() for column in _finish(state, every)])
    value, std_error, khat = (torch.cat(columns, 1) for columns in zip(*parts, strict=True))
    return VariationalBounds(
        alphas=every,
        value=value,
        std_error=std_error,
        khat=khat,
        khat_threshold=khat_threshold(num_samples),
        num_samples=num_samples,
        seed=seed,
        seconds=time.perf_counter() - started,
        engine=weighing.engine,
        engine_reason=weighing.reason,
    )


def _checked(alphas: Sequence[float]) -> tuple[float, ...]:
    if isinstance(alphas, int | float) and not isinstance(alphas, bool):
        alphas = (alphas,)
    if not isinstance(alphas, Sequence) or isinstance(alphas, str) or not alphas:
        raise RequestError(f"alphas: got {alphas!r}; expected numbers, such as (1.0, 0.5, 0.0)")
    for alpha in alphas:
        number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
        if not number or not math.isfinite(alpha) or alpha > 1:
            raise RequestError(
                f"alphas: got {alpha!r}; expected finite numbers of at most 1 (1: the ELBO; 0 to "
                "1: Renyi bounds; below 0: CUBO)"
            )
    found = tuple(float(alpha) for alpha in alphas)
    if len(set(found)) < len(found):
        raise RequestError(f"alphas: got {alphas!r}; one of them stands there twice")
    return found


class _State(NamedTuple):
    """Moments of w^t for each t, and of log w itself."""

    num_samples: int
    powers: tuple[streaming.Moments, ...]
    peak: Tensor  # [N], max log w
    seen: Tensor  # [N], how many log w have come
    total: Tensor  # [N], sum of log w
    squares: Tensor  # [N], sum of squared distances to their mean


class _Gather:
    """How log-weights that stream by are gathered. `powers` are the exponents t."""

    def __init__(self, powers: tuple[float, ...]):
        self.powers = powers

    def init(self, num_data: int, num_samples: int, device: torch.device) -> _State:
        zero, peak, seen, total = torch.zeros(4, num_data, dtype=torch.float64, device=device)
        each = tuple(streaming.init(num_data, num_samples, device) for _ in self.powers)
        return _State(num_samples, each, peak - math.inf, seen, total, zero)

    def update(self, state: _State, log_weight: Tensor, rounding: Tensor) -> _State:
        each = tuple(
            streaming.update(moments, power * log_weight, power * rounding)
            for power, moments in zip(self.powers, state.powers, strict=True)
        )
        # Means and squares of parts are joined as by Chan, Golub, LeVeque (1983).
        count = log_weight.shape[1]
        mean = log_weight.mean(1)
        inner = (log_weight - mean.unsqueeze(1)).square().sum(1)
        seen = state.seen + count
        step = mean - state.total / state.seen.clamp_min(1)
        return _State(
            num_samples=state.num_samples,
            powers=each,
            peak=torch.maximum(state.peak, log_weight.amax(1)),
            seen=seen,
            total=state.total + log_weight.sum(1),
            squares=state.squares + inner + step.square() * state.seen * count / seen,
        )


def _finish(state: _State, alphas: Sequence[float]) -> tuple[Tensor, Tensor, Tensor]:
    """Value, error and k-hat `[A, N]`."""
    columns, powers = [], iter(state.powers)
    for alpha in alphas:
        if alpha == 1:
            num_samples = state.num_samples
            variance = state.squares / max(num_samples - 1, 1)
            error = (variance / num_samples).sqrt()
            if num_samples == 1:
                error = torch.full_like(error, math.nan)
            columns.append((state.total / num_samples, error, torch.full_like(error, math.nan)))
        else:
            found = streaming.finish(next(powers))
            power = 1 - alpha
            columns.append((found["value"] / power, found["std_error"] / power, found["khat"]))
    value, error, khat = (torch.stack(column) for column in zip(*columns, strict=True))
    return value, error, khat
