"""Data sets: the family of declarations, what they load, and which likelihoods can score them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field, PositiveInt
from torch import Tensor

from pyro_vae.component import Component, nearest
from pyro_vae.data.hiding import hide_labels, hide_values, repeat_labelled
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
    where there are any. `support` says what values a likelihood must score: `binary`; `levels`
    (grey levels as they are); `unit` (in [0, 1]); `inside` (in (0, 1), as dequantized levels are);
    `count`; or `real`. `train_transform`, if any, gives a training batch its fresh randomness from
    torch's global generator. `levels` counts grey levels: x = level / (levels - 1) as they are,
    x = (level + u) / levels dequantized; `binarized_levels` those that binary data were made of.
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
    binarized_levels: int | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one datum."""
        return tuple(self.train.shape[1:])

    @property
    def dequantized(self) -> bool:
        """Are these grey levels with uniform noise?"""
        return self.levels is not None and self.support == "inside"

    def splits(self) -> list[str]:
        """The names of the splits that have rows."""
        return [split for split in SPLITS if len(getattr(self, split))]

    def split(self, name: str) -> Tensor:
        """The data of a split. Raises `RequestError` if there is no such split, or none in it."""
        there = self.splits()
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
    others (-1); `repeat_labelled` lets these data stand so many times among the others, so that
    most batches hold some, and counts their bound as often. `missing` hides this share of all
    values, each by itself (missing completely at random). What is hidden follows from
    `hiding_seed`, and is no part of the training seed.
    """

    train_size: int | None = Field(default=None, ge=2)
    test_size: int | None = Field(default=None, ge=1)
    labelled: PositiveInt | None = None
    repeat_labelled: PositiveInt = 1
    missing: float = Field(default=0.0, ge=0, lt=1)
    hiding_seed: int = Field(default=0, ge=0, lt=2**32)

    def prepared(self) -> Dataset:
        """The data set with what is to be hidden hidden. Raises `DataError`."""
        dataset = self.load()
        if self.labelled is not None:
            dataset = hide_labels(dataset, self.labelled, self.hiding_seed)
        if self.missing:
            dataset = hide_values(dataset, self.missing, self.hiding_seed)
        if self.repeat_labelled > 1:
            dataset = repeat_labelled(dataset, self.repeat_labelled)
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
    """What `check_fit` needs to know of a likelihood: `levels`, too, where it has some."""

    name: str
    support: str


VALUES = {
    "binary": "values in {0, 1}",
    "levels": "grey levels",
    "unit": "values in [0, 1]",
    "inside": "values inside (0, 1)",
    "count": "counts 0, 1, 2, ...",
    "real": "real values",
}


def check_fit(dataset: Dataset, likelihood: Scoring) -> None:
    """Refuse data that the likelihood cannot score. Raises `DataError` with the ways out."""
    if hasattr(likelihood, "slices"):
        _check_columns(dataset, likelihood)
        return
    if dataset.support in SCORES.get(likelihood.support, (likelihood.support,)):
        _check_levels(dataset, likelihood)
        return
    scored = VALUES.get(likelihood.support, f"{likelihood.support} values")
    held = VALUES.get(dataset.support, f"{dataset.support} values")
    plain, noisy, outs = likelihoods_for(dataset.support), [], []
    if dataset.dequantized:
        held = "dequantized real values"
        binary = " and data.binarize=dynamic" if likelihood.support == "binary" else ""
        if binary or likelihood.support == "levels":
            outs.append(f"data.dequantize=none{binary}")
    elif dataset.support in ("levels", "unit"):
        held = "grey values"
        if likelihood.support == "binary":
            outs.append("data.binarize=dynamic (or threshold, fixed)")
        if dataset.levels is not None:  # a density of few distinct values can grow without limit
            noisy = likelihoods_for("inside")
            plain = [name for name in plain if name not in noisy]
        if likelihood.name in noisy:
            outs.append("data.dequantize=uniform")
    elif dataset.binarized_levels is not None and likelihood.support in ("levels", "inside"):
        more = {
            "levels": f"model.likelihood.levels={dataset.binarized_levels}",
            "inside": "data.dequantize=uniform",
        }
        outs.append(f"data.binarize=none and {more[likelihood.support]}")
    elif likelihood.support == "count" and dataset.support == "real" and _whole(dataset.train):
        outs.append("integers in place of the floats that hold these counts")
    outs += [f"model.likelihood={' or '.join(plain)}"] if plain else []
    outs += [f"model.likelihood={' or '.join(noisy)} with data.dequantize=uniform"] if noisy else []
    ways = f"; set {', or '.join(outs)}" if outs else ""
    raise DataError(
        f"likelihood '{likelihood.name}' scores {scored}, but data '{dataset.name}' has {held}"
        f"{ways}"
    )


def _check_levels(dataset: Dataset, likelihood: Any) -> None:
    """A likelihood of grey levels has as many as the data; one of codes, no fewer."""
    levels = getattr(likelihood, "levels", None)
    if levels is None:
        return
    held = dataset.levels
    if likelihood.support == "count":
        held = max(int(x.max()) for x in map(dataset.split, dataset.splits())) + 1
    if held is None or levels == held or (likelihood.support == "count" and levels > held):
        return
    raise DataError(
        f"likelihood '{likelihood.name}' has {levels} levels, but data '{dataset.name}' has "
        f"{held}; set model.likelihood.levels={held}"
    )


def _check_columns(dataset: Dataset, likelihood: Any) -> None:
    """Each part of a table's likelihood can score what its columns hold."""
    slices = likelihood.slices()
    if dataset.shape != (slices[-1][1].stop,):
        raise DataError(
            f"likelihood '{likelihood.name}' covers {slices[-1][1].stop} columns, but a datum of "
            f"'{dataset.name}' has shape {dataset.shape}; give each column its part"
        )
    known: Mapping[str, Any] = Likelihood.registry
    for number, (part, columns) in enumerate(slices, 1):
        for split in dataset.splits():
            x = dataset.split(split)[:, columns]
            wrong = ~inside(x, part)
            if not bool(wrong.any()):
                continue
            fits = [
                name
                for name, cls in known.items()
                if cls.support in SCORES
                and "levels" not in cls.model_fields
                and inside(x, cls).all()
            ]
            row, column = (int(i) for i in wrong.nonzero()[0])
            levels = f" of {part.levels} levels" if hasattr(part, "levels") else ""
            raise DataError(
                f"likelihood '{likelihood.name}': part {number} ('{part.name}', columns "
                f"{columns.start} to {columns.stop - 1}) scores {VALUES[part.support]}{levels}, "
                f"but '{split}' of data '{dataset.name}' has {float(x[row, column]):g} in row "
                f"{row}, column {columns.start + column}; choices: {', '.join(fits)}"
            )


def inside(x: Tensor, likelihood: Any) -> Tensor:
    """Which values of x a likelihood of this support (and its `levels`) can score."""
    top = getattr(likelihood, "levels", 0) - 1
    if likelihood.support == "binary":
        return (x == 0) | (x == 1)
    if likelihood.support == "count":
        return (x >= 0) & (x == x.round()) & ((x <= top) if top > 0 else True)
    if likelihood.support == "levels":
        return (x >= 0) & (x <= 1) & ((x * top - (x * top).round()).abs() < 1e-3)
    if likelihood.support == "unit":
        return (x >= 0) & (x <= 1)
    if likelihood.support == "inside":
        return (x > 0) & (x < 1)
    return x.isfinite()


def _whole(x: Tensor) -> bool:
    return bool(((x >= 0) & (x == x.round())).all())


def likelihoods_for(support: str) -> list[str]:
    """The names of the likelihoods that can score data of this support."""
    known: Mapping[str, Any] = Likelihood.registry
    return [
        name for name, cls in known.items() if support in SCORES.get(cls.support, (cls.support,))
    ]
