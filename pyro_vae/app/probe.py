"""How much of the label is in the latents: a linear classifier on them, beside pixels and PCA."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from inference.isolation import own_randomness
from pyro_vae.app.columns import Batch, arguments, splits
from pyro_vae.app.files import write_json
from pyro_vae.app.run import Run
from pyro_vae.app.tables import say, show_table
from pyro_vae.data.base import Dataset
from pyro_vae.errors import RequestError
from pyro_vae.vae import VAE

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
HELD_OUT = 0.2  # of the training data, to choose the penalty
ROWS = 1024


@dataclass(frozen=True)
class Probe:
    """A linear classifier on some features: its accuracy on test data.

    `penalty` is that of the squared weights, chosen on held-out training data.
    """

    features: str
    num_features: int
    accuracy: float
    std_error: float
    penalty: float


def probe(run: Run | str | PathLike, *, num_train: int | None = None, seed: int = 0) -> list[Probe]:
    """Linear classifiers on latent means, on as many principal components, and on raw values.

    Multinomial logistic regression on standardized features, all data at once (L-BFGS, float64).
    The encoder is told no label: a latent one is what the model takes it for, in training data,
    too. The components are those of all training data with a label, which the model has seen, too.
    Written to `probe.json`.

    Args:
        num_train: labelled training data that the classifiers see, a random choice; None: all.
        seed: of that choice, and of latent means that are found by sampling.
    Raises: `RequestError` for data without labels, and for p(x|y), whose encoder is told the label.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    vae, dataset = run.vae(), run.spec.data.load()
    if vae.spec.label == "condition":
        raise RequestError(
            f"{run.path}: label is 'condition', so its encoder is handed the label that a "
            "classifier on its latents is to find; probe a run with label none, latent or cluster"
        )
    test = "test" if "test" in splits(dataset) else "validation"
    if "train" not in dataset.labels or test not in dataset.labels:
        raise RequestError(f"{run.path}: data '{dataset.name}' has no labels to be told")
    hidden = run.spec.data.model_copy(update={"repeat_labelled": 1}).prepared()  # rows as loaded
    sets = [(untold(hidden, name, vae), dataset.labels[name]) for name in ("train", test)]
    (train, y), (held, y_test) = (_known(*one) for one in sets)
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    if num_train is not None:
        if not 2 <= num_train <= len(rows):
            raise RequestError(f"--num-train: {num_train}; expected 2 to {len(rows)}")
        rows = rows[:num_train]
    whole = train[0].flatten(1).double()
    train, y = tuple(item[rows] for item in train), y[rows]
    with own_randomness(seed):
        latents = latent_means(vae, train), latent_means(vae, held)
    pixels = train[0].flatten(1).double(), held[0].flatten(1).double()
    seen, unseen = principal(whole, *pixels, count=latents[0].shape[1])
    components = seen, unseen
    found = [
        fitted(name, *features, y, y_test)
        for name, features in (
            ("latent means", latents),
            (f"{components[0].shape[1]} principal components", components),
            ("raw values", pixels),
        )
    ]
    write_json(
        run.path / "probe.json",
        {
            "num_train": len(y),
            "num_test": len(y_test),
            "split": test,
            "seed": seed,
            "weights_fingerprint": run.weights_fingerprint(),
            "probes": [vars(one) for one in found],
        },
    )
    return found


def untold(dataset: Dataset, split: str, vae: VAE) -> Batch:
    """The tensors of a split, all labels missing."""
    batch = arguments(dataset, split, vae.spec)
    named = zip(vae.columns, batch, strict=True)
    return tuple(torch.full_like(item, -1) if name == "y" else item for name, item in named)


def _known(batch: Batch, labels: Tensor) -> tuple[Batch, Tensor]:
    known = labels >= 0
    return tuple(item[known] for item in batch), labels[known]


@torch.no_grad()
def latent_means(vae: VAE, batch: Batch) -> Tensor:
    parts = zip(*(item.split(ROWS) for item in batch), strict=True)
    return torch.cat([vae.latent_mean(*some).flatten(1) for some in parts]).double()


def principal(x: Tensor, *data: Tensor, count: int) -> tuple[Tensor, ...]:
    """Other data on the first principal components of x."""
    center = x.mean(0)
    _, vectors = torch.linalg.eigh(x.T @ x - len(x) * torch.outer(center, center))
    basis = vectors[:, -count:]
    return tuple((each - center) @ basis for each in data)


def fitted(name: str, x: Tensor, x_test: Tensor, y: Tensor, y_test: Tensor) -> Probe:
    """The classifier of one kind of features."""
    scale = x.std(0).clamp_min(1e-6)
    center = x.mean(0)
    x, x_test = (x - center) / scale, (x_test - center) / scale
    classes = 1 + int(torch.cat([y, y_test]).max())
    cut = max(1, math.ceil((1 - HELD_OUT) * len(y)))
    head, tail = (x[:cut], y[:cut]), (x[cut:], y[cut:])
    penalty = max(
        PENALTIES,
        key=lambda p: share_right(regression(*head, classes, p), *tail) if len(y) > cut else 0,
    )
    share = share_right(regression(x, y, classes, penalty), x_test, y_test)
    error = math.sqrt(share * (1 - share) / len(y_test))
    return Probe(name, x.shape[1], share, error, penalty)


def share_right(weights: Tensor, x: Tensor, y: Tensor) -> float:
    return float((logits(weights, x).argmax(1) == y).double().mean())


def logits(weights: Tensor, x: Tensor) -> Tensor:
    return x @ weights[:-1] + weights[-1]


def regression(x: Tensor, y: Tensor, classes: int, penalty: float) -> Tensor:
    """Weights `[features + 1, classes]`: least mean cross entropy + penalty |w|^2 / 2."""
    weights = torch.zeros(x.shape[1] + 1, classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        found = cross_entropy(logits(weights, x), y) + 0.5 * penalty * weights[:-1].square().sum()
        found.backward()
        return found

    optimizer.step(loss)
    return weights.detach()


def report(run: Run, found: Sequence[Probe]) -> None:
    rows = [
        (one.features, str(one.num_features), f"{one.accuracy:.4f}", f"{one.std_error:.2g}")
        for one in found
    ]
    title = f"{run.path}: a linear classifier on"
    show_table(title, ("features", ">number", ">accuracy", ">error"), rows)
    say("Multinomial logistic regression, its penalty chosen on held-out training data.")
