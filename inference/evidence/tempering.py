"""Temperatures, and chains that a tile's data share, on compiled code where that repays.

A pilot finds each datum's step sizes and schedule, which are then frozen: to adapt on the chains
that are weighed would bias the estimate.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from inference.errors import EngineWarning, NonFiniteError, Untraceable
from inference.evidence.blame import blame, first_wrong
from inference.evidence.hmc import Chains, Moved, begin, move
from inference.evidence.space import Data, Space
from inference.isolation import derived_seed, own_randomness, seed_torch
from inference.progress import Progress
from inference.staging import Staged, attempt
from inference.tiles import Tile, Tiles

# Compiling takes 10 to 20 seconds and saves some milliseconds a move.
MOVES_TO_REPAY = 3_000
# Between log u and log acceptance, in nats: rounding of log densities is smaller.
TIED = 0.01


@dataclass(frozen=True)
class Settings:
    """How chains move."""

    num_leapfrog: int = 2
    keep: float = 0.5  # of the momentum
    jitter: float = 0.1  # of step sizes
    acceptance: float = 0.8  # what the pilot aims at
    pilot_temperatures: int = 30
    power: float = 2.0  # of the pilot's temperatures (t/T)^power


class Tuned(NamedTuple):
    """What a pilot found for some data."""

    step: Tensor  # [data], step size
    scale: Tensor  # [data, D], of each dimension
    grid: Tensor  # [G + 1], temperatures
    spread: Tensor  # [G + 1, data], sd of log f_1/f_0 over chains

    @property
    def length(self) -> Tensor:
        """int_0^1 sd(log f_1/f_0) dbeta, `[data]`: the thermodynamic length of the path."""
        return torch.trapezoid(self.spread, self.grid, dim=0)


class Walk:
    """Chains on the tiles of some data: drawn, moved, on compiled code or through the handlers.

    Random numbers are drawn outside of what is compiled, so they are the same either way. Tiles at
    the edge are filled up by repeating their last datum, and `data_of` says how many are real.
    """

    def __init__(self, tiles: Tiles, space: Space, settings: Settings, engine: str, num_moves: int):
        self.tiles, self.space, self.settings = tiles, space, settings
        self.engine, self.reason = "eager", "as asked"
        self._kernel: Staged | None = None
        self._shared: list[Tensor] = []
        self._first = 0  # datum of the tile at hand
        if engine == "eager":
            return
        if engine == "auto" and num_moves < MOVES_TO_REPAY:
            self.reason = f"{num_moves} moves do not repay compiling (from {MOVES_TO_REPAY} on)"
            return
        self._kernel, refusal = attempt(self._compiled)
        self.engine = "eager" if refusal else "compiled"
        if engine == "auto":
            self.reason = f"{num_moves} moves repay compiling"
        self.reason = refusal or self.reason
        if engine == "compiled" and refusal:
            warnings.warn(f"chains move eagerly: {self.reason}", EngineWarning, stacklevel=4)

    def data_of(self, tile: Tile) -> tuple[Data, int]:
        """The tile's data as the space takes them, filled up to the tile's size; how many are real.

        Raises: `PairError` if data lie outside the support of their distribution.
        """
        rows = self.tiles.rows_of(tile)
        self.tiles.check(rows)
        count, size = tile.stop - tile.start, min(self.tiles.data_per_tile, self.tiles.num_data)
        if count < size and not self.tiles.pair.whole:
            rows = tuple(torch.cat([a, a[-1:].expand(size - count, *a.shape[1:])]) for a in rows)
        num_real = count if self.tiles.pair.data_dim is not None else 1
        self._first = tile.start
        seeded(self.tiles, tile, "prepared")
        data = self.space.prepared(rows)
        if self._kernel is not None:  # what all moves on these data have in common
            self._shared = self._kernel.share(data)
        return data, num_real

    def begin(self, data: Data, num_chains: int) -> Chains:
        """Chains at independent draws from f_0.

        Raises: `NonFiniteError` where log f_1 / f_0 is NaN or +inf; a target of 0 is none of these.
        """
        u = self.space.draw(data, num_chains)
        chains = self.begin_at(u, data)
        where = first_wrong(chains.log_ratio)
        if where is not None:
            raise NonFiniteError(blame(self.space.suspect(u, data, where), where, self._first))
        return chains

    def begin_at(self, u: Tensor, data: Data) -> Chains:
        """Chains at these points, with fresh momenta."""
        return begin(self.space.ends, u, torch.randn_like(u), *data)

    def move(self, chains: Chains, beta: Tensor, tuned: Tuned, data: Data) -> Moved:
        """One step at f_beta, `beta [data]`."""
        noise = torch.randn_like(chains.u)
        log_uniform = torch.rand_like(chains.start).log()
        spread = 1 + self.settings.jitter * (2 * torch.rand_like(chains.start) - 1)
        step = (spread * tuned.step).unsqueeze(-1) * tuned.scale
        given = (*chains, noise, log_uniform, beta, step.to(chains.u.dtype))
        if self._kernel is None:
            found: Sequence[Tensor] = self._move(*given, *data)
        else:
            found = self._kernel(self._shared, *given)
        return Moved(Chains(*found[:-1]), found[-1])

    def _move(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        chains, rest = Chains(*tensors[:6]), tensors[6:]
        settings = self.settings
        moved = move(
            self.space.ends,
            chains,
            *rest,
            num_leapfrog=settings.num_leapfrog,
            keep=settings.keep,
        )
        return *moved.chains, moved.acceptance

    def _compiled(self) -> Staged:
        tiles = self.tiles
        with own_randomness(derived_seed("recorded", tiles.seed)):
            data, _ = self.data_of(tiles.tile(0))
            chains = self.begin(data, tiles.num_samples)
            log_uniform = torch.rand_like(chains.start).log()
            beta = torch.rand_like(chains.start[0])
            step = 0.1 * torch.rand_like(chains.u)
            given = (*chains, torch.randn_like(chains.u), log_uniform, beta, step)
            kernel = Staged(self._move, data, given)
            shared = kernel.share(data)
            kernel.compile(shared, *given)
            expected = self._move(*given, *data)
        if not same_moves(expected, kernel(shared, *given), log_uniform):
            raise Untraceable(
                "the recorded move is not the eager one: something beside tensors changes from "
                "call to call"
            )
        return kernel


def same_moves(expected: Sequence[Tensor], found: Sequence[Tensor], log_uniform: Tensor) -> bool:
    """Are these the same moves, up to rounding? Their last tensor is the acceptance.

    Of some thousand chains, rounding takes one here and there another way: log u is its log
    acceptance but for the last digits, or a network's kink (relu) lies where it stands, and the
    slope is another on either side. Ties are compared by their acceptance alone, and one chain in
    a hundred may differ. Where something beside tensors has changed, most chains do.
    """
    tied = (log_uniform - expected[-1].log()).abs() < TIED
    odd = torch.zeros_like(tied)
    for a, b in zip(expected, found, strict=True):
        apart = ~torch.isclose(a, b, rtol=1e-4, atol=1e-3, equal_nan=True)
        apart = apart.flatten(tied.dim()).any(-1) if apart.dim() > tied.dim() else apart
        odd = odd | (apart if a is expected[-1] else apart & ~tied)
    return int(odd.sum()) <= odd.numel() // 100


def pilot(walk: Walk, data: Data, num_chains: int, bar: Progress | None = None) -> Tuned:
    """Step sizes by Robbins and Monro's rule, and the spread of log f_1/f_0 along the path."""
    settings = walk.settings
    num = settings.pilot_temperatures
    chains = walk.begin(data, num_chains)
    device = chains.start.device
    grid = torch.linspace(0, 1, num + 1, dtype=torch.float64, device=device) ** settings.power
    scale = chains.u.std(0).clamp_min(1e-6) if num_chains > 1 else torch.ones_like(chains.u[0])
    log_step = torch.full_like(chains.start[0], math.log(0.5))
    spread, steps = [chains.log_ratio.std(0)], []
    for i, beta in enumerate(grid[1:]):
        tuned = Tuned(log_step.exp(), scale, grid, grid)
        moved = walk.move(chains, beta.expand_as(log_step), tuned, data)
        chains = moved.chains
        spread.append(chains.log_ratio.std(0))
        error = moved.acceptance.mean(0) - settings.acceptance
        log_step = log_step + 2.0 * error / math.sqrt(i + 1)
        steps.append(log_step)
        if bar is not None:
            bar.advance()
    step = torch.stack(steps[num // 2 :]).mean(0).exp()
    found = torch.stack(spread)
    return Tuned(step, scale, grid, torch.where(found.isfinite(), found, 0.0))


def schedule(tuned: Tuned, num_temperatures: int, linear: float = 0.1) -> Tensor:
    """Temperatures `[T + 1, data]` from 0 to 1, with equal shares of the path's length.

    A tenth of the way goes linearly, in case the pilot saw no spread where there is some.
    """
    grid, spread = tuned.grid, tuned.spread
    pieces = (spread[1:] + spread[:-1]) / 2 * grid.diff().unsqueeze(1)
    way = torch.cat([torch.zeros_like(pieces[:1]), pieces.cumsum(0)])
    whole = way[-1:].clamp_min(1e-300)
    way = (1 - linear) * torch.where(way[-1:] > 0, way / whole, grid.unsqueeze(1))
    way = (way + linear * grid.unsqueeze(1)).T.contiguous()  # [data, G + 1], ascending
    wanted = torch.linspace(0, 1, num_temperatures + 1, dtype=way.dtype, device=way.device)
    wanted = wanted.expand(len(way), -1).contiguous()
    right = torch.searchsorted(way, wanted).clamp(1, len(grid) - 1)
    low, high = way.gather(1, right - 1), way.gather(1, right)
    share = ((wanted - low) / (high - low).clamp_min(1e-300)).clamp(0, 1)
    found = grid[right - 1] + share * (grid[right] - grid[right - 1])
    found[:, 0], found[:, -1] = 0.0, 1.0
    return found.T


def seeded(tiles: Tiles, tile: Tile, what: str) -> None:
    """A tile's own random numbers, for one of several purposes."""
    seed_torch(derived_seed(what, tiles.seed_of(tile)))
