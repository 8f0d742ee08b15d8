"""Grey data: how they are binarized or dequantized, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, model_validator
from torch import Tensor

from pyro_vae.data.base import SPLITS, Data, Dataset
from pyro_vae.data.rows import Rows
from pyro_vae.errors import DataError, Problem


class GreyData(Data):
    """Data of grey values, with what is made of them.

    binarize: `none`; `threshold` (x >= 0.5); `dynamic`, x ~ Bernoulli(grey), drawn afresh for each
    training batch and once for validation and test data (arXiv:1509.00519); `fixed`, drawn once
    for all. dequantize: `none`, or `uniform`, x = (level + u) / levels with u ~ U(0, 1), again
    afresh for training only (arXiv:1511.01844). `binarization_seed` sets what is drawn once; it
    is no part of the training seed, so that every run is judged on the same data. `validation`
    training data are held out by a permutation that never changes.
    """

    binarize: Literal["none", "threshold", "dynamic", "fixed"] = "none"
    dequantize: Literal["none", "uniform"] = "none"
    binarization_seed: int = Field(default=0, ge=0, lt=2**32)
    validation: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_of_two(self):
        if self.binarize != "none" and self.dequantize != "none":
            raise ValueError(
                f"binarize={self.binarize} and dequantize={self.dequantize} exclude each other: "
                "set dequantize=none for binary data, or binarize=none for real ones"
            )
        return self

    def hold_out(self, name: str, whole: Rows, test: int = 0) -> dict[str, Rows]:
        """`whole` cut into splits, with `test` test data. Raises `DataError`."""
        left = len(whole) - self.validation - test
        if left < 2:
            field, count = ("validation", self.validation) if self.validation else ("test", test)
            beside = f" beside {test} test data" if test and self.validation else ""
            text = (
                f"{count}{beside} leaves {max(left, 0)} of the {len(whole)} rows of '{name}' for "
                "training; at least 2 must be left, so hold out fewer"
            )
            raise DataError(Problem(("data", field), text))
        held_test, validation, train = whole.hold_out(test, self.validation)
        return {"train": train, "validation": validation, "test": held_test}

    def dataset(
        self,
        name: str,
        splits: Mapping[str, Rows],
        levels: int | None = None,
        integers: bool = False,
    ) -> Dataset:
        """The data set of these splits, whose values are grey `levels` 0, 1, ... or lie in [0, 1].

        Without `levels`, `binarize` and `dequantize`, values may lie anywhere; `integers` that are
        not negative are counts.
        """
        dequantized = self.dequantize != "none"
        if dequantized and levels is None:
            raise DataError(f"data '{name}' has no grey levels; set data.dequantize=none")
        splits = self.cut(name, {split: rows for split, rows in splits.items() if len(rows)})
        tensors: dict[str, Any] = {
            split: torch.from_numpy(self._values(rows, levels, fresh=split == "train"))
            for split, rows in splits.items()
        }
        empty = torch.empty(0, *tensors["train"].shape[1:])
        labels = {
            split: torch.from_numpy(rows.pick(rows.labels).astype(np.int64))
            for split, rows in splits.items()
            if rows.labels is not None
        }
        masks = {
            split: torch.from_numpy(rows.pick(rows.mask))
            for split, rows in splits.items()
            if rows.mask is not None
        }
        exposures = {
            split: torch.from_numpy(rows.pick(rows.exposure))
            for split, rows in splits.items()
            if rows.exposure is not None
        }
        transform = AddNoise(levels) if dequantized and levels else None
        return Dataset(
            name=name,
            **{split: tensors.get(split, empty) for split in SPLITS},
            labels=labels,
            masks=masks,
            exposures=exposures,
            support=self._support(tensors, levels, integers),
            train_transform=draw_binary if self.binarize == "dynamic" else transform,
            levels=levels if self.binarize == "none" else None,
            binarized_levels=None if self.binarize == "none" else levels,
        )

    def _values(self, rows: Rows, levels: int | None, fresh: bool) -> np.ndarray:
        """float32 values; `fresh`: what is random is left to the training batch."""
        x = rows.values.astype(np.float32)
        if self.dequantize != "none":
            return (x if fresh else x + rows.uniforms(self.binarization_seed)) / np.float32(levels)
        if levels is not None:
            x /= np.float32(levels - 1)
        if self.binarize == "threshold":
            return (x >= 0.5).astype(np.float32)
        if self.binarize == "fixed" or (self.binarize == "dynamic" and not fresh):
            return (rows.uniforms(self.binarization_seed) < x).astype(np.float32)
        return x

    def _support(self, tensors: Mapping[str, Tensor], levels: int | None, integers: bool) -> str:
        if self.binarize != "none":
            return "binary"
        if self.dequantize != "none":
            return "inside"
        if levels is not None:
            return "levels"
        if all(bool(((x == 0) | (x == 1)).all()) for x in tensors.values()):
            return "binary"
        low = min(float(x.min()) for x in tensors.values())
        high = max(float(x.max()) for x in tensors.values())
        if integers and low >= 0:
            return "count"
        if low > 0 and high < 1:
            return "inside"
        return "unit" if low >= 0 and high <= 1 else "real"


def draw_binary(x: Tensor) -> Tensor:
    """x ~ Bernoulli(grey value)."""
    # Twice as fast as torch.bernoulli, which draws in double precision.
    return (torch.rand_like(x) < x).to(x.dtype)


@dataclass(frozen=True)
class AddNoise:
    """x + u / levels, u ~ U(0, 1)."""

    levels: int

    def __call__(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x) / self.levels
