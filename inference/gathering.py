"""Draws of a pair and what they weigh, gathered tile by tile into arrays by group."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from pyro import poutine
from torch import Tensor

from inference.errors import NonFiniteError
from inference.evidence import streaming
from inference.evidence.importance import MANY_ULP
from inference.isolation import derived_seed, seed_all
from inference.labels import SiteNotes, arranged, observed
from inference.marks import Unmarked
from inference.particles import Given, Scorer
from inference.progress import Progress
from inference.record import LogWeights
from inference.resampling import Resampled
from inference.tiles import Tile, Tiles

OF_PROPOSALS = {"importance_resampled", "importance_weights"}
OF_PRIOR = {"prior", "prior_predictive"}
BY_DATUM = ("ess", "khat", "flagged")  # of all proposals, in group importance_weights


@dataclass(frozen=True)
class Shape:
    """Of a variable, per draw and datum: the lengths of its axes, and the plates they belong to."""

    lengths: tuple[int, ...]
    plates: tuple[str | None, ...]
    dtype: np.dtype


NUMBER = Shape((), (), np.dtype(np.float64))


class Gathering:
    """Arrays `[S, N, ...]` of draws and `[N, ...]` of what is known of each datum, by group.

    N is 1 for `plate=None`. `shapes` holds those of latent and observed sites. Where the last
    block of data overlaps (a plate that subsamples), it takes the place of what stood there.

    Args:
        tiles: laid for S draws, so that what the guide draws does not depend on K.
        num_proposals: K, draws that are weighed.
        wanted: groups.
    """

    def __init__(self, tiles: Tiles, num_proposals: int, wanted: set[str]):
        self.num_samples, self.wanted = tiles.num_samples, wanted
        self.pair, self.notes = tiles.pair, SiteNotes()
        noted = running(tiles.scorer, self.notes(self.pair.model), self.pair.guide)
        self.tiles = replace(tiles, scorer=noted, num_samples=num_proposals)
        # Observed sites are drawn, too, and so are those that the weights sum over.
        self.model = Unmarked(self.pair.enumerated)(poutine.uncondition(self.pair.model))
        self.num_data = 1 if self.pair.plate is None else tiles.num_data
        self.arrays: dict[str, dict[str, np.ndarray]] = {}

        record = self.tiles.score(replace(tiles.tile(0), count=1))
        sites = self.notes.sites
        summed = self.pair.enumerated
        self.latents = [n for n in record.latents if n in sites and n not in summed]
        self.observed = [name for name, site in sites.items() if site.observed is not None]
        mixed = [name for _, name in record.entangled]  # their terms hold those of latents
        self.explained = [n for n in self.observed if n in record.log_p and n not in mixed]
        self.shapes: dict[str, Shape] = {}
        for name in (*self.latents, *self.observed):
            value, plates = self._arranged(record, name, 1)
            lengths = tuple(value.shape[2:])
            self.shapes[name] = Shape(lengths, tuple(plates), to_numpy(value[:0]).dtype)

    def layout(self) -> dict[str, dict[str, tuple[Shape, bool]]]:
        """The variables of each wanted group: their shape, and whether there is one a draw."""
        latents = {name: (self.shapes[name], True) for name in self.latents}
        replicates = {name: (self.shapes[name], True) for name in self.observed}
        every = {
            "guide": latents,
            "importance_resampled": latents,
            "importance_weights": {"log_weight": (NUMBER, True), "ess": (NUMBER, False)}
            | {"khat": (NUMBER, False), "flagged": (Shape((), (), np.dtype(bool)), False)},
            "log_likelihood_conditional": dict.fromkeys(self.explained, (NUMBER, True)),
            "guide_predictive": replicates,
            "prior": latents,
            "prior_predictive": replicates,
            "observed_data": {name: (self.shapes[name], False) for name in self.observed},
        }
        # Covariates are what is not observed.
        wanted = self.wanted | ({"observed_data"} if "constant_data" in self.wanted else set())
        return {group: found for group, found in every.items() if group in wanted and found}

    def sizes(self) -> dict[str, int]:
        """Bytes of each group."""
        return {
            group: sum(math.prod(self._full(*v)) * v[0].dtype.itemsize for v in found.values())
            for group, found in self.layout().items()
        }

    @property
    def num_tiles(self) -> int:
        return len(self.tiles.rows()) * len(self.tiles.columns())

    def run(self, bar: Progress) -> None:
        """Fill all arrays. Raises: `NonFiniteError`."""
        self.arrays = {
            group: {name: np.empty(self._full(*v), v[0].dtype) for name, v in found.items()}
            for group, found in self.layout().items()
        }
        for start in self.tiles.rows():
            if OF_PRIOR & {*self.arrays}:
                for column in range(0, self.num_samples, self.tiles.samples_per_tile):
                    self._prior(self.tiles.tile(start, column))
            if {*self.arrays} - OF_PRIOR:
                self._row(start, bar)
            else:
                bar.advance(len(self.tiles.columns()))

    def _full(self, shape: Shape, draws: bool) -> tuple[int, ...]:
        return (*((self.num_samples,) if draws else ()), self.num_data, *shape.lengths)

    def _row(self, start: int, bar: Progress) -> None:
        """All proposals of the data of one row of tiles."""
        tiles, first = self.tiles, self.tiles.tile(start)
        resampled = Resampled(self.num_samples)
        weights = None
        for column in tiles.columns():
            tile = tiles.tile(start, column)
            record = tiles.score(tile)
            if column < self.num_samples:
                self._guide(record, tile)
            if OF_PROPOSALS & {*self.arrays}:
                log_weight = self._log_weight(record, tile)
                self._put("importance_weights", "log_weight", log_weight, tile)
                rounding = self._numbers(record.ulp, tile).amax(0)
                if weights is None:
                    weights = streaming.init(len(rounding), tiles.num_samples, tiles.device)
                weights = streaming.update(weights, log_weight.T, MANY_ULP * rounding)
            if "importance_resampled" in self.arrays:
                seed_all(derived_seed("resampled", tiles.seed_of(tile)))
                values = {n: self._arranged(record, n, tile.count)[0] for n in self.latents}
                resampled.update(log_weight, values)
            bar.advance()
        for name, value in resampled.values.items():
            self._put("importance_resampled", name, value, first)
        if weights is not None and "importance_weights" in self.arrays:
            found = streaming.judged(weights)
            for name in BY_DATUM:
                self._fill("importance_weights", name, found[name], first)

    def _guide(self, record: LogWeights, tile: Tile) -> None:
        """The guide's draws, what they explain, and what the model makes of them."""
        for name in self.latents:
            self._put("guide", name, self._arranged(record, name, tile.count)[0], tile)
        for name in self.explained:
            log_p = self._numbers(record.log_p[name], tile)
            self._put("log_likelihood_conditional", name, log_p, tile)
        for name in self.observed:
            if tile.column == 0 and "observed_data" in self.arrays:
                value = self._arranged(record, name, tile.count)[0][0]
                self._fill("observed_data", name, value, tile)
        if "guide_predictive" in self.arrays:
            given = Given({**record.latents, **record.auxiliary})(self.pair.guide)
            drawn = self._free(given, tile, "predictive")
            for name in self.observed:
                self._put("guide_predictive", name, drawn[name], tile)

    def _prior(self, tile: Tile) -> None:
        """Latents of the model and what it makes of them."""
        drawn = self._free(_no_guide, tile, "prior")
        for name in self.latents:
            self._put("prior", name, drawn[name], tile)
        for name in self.observed:
            self._put("prior_predictive", name, drawn[name], tile)

    def _free(self, guide: Callable, tile: Tile, purpose: str) -> dict[str, Tensor]:
        """Draws of the model's sites that the guide does not have, observed ones among them."""
        scorer = running(self.tiles.scorer, self.model, guide)
        scorer.pair = replace(scorer.pair, enumerated=())
        tiles = replace(self.tiles, scorer=scorer, seed=derived_seed(purpose, self.tiles.seed))
        record = tiles.score(tile)
        return {
            name: self._arranged(record, name, tile.count, free=True)[0] for name in self.shapes
        }

    def _arranged(
        self, record: LogWeights, name: str, count: int, *, free: bool = False
    ) -> tuple[Tensor, list[str | None]]:
        site, folded = self.notes.sites[name], self.tiles.scorer.folded
        if free or site.observed is None:
            value = record.latents[name]
        else:
            value = observed(site, self.pair, folded=folded)
        return arranged(value, site, self.pair, count, folded=folded)

    def _log_weight(self, record: LogWeights, tile: Tile) -> Tensor:
        found = self._numbers(record.log_weight, tile)
        wrong = ~(found < math.inf)
        if bool(wrong.any()):
            where = tile.start + int(wrong.any(0).nonzero()[0])
            raise NonFiniteError(
                f"log w of datum {where} is NaN or infinite; log_marginal names the site whose "
                "parameters to check"
            )
        return found

    def _numbers(self, scores: Tensor, tile: Tile) -> Tensor:
        """One number a draw and datum `[k, data]`, skipped data among them..."""
        return scores.expand(tile.count, *scores.shape[1:]).reshape(tile.count, -1)

    def _put(self, group: str, name: str, value: Tensor, tile: Tile) -> None:
        """Draws `[k, data, ...]` of a tile into their places, as far as they are wanted."""
        if group in self.arrays:
            into = self.arrays[group][name][tile.column : tile.column + len(value)]
            into[:, self._data(tile)] = to_numpy(value[: len(into)])

    def _fill(self, group: str, name: str, value: Tensor, tile: Tile) -> None:
        self.arrays[group][name][self._data(tile)] = to_numpy(value)

    def _data(self, tile: Tile) -> slice:
        return slice(None) if self.pair.plate is None else slice(tile.start, tile.stop)


def running(scorer: Scorer, model: Callable, guide: Callable) -> Scorer:
    """The scorer for other programs, which take particles as its own do."""
    other = copy.copy(scorer)
    other.pair = replace(scorer.pair, model=model, guide=guide)
    return other


def _no_guide(*arguments: Tensor) -> None:
    """Leaves every site to the model."""


def to_numpy(tensor: Tensor) -> np.ndarray:
    """On the CPU; what numpy has no name for (bfloat16) as float32."""
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
