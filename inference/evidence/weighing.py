"""Functions of the record of a tile, through Pyro's handlers each time or recorded once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from inference.errors import EngineWarning, RequestError, Untraceable
from inference.isolation import derived_seed, own_randomness, seed_torch
from inference.record import LogWeights
from inference.requests import one_of
from inference.staging import Staged, attempt
from inference.tiles import Tile, Tiles, numbers_per_tile

Reduction = Callable[[LogWeights], Sequence[Tensor]]
ENGINES = ("auto", "eager", "compiled")

# Compiling takes about 10 seconds and saves a third of the time: it is repaid by work of 30
# seconds or more. Operations of the networks' products in that time, by kind of device.
OPERATIONS_TO_REPAY = {"cpu": 5e12, "cuda": 5e14}


def check_engine(engine: str) -> None:
    """Raises: `RequestError`."""
    if engine == "cuda_graph":
        raise RequestError(
            "engine: 'cuda_graph' is for training; log p(x) has 'compiled', on a GPU too, or 'auto'"
        )
    one_of("engine", engine, ENGINES)


class Weighing:
    """`reduction(record)` of each tile: tensors `[samples, data]`, in float64.

    Recorded, the guide's encoder runs once for all samples of a datum, what depends on parameters
    alone once for all data, and the rest is compiled. Draws are the same either way. Tiles of
    another shape than the first, at the edges, go through the handlers.
    """

    def __init__(self, tiles: Tiles, reduction: Reduction, engine: str = "auto"):
        self.tiles, self.reduction = tiles, reduction
        self.engine, self.reason = "eager", "as asked"
        self._kernel: Staged | None = None
        self._shared: tuple[int, list[Tensor]] | None = None
        self._checked = 0  # data
        if engine == "eager":
            return
        if engine == "auto":
            work, enough = self._work(), OPERATIONS_TO_REPAY.get(tiles.device.type, 5e12)
            if work < enough:
                self.reason = f"{work:.1g} operations do not repay compiling (from {enough:.0g} on)"
                return
            self.reason = f"{work:.1g} operations repay compiling"
        self._kernel, refusal = attempt(self._compiled)
        self.engine = "eager" if refusal else "compiled"
        self.reason = refusal or self.reason
        if engine == "compiled" and refusal:
            warnings.warn(f"tiles are weighed eagerly: {self.reason}", EngineWarning, stacklevel=3)

    def __call__(self, tile: Tile) -> list[Tensor]:
        tiles = self.tiles
        if self._kernel is None or not tiles.is_whole(tile):
            return list(self.reduction(tiles.score(tile)))
        if self._shared is None or self._shared[0] != tile.start:
            self._check(tile)
            self._shared = (tile.start, self._kernel.share(tiles.rows_of(tile)))
        seed_torch(tiles.seed_of(tile))  # a recorded graph draws from no other
        return self._kernel(self._shared[1])

    def _check(self, tile: Tile) -> None:
        """See that data lie in their supports, many at once, before they are needed."""
        while self._checked < tile.stop:
            most = max(1, numbers_per_tile(self.tiles.device) // self.tiles.pair.event_numel)
            stop = min(self._checked + max(most, tile.stop - tile.start), self.tiles.num_data)
            self.tiles.check(tuple(a[self._checked : stop] for a in self.tiles.arguments))
            self._checked = stop

    def _function(self, *data: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.reduction(self.tiles.record(data, self.tiles.samples_per_tile)))

    def _compiled(self) -> Staged:
        tiles = self.tiles
        if tiles.pair.whole or tiles.pair.subsampling == "own":
            raise Untraceable("the pair takes all of its data at once, which is one tile")
        data = tiles.rows_of(tiles.tile(0))
        kernel = Staged(self._function, data)
        kernel.compile(kernel.share(data))
        self._hold_against_eager(kernel)
        return kernel

    def _hold_against_eager(self, kernel: Staged) -> None:
        """Compare with the handlers for other data and noise than those of the recording."""
        tiles = self.tiles
        last = tiles.rows()[(tiles.num_data - tiles.data_per_tile) // tiles.data_per_tile]
        close = 1e-2 if tiles.precision == "bfloat16" else 1e-5
        for start in dict.fromkeys((0, last)):
            data = tiles.rows_of(tiles.tile(start))
            seed = derived_seed("held", tiles.seed, start)
            with own_randomness(seed):
                expected = self._function(*data)
            with own_randomness(seed):
                found = kernel(kernel.share(data))
            for a, b in zip(expected, found, strict=True):
                if not torch.allclose(a, b, rtol=close, atol=100 * close, equal_nan=True):
                    raise Untraceable(
                        "on other data and noise the recorded tile is not the eager one: something "
                        "beside tensors changes from call to call (numpy, a counter, a number read "
                        "from the data)"
                    )

    def _work(self) -> float:
        """Operations in the products of all tiles, by the shapes of one."""
        tiles = self.tiles
        tile = tiles.tile(0)
        count = min(tile.count, 16)
        counter = _Products()
        with own_randomness(0), torch.no_grad(), counter:
            tiles.record(tiles.rows_of(tile), count)
        share = (tile.stop - tile.start) * count
        return counter.operations / share * tiles.num_data * tiles.num_samples


class _Products(TorchDispatchMode):
    """Counts the operations of matrix products and convolutions."""

    # torch's own counter hooks every module's forward, where a VampPrior's inputs are no batch.
    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=result)
        return result
