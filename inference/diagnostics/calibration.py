"""Simulation-based calibration of a guide: are true latents exchangeable with its draws?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inference.diagnostics.aggregate import guide_alone
from inference.diagnostics.ranks import Band, Tests, band, ecdf, holm, rank, uniformity
from inference.diagnostics.units import unit_names
from inference.errors import NonFiniteError, PairError, RequestError
from inference.evidence.points import Points
from inference.evidence.proposals import points_of
from inference.evidence.simulate import simulate
from inference.isolation import derived_seed
from inference.pair import Data
from inference.progress import Progress
from inference.requests import whole_number
from inference.tiles import Tile, Tiles, tiled

SIMULATED_AT_ONCE = 1000
LEAST_DATA = 50


@dataclass(frozen=True)
class Calibration:
    """Ranks of true latents among the guide's draws, and whether they are uniform.

    See `calibration`.

    Args:
        ranks: `[N, D]`, whole numbers in 0..`num_draws`.
        tests: per unit, each by itself.
        adjusted: `[3, D]`, p-values of the three tests of all units by Holm's method.
        units: names of the D latent dimensions.
        level: of false alarms, over all units and tests together.
    """

    ranks: Tensor
    tests: Tests
    adjusted: Tensor
    units: tuple[str, ...]
    num_draws: int
    seed: int
    seconds: float
    level: float = 0.05

    @property
    def num_data(self) -> int:
        return len(self.ranks)

    @property
    def num_units(self) -> int:
        return len(self.units)

    @property
    def p_value(self) -> Tensor:
        """`[D]`, the smallest adjusted p-value of a unit's tests."""
        return self.adjusted.amin(0)

    @property
    def failed(self) -> Tensor:
        """`[D]`, units that are not calibrated; a false one in `level` of all runs at most."""
        return self.p_value < self.level

    @property
    def num_failed(self) -> int:
        return int(self.failed.sum())

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Of each unit: what is wrong with the guide, or nothing."""
        return tuple(self._verdict(i) for i in range(self.num_units))

    def _verdict(self, unit: int) -> str:
        shape, bias, spread = (self.adjusted[:, unit] < self.level).tolist()
        said = []
        if spread:
            said.append("too narrow" if self.tests.spread[unit] > 0 else "too wide")
        if bias:
            said.append("too high" if self.tests.bias[unit] < 0 else "too low")
        return " and ".join(said) or ("of another shape" if shape else "")

    def ecdf(self) -> Tensor:
        """`[num_draws + 1, D]`: the ranks' distribution function less that of uniform ones."""
        return ecdf(self.ranks, self.num_draws)

    def band(self) -> Band:
        """Where all units' ECDF differences lie at once, in 1 - `level` of all runs."""
        return band(self.num_data, self.num_draws, 1 - self.level / self.num_units)

    def arrays(self) -> dict[str, Tensor]:
        """The ranks `[N, D]`, and the per-unit tensors `[D]`."""
        return {
            "ranks": self.ranks,
            "p_value": self.p_value,
            "failed": self.failed,
            **self.tests._asdict(),
        }

    def summary(self) -> dict[str, Any]:
        """The scalars by name, for JSON."""
        return {
            "num_units": self.num_units,
            "num_failed": self.num_failed,
            "failed": {u: v for u, v in zip(self.units, self.verdicts, strict=True) if v},
            "smallest_p_value": float(self.p_value.min()),
            "level": self.level,
            "num_data": self.num_data,
            "num_draws": self.num_draws,
            "seed": self.seed,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        """One honest paragraph."""
        said = [
            f"{self.num_data} data simulated from the model, {self.num_draws} draws of the guide "
            f"each: the ranks of the true latents are not uniform for {self.num_failed} of "
            f"{self.num_units} units (tests of shape, bias and spread, Holm's method, "
            f"{self.level:.0%} false alarms in all)."
        ]
        worst = self.p_value.argsort()[: min(5, self.num_failed)].tolist()
        if worst:
            named = ", ".join(f"{self.units[i]} {self.verdicts[i]}" for i in worst)
            more = f" and {self.num_failed - 5} more" if self.num_failed > 5 else ""
            said.append(f"The guide is, worst first: {named}{more}.")
            if any("narrow" in verdict for verdict in self.verdicts):
                said.append(
                    "'Too narrow' is also what a centre looks like that is off by amounts that "
                    "vary with x: inference.reference tells the two apart, for a few data."
                )
        else:
            said.append(
                "That shows no fault that so many data can show; dependence between units is not "
                "looked at."
            )
        said.append("It tells of data like the model's own, on average over them, not of yours.")
        return " ".join(said)


def calibration(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    num_data: int = 1000,
    num_draws: int = 99,
    seed: int = 0,
    plate: str = "data",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Calibration:
    """Simulation-based calibration: rank true latents among draws of the guide.

        z* ~ p(z),   x ~ p(x|z*),   z_1..L ~ q(z|x),   r_i = #{l : z_li < z*_i}

    Where q(z|x) = p(z|x) each unit's rank r_i is uniform on 0..L. True values below most draws (low
    ranks): the guide is too high; at both ends: too narrow, or off to either side by amounts that
    vary with x; in the middle: too wide. Equal values
    (discrete latents) take places at random. Uniform ranks do not prove the guide right: a guide
    that draws from the prior and ignores x has them, too, and dependence between units is not seen.

    Per unit three tests: chi-square of ranks in up to 20 bins (shape); mean of their normal scores
    (bias); variance of these, against that under a shift alone (spread: the mean distance of ranks
    from the middle would call a guide that is only shifted too narrow). p-values by Holm's method.

    Args:
        model, guide: any Pyro pair whose latents stand in the plate, and whose model can be run
            forwards.
        data: tensor `[N, ...]` or a tuple of such. What the model observes is simulated; the rest
            (covariates) is taken from the data in turn.
        num_data: simulated data, at least 50.
        num_draws: L, draws of the guide for each.
        seed, plate, device: as in `log_marginal`.
    Returns: a `Calibration`, on the CPU.
    Raises: `PairError` (also where observed values are none of the arguments), `RequestError`,
        `NonFiniteError`.
    References: Talts et al., arXiv:1804.06788; Yao et al., arXiv:1802.02538; band: Säilynoja,
        Bürkner, Vehtari, arXiv:2103.10522.
    """
    whole_number("num_data", num_data, least=LEAST_DATA)
    whole_number("num_draws", num_draws)
    started = time.perf_counter()
    with tiled(model, guide, data, 2, seed=seed, plate=plate, device=device) as tiles:
        points = _layout(tiles, num_data)
        whole, given = tiles.pair.whole, tiles.arguments
    arguments, true = [], []
    for start in range(0, num_data, num_data if whole else SIMULATED_AT_ONCE):
        stop = num_data if whole else min(start + SIMULATED_AT_ONCE, num_data)
        index = torch.arange(start, stop, device=given[0].device) % len(given[0])
        rows = tuple(a[index] for a in given)
        made = simulate(model, rows, derived_seed("calibration", seed, start))
        arguments.append(made.arguments)
        true.append(_point_of(made.latents, points))
    simulated = tuple(torch.cat(column) for column in zip(*arguments, strict=True))
    found, latents = [], torch.cat(true, 1)[0]
    with tiled(
        model, guide, simulated, num_draws, seed=seed, plate=plate, device=device, whole_rows=True
    ) as tiles:
        points = _layout(tiles, num_data)
        tiles = replace(tiles, scorer=guide_alone(tiles.scorer))
        with Progress("calibration", len(tiles.rows()), progress, unit="tiles") as bar:
            for start in tiles.rows():
                found.append(_ranks(tiles, tiles.tile(start), points, latents))
                bar.advance()
    ranks = torch.cat(found).cpu()
    tests = uniformity(ranks, num_draws)
    return Calibration(
        ranks=ranks,
        tests=tests,
        adjusted=holm(torch.stack([tests.p_chi_square, tests.p_bias, tests.p_spread])),
        units=unit_names(points),
        num_draws=num_draws,
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def _layout(tiles: Tiles, num_data: int) -> Points:
    """How latents lie side by side. Raises: `PairError`, `RequestError`."""
    record = tiles.record(tiles.rows_of(tiles.tile(0)), 2)
    points = points_of(record, tiles.pair, folded=tiles.scorer.folded)
    if not points.places:
        raise PairError("the guide draws no latents, so there is nothing to rank")
    if tiles.pair.whole and num_data != tiles.num_data:
        raise RequestError(
            f"num_data: got {num_data}; the pair takes {tiles.num_data} data at once and no other "
            "number"
        )
    return points


def _point_of(latents: dict[str, Tensor], points: Points) -> Tensor:
    """`[1, n, D]` of latents of one draw each, without a dimension of particles."""
    values = {}
    for name, place in points.places.items():
        value = latents[name]
        # A value's axes: the data's, the site's own, and particles where they are not folded.
        missing = len(place.shape) + (1 if points.folded else 2) - value.dim()
        values[name] = value.reshape((1,) * missing + tuple(value.shape))
    return points.join(values, 1)


def _ranks(tiles: Tiles, tile: Tile, points: Points, latents: Tensor) -> Tensor:
    """`[n, D]` of one tile."""
    record = tiles.score(tile)
    draws = points.join(record.auxiliary, tile.count)
    true = latents[tile.start : tile.stop]
    for who, values in (("guide", draws), ("model", true)):
        if not bool(values.isfinite().all()):
            raise NonFiniteError(
                f"the {who} drew NaN or infinite latents for a datum in rows {tile.start} to "
                f"{tile.stop - 1} of the simulated data; check its parameters"
            )
    return rank(true, draws)
