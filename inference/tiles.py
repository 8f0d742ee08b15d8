"""Work over data x samples, cut into tiles that never depend on the machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.isolation import (
    derived_seed,
    modes,
    modules_of,
    own_randomness,
    own_store,
    seed_all,
)
from inference.log_weights import evidence_pair
from inference.memory import keep_freed_memory
from inference.pair import Data, Pair, as_arguments, examine
from inference.particles import Scorer
from inference.precision import arithmetic, cast, check_precision, in_dtype, products, switches
from inference.record import LogWeights
from inference.requests import device_of, usable_device, whole_number
from inference.rows import check_rows

# Numbers in the largest site of one tile: 2^21 float32 stay in a processor's last cache level,
# where its next operation finds them, and outweigh what a tile costs by itself; a GPU wants more.
TILE_NUMBERS = {"cpu": 2**21, "cuda": 2**26}


def numbers_per_tile(device: torch.device) -> int:
    return TILE_NUMBERS.get(device.type, TILE_NUMBERS["cpu"])


def even_share(count: int, most: int) -> int:
    """A part of `count` of at most `most`, such that parts are equal or nearly so."""
    if count <= most:
        return count
    for size in range(most, most // 2, -1):
        if count % size == 0:
            return size
    return math.ceil(count / math.ceil(count / most))


@dataclass(frozen=True)
class Tile:
    """Data `start:stop`, samples `column:column + count`; `skip` leading rows were seen before."""

    start: int
    stop: int
    column: int
    count: int
    skip: int


@dataclass(frozen=True)
class Tiles:
    """`num_data` x `num_samples`, cut by the problem's shapes.

    Each tile has its own seed, so that tiles of one shape give the same numbers in any order.
    """

    pair: Pair
    scorer: Scorer
    arguments: tuple[Tensor, ...]
    num_samples: int
    data_per_tile: int
    samples_per_tile: int
    seed: int
    precision: str = "float32"

    @property
    def num_data(self) -> int:
        return len(self.arguments[0])

    @property
    def device(self) -> torch.device:
        return self.arguments[0].device

    def rows(self) -> range:
        return range(0, self.num_data, self.data_per_tile)

    def columns(self) -> range:
        return range(0, self.num_samples, self.samples_per_tile)

    def tile(self, start: int, column: int = 0) -> Tile:
        stop = min(start + self.data_per_tile, self.num_data)
        count = min(self.samples_per_tile, self.num_samples - column)
        # A pair that subsamples takes exactly its own number of indices: the last block overlaps.
        first = max(0, stop - self.data_per_tile) if self.pair.subsampling == "own" else start
        return Tile(first, stop, column, count, skip=start - first)

    def is_whole(self, tile: Tile) -> bool:
        """Has it the shape of the first, not that of one at the edge?"""
        size = min(self.data_per_tile, self.num_data), min(self.samples_per_tile, self.num_samples)
        return (tile.stop - tile.start, tile.count) == size

    def seed_of(self, tile: Tile) -> int:
        return derived_seed(self.seed, tile.start + tile.skip, tile.column)

    def rows_of(self, tile: Tile) -> tuple[Tensor, ...]:
        return tuple(a[tile.start : tile.stop] for a in self.arguments)

    def record(self, data: tuple[Tensor, ...], count: int) -> LogWeights:
        """The record of these data with fresh draws."""
        with products(self.precision):
            return self.scorer(data, count)

    def check(self, data: tuple[Tensor, ...]) -> None:
        """Raises `PairError` if data lie outside the support of their distribution."""
        with own_randomness():
            self.scorer(data, 1, check=True)

    def score(self, tile: Tile) -> LogWeights:
        """The record of one tile, with its own draws."""
        seed_all(self.seed_of(tile))
        check = tile.column == 0
        # Switches apart: a tile may be scored once more in another precision.
        with arithmetic(self.precision, self.device):
            if self.pair.subsampling == "own":
                subset = torch.arange(tile.start, tile.stop, device=self.device)
                return self.scorer(self.arguments, tile.count, subset, check=check)
            return self.scorer(self.rows_of(tile), tile.count, check=check)

    def draws(self, record: LogWeights, name: str, tile: Tile) -> Tensor:
        """One latent site of a record as `[samples, data, units]`, float64."""
        value = record.latents[name].double()
        event_dim = record.model_fn[name].event_dim
        data_axis = value.dim() - event_dim + self.pair.data_dim  # type: ignore[operator]
        if self.scorer.folded:
            rows = value.movedim(data_axis, 0).flatten(1)
            return rows.reshape(-1, tile.count, rows.shape[1]).transpose(0, 1)
        rows = value.movedim(data_axis, 1)
        return rows.reshape(tile.count, rows.shape[1], -1)[:, tile.skip :]


@contextmanager
def tiled(
    model: Callable,
    guide: Callable,
    data: Data,
    num_samples: int,
    *,
    seed: int,
    plate: str | None,
    device: str | torch.device | None = None,
    precision: str = "float32",
    whole_rows: bool = False,
    instead: tuple[Callable, Callable] | None = None,
) -> Iterator[Tiles]:
    """Look at a pair and lay tiles over `data`; store, random state and modes are left as found.

    Data are moved to `device`, and so are the modules that the pair uses, which stay there; by
    default data go where the modules are. With `whole_rows`, each tile holds all samples of its
    data. `instead` is the pair that is run, made of this one.
    Raises: `PairError`, `RequestError`.
    """
    whole_number("num_samples", num_samples)
    arguments = as_arguments(data)
    modules = modules_of(model, guide)
    if device is None:
        device = device_of(modules, arguments)
    else:
        device = usable_device(device)
        for module in modules:
            module.to(device)
    check_precision(precision, device)
    keep_freed_memory(device)
    arguments = cast(tuple(a.to(device) for a in arguments), precision)
    with (
        own_store(),
        own_randomness(seed),
        modes(modules, training=False),
        in_dtype(modules, precision),
        switches(precision, device),
        torch.no_grad(),
    ):
        pair = evidence_pair(examine(*(instead or (model, guide)), arguments, plate))
        rows = max(1, numbers_per_tile(device) // pair.event_numel)
        data_per_tile = None
        if pair.subsampling == "own":
            data_per_tile = pair.subsample_size
        elif pair.whole:
            data_per_tile = len(arguments[0])
        # What one particle costs, for a pair that takes a fixed number of data at once.
        at_once = data_per_tile if data_per_tile and plate is not None else 1
        samples = num_samples if whole_rows else even_share(num_samples, max(1, rows // at_once))
        if data_per_tile is None:
            data_per_tile = even_share(len(arguments[0]), max(1, rows // samples))
        check_rows(pair, arguments, split=data_per_tile < len(arguments[0]))
        scorer = Scorer(pair, arguments)
        yield Tiles(pair, scorer, arguments, num_samples, data_per_tile, samples, seed, precision)
