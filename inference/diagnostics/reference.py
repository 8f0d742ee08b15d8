"""A posterior by Hamiltonian chains beside the guide's, for a few data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from inference.diagnostics.chains import effective_size, split_rhat
from inference.diagnostics.sampling import annealed, kept, warmed
from inference.errors import RequestError
from inference.evidence.ais import AIS
from inference.evidence.estimator import Request
from inference.evidence.points import free_of
from inference.evidence.space import Data as Rows
from inference.evidence.space import GaussianStart
from inference.evidence.tempering import schedule, seeded
from inference.pair import Data
from inference.progress import Progress
from inference.record import LogWeights
from inference.requests import whole_number
from inference.tiles import Tile, Tiles

MAX_RHAT = 1.01
LEAST_ESS = 400  # below, R-hat itself is not to be relied on (arXiv:1903.08008)
# Of some settings tried on 3 and on 50 latents, these gave the most independent draws a gradient:
# longer ways come near half a period, after which squares are what they were.
CHAINS = AIS(num_chains=16, num_temperatures=60, jitter=0.2)


@dataclass(frozen=True, repr=False)
class Reference:
    """Draws from p(z|x_n) by chains, and from q(z|x_n), for N data and D numbers of the latents.

    Args:
        draws: `[chains, draws, N, D]`, of the posterior.
        guide_draws: `[chains draws, N, D]`, of the guide.
        names: of the D numbers: site, and place in it.
        rhat, ess: `[N, D]`, of the chains.
        spread_ess: `[N, D]`, the same for their squared distance from the mean.
        acceptance: `[N]`, of the chains' steps.
    """

    draws: Tensor
    guide_draws: Tensor
    names: tuple[str, ...]
    rhat: Tensor
    ess: Tensor
    spread_ess: Tensor
    acceptance: Tensor
    seed: int
    seconds: float

    @property
    def num_data(self) -> int:
        return self.rhat.shape[0]

    @property
    def mean(self) -> Tensor:
        """`[N, D]`, of the posterior."""
        return self.draws.flatten(0, 1).mean(0)

    @property
    def sd(self) -> Tensor:
        return self.draws.flatten(0, 1).std(0)

    @property
    def mean_std_error(self) -> Tensor:
        """Monte-Carlo error of `mean`."""
        return self.sd / self.ess.sqrt()

    @property
    def sd_std_error(self) -> Tensor:
        """Monte-Carlo error of `sd`: that of the variance, over twice the sd."""
        squares = (self.draws.flatten(0, 1) - self.mean).square()
        return squares.std(0) / self.spread_ess.sqrt() / (2 * self.sd)

    @property
    def guide_mean(self) -> Tensor:
        return self.guide_draws.mean(0)

    @property
    def guide_sd(self) -> Tensor:
        return self.guide_draws.std(0)

    @property
    def shift(self) -> Tensor:
        """`[N, D]`: (guide's mean - posterior's mean) / posterior's sd."""
        return (self.guide_mean - self.mean) / self.sd

    @property
    def shift_std_error(self) -> Tensor:
        of_guide = self.guide_sd / len(self.guide_draws) ** 0.5
        of_means = (self.mean_std_error.square() + of_guide.square()) / self.sd.square()
        return (of_means + (self.shift * self.sd_std_error / self.sd).square()).sqrt()

    @property
    def sd_ratio(self) -> Tensor:
        """`[N, D]`: guide's sd / posterior's sd; below 1 where the guide is too narrow."""
        return self.guide_sd / self.sd

    @property
    def sd_ratio_std_error(self) -> Tensor:
        squares = (self.guide_draws - self.guide_mean).square()
        of_guide = squares.std(0) / len(squares) ** 0.5 / (2 * self.guide_sd.square())
        return self.sd_ratio * (of_guide.square() + (self.sd_std_error / self.sd).square()).sqrt()

    @property
    def flagged(self) -> Tensor:
        """`[N]`: chains that disagree (R-hat above 1.01), or hold too few independent draws."""
        mixed = (self.rhat <= MAX_RHAT) & (self.ess >= LEAST_ESS)
        return ~mixed.all(1)

    @property
    def num_flagged(self) -> int:
        return int(self.flagged.sum())

    def arrays(self) -> dict[str, Tensor]:
        """Tensors by name: moments of each datum and number, with their errors, not the draws."""
        names = ("mean", "sd", "guide_mean", "guide_sd", "shift", "sd_ratio")
        found = {name: getattr(self, name) for name in names}
        for name in ("mean", "sd", "shift", "sd_ratio"):
            found[f"{name}.std_error"] = getattr(self, f"{name}_std_error")
        own = {"rhat": self.rhat, "ess": self.ess, "acceptance": self.acceptance}
        return {**found, **own, "flagged": self.flagged}

    def summary(self) -> dict[str, Any]:
        """The scalars by name, for JSON."""
        return {
            "num_data": self.num_data,
            "num_chains": self.draws.shape[0],
            "num_draws": self.draws.shape[1],
            "names": list(self.names),
            "max_rhat": float(self.rhat.max()),
            "least_ess": float(self.ess.min()),
            "mean_acceptance": float(self.acceptance.mean()),
            "num_flagged": self.num_flagged,
            "mean_abs_shift": float(self.shift.abs().mean()),
            "max_abs_shift": float(self.shift.abs().max()),
            "median_sd_ratio": float(self.sd_ratio.median()),
            "seed": self.seed,
            "seconds": self.seconds,
        }

    def __repr__(self) -> str:
        return f"Reference({self})"

    def __str__(self) -> str:
        chains, draws = self.draws.shape[:2]
        n, d = divmod(int(self.shift.abs().argmax()), self.shift.shape[1])
        said = [
            f"Posterior of {self.num_data} data by {chains} Hamiltonian chains of {draws} draws "
            f"each: R-hat at most {float(self.rhat.max()):.3f}, effective sample size at least "
            f"{float(self.ess.min()):.0f}.",
            f"The guide's means lie {float(self.shift.abs().mean()):.2f} posterior standard "
            f"deviations off on average, at most {float(self.shift.abs()[n, d]):.2f} +- "
            f"{float(self.shift_std_error[n, d]):.2f} ({self.names[d]} of datum {n}); its standard "
            f"deviations are {float(self.sd_ratio.median()):.2f} of the posterior's (median).",
        ]
        if self.num_flagged:
            said.append(
                f"Do not trust {self.num_flagged} of the {self.num_data}: chains disagree (R-hat "
                f"above {MAX_RHAT}) or hold fewer than {LEAST_ESS} independent draws; raise "
                "num_draws or thin."
            )
        else:
            said.append("A mode that no chain has met is not seen by this.")
        return " ".join(said)


def reference(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    num_draws: int = 200,
    warmup: int = 100,
    thin: int = 4,
    chains: AIS = CHAINS,
    seed: int = 0,
    plate: str = "data",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Reference:
    """Draw from the posterior of each of a few data, and from the guide.

    Chains begin at independent draws of the guide (or of a Gaussian: `chains.start`), go to the
    posterior by annealing, are tuned there for `warmup` steps, and are kept from then on with
    everything frozen.

    Args:
        model, guide, data, plate, device: as for `log_marginal`; a few data.
        num_draws: kept of each chain, every `thin`-th step.
        chains: how many, where and how they move.
    Raises: `PairError` where latents are discrete, or otherwise out of reach of chains;
        `RequestError`.
    """
    whole_number("num_draws", num_draws, least=20)
    whole_number("warmup", warmup, least=20)
    whole_number("thin", thin)
    if not isinstance(chains, AIS) or chains.name != "ais":  # particles of SMC share ancestors
        name = getattr(chains, "name", chains)
        raise RequestError(f"chains: got {name!r}; expected settings of AIS, e.g. inference.AIS()")
    if chains.start == "prior":
        raise RequestError("chains: start 'prior' is for log p(x); take 'guide' or 'gaussian'")
    started = time.perf_counter()
    request = Request(model, guide, data, seed, plate, "eager", "float32", device, progress)
    with request.tiled(chains.num_chains, whole_rows=True) as tiles:
        walk, every, tuned, num_temperatures = chains.prepared(request, tiles)
        parts, guide_parts, acceptances = [], [], []
        total = len(every) * (num_temperatures + warmup + num_draws * thin)
        with Progress("posterior", total, progress) as bar:
            for tile, found in zip(every, tuned, strict=True):
                rows, num_real = walk.data_of(tile)
                seeded(tiles, tile, "reference")
                betas = schedule(found, num_temperatures)
                state = annealed(walk, rows, found, betas, bar)
                state, found = warmed(walk, rows, state, found, warmup, bar)

                def values(u: Tensor, tile: Tile = tile, rows: Rows = rows) -> Tensor:
                    return _joined(tiles, _record(walk.space, u, rows), tile, len(u))

                draws, acceptance = kept(walk, rows, state, found, num_draws, thin, values, bar)
                parts.append(draws[:, :, :num_real].cpu())
                acceptances.append(acceptance[:num_real].cpu())
                count = chains.num_chains * num_draws
                guide_parts.append(_values(tiles, tile, count)[:, :num_real].cpu())
        names = _names(tiles)
    draws = torch.cat(parts, 2)
    centred = draws - draws.flatten(0, 1).mean(0)
    return Reference(
        draws=draws,
        guide_draws=torch.cat(guide_parts, 1),
        names=names,
        rhat=split_rhat(draws),
        ess=effective_size(draws),
        spread_ess=effective_size(centred.square()),
        acceptance=torch.cat(acceptances),
        seed=seed,
        seconds=time.perf_counter() - started,
    )


def _record(space: Any, u: Tensor, rows: Rows) -> LogWeights:
    """The pair at points of the chains."""
    if isinstance(space, GaussianStart):
        return space.inner.record(u, rows[:-2])[0]
    return space.record(u, rows)[0]


def _values(tiles: Tiles, tile: Tile, count: int) -> Tensor:
    """`[count, data, D]`: draws of the guide."""
    seeded(tiles, tile, "guide")
    return _joined(tiles, tiles.record(tiles.rows_of(tile), count), tile, count)


def _joined(tiles: Tiles, record: LogWeights, tile: Tile, count: int) -> Tensor:
    """The latents of a record, sites side by side."""
    return torch.cat(list(_sites(tiles, record, tile, count).values()), -1)


def _sites(tiles: Tiles, record: LogWeights, tile: Tile, count: int) -> dict[str, Tensor]:
    own = replace(tile, column=0, count=count)
    return {name: tiles.draws(record, name, own) for name in free_of(record, tiles.pair)}


def _names(tiles: Tiles) -> tuple[str, ...]:
    tile = tiles.tile(0)
    names = []
    for name, site in _sites(tiles, tiles.record(tiles.rows_of(tile), 2), tile, 2).items():
        size = site.shape[-1]
        names += [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
    return tuple(names)
