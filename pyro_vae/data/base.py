"""Data sets: the family of declarations, what they load, and which likelihoods can score them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field, PositiveInt
from torch import Tensor

from pyro_vae.component import Component, nearest
from pyro_vae.data.hiding import hide_labels, hide_values
from pyro_vae.data.rows import Rows
from pyro_vae.errors import DataError, Problem, RequestError
from pyro_vae.likelihoods.base import SCORES, Likelihood

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A loaded data set.

    `train`, `validation` and `test` are float32 `[N, *shape]`; a split that does not exist has no
    rows. `labels` holds int64 `[N]` per split where they are known, -1 where one is missing;
    `masks` bool `[N, *shape]`, True where a value is known (others are 0), and `exposures` `[N]`,
    where there are any. `support` says what values a
    likelihood must score: `binary`, `unit` (in [0, 1]) or `real`. `train_transform`, if any,
    gives a training batch its fresh randomness from torch's global generator. `levels` counts the
    grey levels of dequantized data, x = (level + u) / levels.
    """

    name: str
    train: Tensor
    validation: Tensor
    test: Tensor
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    masks: Mapping[str, Tensor] = field(default_factory=dict)
    exposures: Mapping[str, Tensor] = field(default_factory=dict)
    support: str = "real"
    train_transform: Callable[[Tensor], Tensor] | None = None
    levels: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.train.shape[1:])

    def split(self, name: str) -> Tensor:
        """The data of a split. Raises `RequestError` if there is no such split, or none in it."""
        there = [split for split in SPLITS if len(getattr(self, split))]
        if name not in SPLITS:
            raise RequestError(f"no split is called '{name}'{nearest(name, there)}")
        if name not in there:
            how = "" if name == "train" else f" (data.{name}, where offered, holds some out)"
            raise RequestError(f"data '{self.name}' has no {name} data{how}{nearest('', there)}")
        return getattr(self, name)

    def fingerprint(self, split: str) -> str:
        """SHA-256 of a split's shape and exact values, the same on every device."""
        return fingerprint(self.split(split))


def fingerprint(x: Tensor) -> str:
    """SHA-256 of the shape and exact values of data, the same on every device."""
    values = x.detach().cpu().contiguous().numpy().astype("<f4", copy=False)
    found = hashlib.sha256(repr(tuple(map(int, values.shape))).encode())
    found.update(values.tobytes())
    return found.hexdigest()


class Data(Component, family="data"):
    """A data set to load. A subclass holds the fields and writes `load`.

    `train_size` and `test_size` cut a split to a random but fixed choice of its rows, for quick
    runs. `labelled` keeps the labels of so many training data, as many of each class, and hides the
    others (-1). `missing` hides this share of all values, each by itself (missing completely at
    random). What is hidden follows from `hiding_seed`, and is no part of the training seed.
    """

    train_size: int | None = Field(default=None, ge=2)
    test_size: int | None = Field(default=None, ge=1)
    labelled: PositiveInt | None = None
    missing: float = Field(default=0.0, ge=0, lt=1)
    hiding_seed: int = Field(default=0, ge=0, lt=2**32)

    def prepared(self) -> Dataset:
        """The data set with what is to be hidden hidden. Raises `DataError`."""
        dataset = self.load()
        if self.labelled is not None:
            dataset = hide_labels(dataset, self.labelled, self.hiding_seed)
        if self.missing:
            dataset = hide_values(dataset, self.missing, self.hiding_seed)
        return dataset

    def load(self) -> Dataset:
        raise NotImplementedError(f"{type(self).__name__} must write load()")

    def cut(self, name: str, splits: Mapping[str, Rows]) -> dict[str, Rows]:
        """The splits of data `name`, cut to the sizes asked for. Raises `DataError`."""
        found = dict(splits)
        for split, size in (("train", self.train_size), ("test", self.test_size)):
            if size is None:
                continue
            there = len(splits[split]) if split in splits else 0
            if size > there:
                text = f"{size}, but data '{name}' has only {there} {split} rows; ask for fewer"
                raise DataError(Problem(("data", f"{split}_size"), text))
            found[split] = splits[split].subset(size)
        if len(found["train"]) < 2:
            raise DataError(
                f"data '{name}' has {len(found['train'])} training row; a model is fitted to at "
                "least 2 data"
            )
        return found


class Scoring(Protocol):
    """What `check_fit` needs to know of a likelihood."""

    name: str
    support: str


VALUES = {"binary": "values in {0, 1}", "unit": "values in [0, 1]", "real": "real values"}


def check_fit(dataset: Dataset, likelihood: Scoring) -> None:
    """Refuse data that the likelihood cannot score. Raises `DataError` with the ways out."""
    if dataset.support in SCORES.get(likelihood.support, (likelihood.support,)):
        return
    scored = VALUES.get(likelihood.support, f"{likelihood.support} values")
    held = VALUES.get(dataset.support, f"{dataset.support} values")
    outs = [f"model.likelihood={name}" for name in likelihoods_for(dataset.support)]
    if dataset.support == "unit":
        held = "grey values"
        outs = [f"model.likelihood={name}" for name in likelihoods_for("real")]
        outs = [f"{' or '.join(outs)} with data.dequantize=uniform"] if outs else []
        outs.insert(0, "data.binarize=dynamic (or threshold, fixed)")
    elif dataset.levels is not None:
        held = "dequantized real values"
        binary = " and data.binarize=dynamic" if likelihood.support == "binary" else ""
        outs.insert(0, f"data.dequantize=none{binary}")
    ways = f"; set {', or '.join(outs)}" if outs else ""
    raise DataError(
        f"likelihood '{likelihood.name}' scores {scored}, but data '{dataset.name}' has {held}"
        f"{ways}"
    )


def likelihoods_for(support: str) -> list[str]:
    """The names of the likelihoods that can score data of this support."""
    known: Mapping[str, Any] = Likelihood.registry
    return [
        name for name, cls in known.items() if support in SCORES.get(cls.support, (cls.support,))
    ]
