"""Labels and values that a model is not told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pyro_vae.data.rows import permutation, uniforms
from pyro_vae.errors import DataError, Problem

if TYPE_CHECKING:
    from pyro_vae.data.base import Dataset

STREAMS = {"train": 10, "validation": 11, "test": 12}


def hide_labels(dataset: Dataset, keep: int, seed: int) -> Dataset:
    """Keep the labels of `keep` training data, as many of each class as of any other (or one more).

    Raises: `DataError` where there are not so many.
    """
    y = dataset.labels.get("train")
    if y is None:
        text = f"{keep}, but data '{dataset.name}' has no labels; leave it out"
        raise DataError(Problem(("data", "labelled"), text))
    held = y.numpy()
    order = permutation(seed, len(held))
    classes = np.unique(held[held >= 0])
    each = [order[held[order] == label] for label in classes]
    chosen: list[int] = []
    # One of each class in turn, until there are enough.
    for turn in range(max((len(rows) for rows in each), default=0)):
        chosen += [int(rows[turn]) for rows in each if turn < len(rows)]
        if len(chosen) >= keep:
            break
    if len(chosen) < keep:
        text = f"{keep}, but data '{dataset.name}' has {len(chosen)} labels of training data"
        raise DataError(Problem(("data", "labelled"), text))
    hidden = torch.full_like(y, -1)
    rows = torch.tensor(chosen[:keep])
    hidden[rows] = y[rows]
    return replace(dataset, labels={**dataset.labels, "train": hidden})


def repeat_labelled(dataset: Dataset, times: int) -> Dataset:
    """Every training datum whose label is known, `times` times beside those without a label.

    Raises: `DataError` where all labels are known, or none.
    """
    y = dataset.labels.get("train")
    known = torch.empty(0) if y is None else (y >= 0).nonzero().squeeze(1)
    if y is None or not 0 < len(known) < len(y):
        told = "all" if len(known) else "none"
        text = f"{times}, but {told} of the training labels of data '{dataset.name}' are known"
        raise DataError(
            Problem(("data", "repeat_labelled"), f"{text}; say data.labelled=100, or leave it out")
        )
    rows = torch.cat([torch.arange(len(y)), known.repeat(times - 1)])
    parts: dict[str, Any] = {}
    for name in ("labels", "masks", "exposures"):
        held = getattr(dataset, name)
        parts[name] = {k: v[rows] if k == "train" else v for k, v in held.items()}
    return replace(dataset, train=dataset.train[rows], **parts)


def hide_values(dataset: Dataset, share: float, seed: int) -> Dataset:
    """Hide each value of x with this probability; hidden values are 0 and their masks False."""
    masks: dict[str, Any] = {}
    tensors: dict[str, Any] = {}
    for split, stream in STREAMS.items():
        x = getattr(dataset, split)
        known = torch.from_numpy(uniforms((seed, stream), tuple(x.shape)) >= np.float32(share))
        if split in dataset.masks:
            known &= dataset.masks[split]
        masks[split] = known
        tensors[split] = torch.where(known, x, 0.0)
    return replace(dataset, masks=masks, **tensors)
