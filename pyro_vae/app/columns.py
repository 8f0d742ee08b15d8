"""From a data set to what a VAE's programs take: x, and labels, masks, exposures beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from pyro_vae.data.base import SPLITS, Dataset, fingerprint
from pyro_vae.errors import RequestError
from pyro_vae.spec import VAESpec

Batch = tuple[Tensor, ...]


def observed(dataset: Dataset, split: str) -> Tensor:
    """The data of a split as a likelihood scores them.

    Training data that get fresh randomness with every batch get it once here, always the same.
    """
    x = dataset.split(split)
    if split != "train" or dataset.train_transform is None:
        return x
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return dataset.train_transform(x)


def arguments(dataset: Dataset, split: str, model: VAESpec, *, fresh: bool = False) -> Batch:
    """The tensors of a split, in the order of `model.columns`.

    A latent label is told of training data alone: of others log p(x) is asked for, not log p(x, y).
    `fresh`: x before its randomness, for a training that adds some to each batch.
    """
    x = dataset.split(split) if fresh else observed(dataset, split)
    found = [x]
    for name in model.columns[1:]:
        if name == "y":
            y = dataset.labels[split]
            told = model.label == "condition" or split == "train"
            found.append(y if told else torch.full_like(y, -1))
        else:
            found.append({"mask": dataset.masks, "exposure": dataset.exposures}[name][split])
    return tuple(found)


def splits(dataset: Dataset) -> list[str]:
    """The splits that hold data."""
    return [split for split in SPLITS if len(getattr(dataset, split))]


def choose(batch: Batch, num_data: int | None) -> Batch:
    """A random `num_data` of the data, always the same ones; all of them for None.

    Raises: `RequestError` if there are fewer.
    """
    if num_data is None:
        return batch
    there = len(batch[0])
    if num_data > there:
        raise RequestError(f"evaluate.num_data: {num_data}, but there are only {there}")
    order = torch.randperm(there, generator=torch.Generator().manual_seed(0))
    rows = order[:num_data].sort().values
    return tuple(item[rows] for item in batch)


def on(batch: Batch, device: str | torch.device) -> Batch:
    return tuple(item.to(device) for item in batch)


def batch_fingerprint(batch: Batch) -> str:
    """SHA-256 of x; of all tensors, where there are more."""
    each = [fingerprint(item) for item in batch]
    return each[0] if len(each) == 1 else hashlib.sha256(" ".join(each).encode()).hexdigest()


def problems(dataset: Dataset, model: VAESpec) -> Iterator[tuple[str, str]]:
    """What a model wants beside x and the data lack, or the other way round: field and text."""
    name = dataset.name
    unlabelled = [split for split in splits(dataset) if split not in dataset.labels]
    if "y" in model.columns and unlabelled:
        yield "model.label", f"{model.label}, but '{name}' has no {unlabelled[0]} labels"
    elif "y" in model.columns:
        if model.label == "condition" and any(bool((y < 0).any()) for y in dataset.labels.values()):
            yield (
                "model.label",
                f"condition, but some labels of '{name}' are missing; label=latent fits",
            )
        highest = max(int(y.max()) for y in dataset.labels.values())
        if model.classes is not None and model.classes <= highest:
            yield "model.classes", f"{model.classes}, but '{name}' has a label {highest}"
    masked = bool(dataset.masks)
    if model.missing and not masked:
        text = f"true, but '{name}' lacks no values; data.missing=0.5 would hide half of them"
        yield "model.missing", text
    if masked and not model.missing:
        yield "model.missing", f"false, but '{name}' lacks values; set model.missing=true"
    if model.exposure and not dataset.exposures:
        yield "model.exposure", f"true, but '{name}' has no exposures; set model.exposure=false"
    if model.prior.leaves_out and dataset.train_transform is not None:
        once = "dequantize=none" if dataset.dequantized else "binarize=fixed"
        yield (
            "model.prior",
            f"'{model.prior.name}' leaves out what equals the datum, but '{name}' draws each batch "
            f"anew, so that none would be; set data.{once}",
        )


def num_classes(dataset: Dataset) -> int:
    """Labels are 0, 1, ...: one more than the highest."""
    return 1 + max(int(y.max()) for y in dataset.labels.values())
