"""Where the gap between the bound and log p(x) comes from (Cremer, Li, Duvenaud, arXiv:1801.03558).

    log p(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)) + KL(q(z|x) || p(z|x))
    KL(q(z|x) || p(z|x)) = log p(x) - ELBO(q)                       inference gap
                         = log p(x) - ELBO(q*) + ELBO(q*) - ELBO(q) approximation + amortization gap

with q*(z|x) the best guide of q's family for that datum alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inference.diagnostics.budget import Gaps, Item
from inference.diagnostics.local_fit import LEVELS, MOST_ROUNDS, ROUND, STILL, fit_local
from inference.diagnostics.local_guide import LocalGuide, freed, without_parameters
from inference.errors import PairError, RequestError
from inference.evidence.ais import AIS
from inference.evidence.comparison import same_data
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Estimator
from inference.evidence.marginal import log_marginal
from inference.isolation import derived_seed
from inference.pair import Data, as_arguments
from inference.progress import Progress
from inference.record import LogWeights
from inference.requests import whole_number
from inference.tensor_files import row_digests
from inference.tiles import Tiles, tiled


def gaps(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    log_px: Estimate | None = None,
    estimator: Estimator | str = AIS(),  # noqa: B008  (a frozen value)
    local: LocalGuide | None = None,
    num_samples: int = 200,
    num_particles: int = 8,
    seed: int = 0,
    plate: str = "data",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Gaps:
    """Split log p(x) - ELBO into what the guide's family and what its encoder lose.

    The local guides begin at the amortized one and are optimised by Adam; their ELBO is then told
    from fresh draws, the same noise for both guides, and never from the values met on the way.

    Args:
        model, guide, data, plate, device: as for `log_marginal`.
        log_px: an estimate for these data; by default `estimator` makes one.
        local: how to free the guide's parameters; by default its Gaussians are freed, of sites that
            are drawn from Normal, MultivariateNormal, LowRankMultivariateNormal or transforms of
            these that are the same for all data.
        num_samples: draws of each datum behind every term.
        num_particles: draws of each datum in a step of the optimisation.
    Raises: `PairError`, also for a guide that does not fit and needs `local`; `RequestError`.
    """
    whole_number("num_samples", num_samples, least=2)
    whole_number("num_particles", num_particles)
    if plate is None:
        raise RequestError("plate: None asks for one joint evidence, which has no gap per datum")
    started = time.perf_counter()
    arguments = as_arguments(data)
    if log_px is not None:
        _check_estimate(log_px, arguments)
    own: dict[str, Any] = {"plate": plate, "device": device}
    fresh = derived_seed("gaps", seed)  # draws that no estimate of log p(x) has seen
    with tiled(model, guide, data, num_samples, seed=fresh, whole_rows=True, **own) as tiles:
        if tiles.pair.subsampling == "own":
            raise PairError(
                f"plate '{plate}' draws {tiles.pair.subsample_size} of its data itself; drop "
                "subsample_size for this call, since a local guide belongs to each datum"
            )
        local = local or freed(tiles.pair, tiles.arguments)
        amortized = _draws(tiles, progress, "amortized guide")
        start = _start(local, tiles)
        moved = tiles.arguments
    if log_px is None:
        log_px = log_marginal(
            model,
            guide,
            data,
            estimator=estimator,
            seed=derived_seed("log p(x)", seed),
            progress=progress,
            **own,
        )
        _check_estimate(log_px, arguments)
    count = len(arguments)
    pair = without_parameters(model, count), local.guide(count)
    own["instead"] = pair
    rows = (*moved, *start)
    with tiled(model, guide, rows, num_particles, seed=fresh, whole_rows=True, **own) as tiles:
        found, steps, gain, error = _fitted(tiles, count, progress)
    rows = (*moved, *found)
    with tiled(model, guide, rows, num_samples, seed=fresh, whole_rows=True, **own) as tiles:
        best = _draws(tiles, progress, "local guide")
    weight, local_weight = amortized["elbo"], best["elbo"]
    return Gaps(
        log_px=log_px,
        reconstruction=_item(amortized["reconstruction"]),
        kl={n[3:]: _item(each) for n, each in amortized.items() if n.startswith("kl.")},
        elbo=_item(weight),
        local_elbo=_item(local_weight),
        amortization=_item(local_weight - weight),
        num_samples=num_samples,
        num_steps=steps,
        gain=gain,
        gain_std_error=error,
        converged=gain <= STILL + 2 * error,
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def _check_estimate(log_px: Estimate, arguments: tuple[Tensor, ...]) -> None:
    num_data = len(arguments[0])
    if log_px.is_joint or "simulated" in log_px.quantity:
        raise RequestError(
            f"log_px: holds {log_px.quantity}, but gaps need log p(x) of each datum at hand; make "
            "it by log_marginal with importance, ais, smc or another estimator of these data"
        )
    if log_px.num_data != num_data:
        raise RequestError(
            f"log_px: holds {log_px.num_data} data, but {num_data} were handed in; make it of the "
            "same data, in the same order"
        )
    if not same_data(log_px.data_digests, row_digests(arguments)):
        raise RequestError(
            "log_px: is of other data; make it of the data handed in, in their order"
        )


def _draws(tiles: Tiles, progress: bool, title: str) -> dict[str, Tensor]:
    """`[num_samples, N]` float64 on the CPU: the terms of the ELBO by name, and itself."""
    parts: list[dict[str, Tensor]] = []
    with Progress(title, len(tiles.rows()), progress, unit="tiles") as bar:
        for start in tiles.rows():
            record = tiles.score(tiles.tile(start))
            parts.append({name: each.cpu() for name, each in _split(record).items()})
            bar.advance()
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def _split(record: LogWeights) -> dict[str, Tensor]:
    kl = {}
    for name, log_q in record.log_q.items():  # a site of the guide alone is a term of its own
        kl[f"kl.{name}"] = log_q - record.log_p[name] if name in record.latents else log_q
    return {"reconstruction": record.log_likelihood, **kl, "elbo": record.log_weight}


def _item(draws: Tensor) -> Item:
    return Item(draws.mean(0), draws.std(0) / math.sqrt(len(draws)))


def _start(local: LocalGuide, tiles: Tiles) -> tuple[Tensor, ...]:
    """The amortized parameters of all data."""
    parts = []
    for first in tiles.rows():
        tile = tiles.tile(first)
        found = local.start(*tiles.rows_of(tile))
        wrong = [part for part in found if len(part) != tile.stop - tile.start]
        if wrong or not found:
            shape = tuple(wrong[0].shape) if wrong else "nothing"
            raise RequestError(
                f"local: start(...) of {tile.stop - tile.start} data returned {shape}; expected "
                "tensors with one row per datum"
            )
        parts.append([part.detach() for part in found])
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def _fitted(
    tiles: Tiles, count: int, progress: bool
) -> tuple[tuple[Tensor, ...], int, float, float]:
    """The local parameters of all data, most steps, and the last round's gain with its error."""
    found, weights = [], []
    most = len(LEVELS) * MOST_ROUNDS * ROUND * len(tiles.rows())
    with Progress("local guides, at most", most, progress) as bar:
        for first in tiles.rows():
            tile = tiles.tile(first)
            rows = tiles.rows_of(tile)
            fitted = fit_local(
                tiles.scorer,
                rows[:count],
                rows[count:],
                num_particles=tiles.num_samples,
                seed=derived_seed("local", tiles.seed_of(tile)),
                bar=bar,
            )
            found.append(fitted)
            weights.append((tile.stop - tile.start) / tiles.num_data)
    gain = sum(w * each.gain for w, each in zip(weights, found, strict=True))
    error = math.hypot(*(w * f.gain_std_error for w, f in zip(weights, found, strict=True)))
    columns = zip(*(each.parameters for each in found), strict=True)
    parameters = tuple(torch.cat(parts) for parts in columns)
    return parameters, max(each.num_steps for each in found), gain, error
