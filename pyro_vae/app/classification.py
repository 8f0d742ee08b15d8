"""How well a model's own labels or clusters agree with those of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.isolation import own_randomness
from pyro_vae.app.columns import Batch
from pyro_vae.vae import VAE

ROWS = 1024  # classified at a time


def accuracy(vae: VAE, batch: Batch, labels: Tensor | None, seed: int) -> dict[str, Any]:
    """The share of data whose most probable label is theirs, with its error; empty without labels.

    Clusters have no names: each is given the class that makes most of them right, one to one, or
    where there are more clusters than classes, the commonest class of its data.
    """
    if vae.spec.label not in ("latent", "cluster") or labels is None:
        return {}
    known = labels >= 0
    if not bool(known.any()):
        return {}
    found = []
    with own_randomness(seed), torch.no_grad():
        for some in zip(*(item.split(ROWS) for item in batch), strict=True):
            found.append(vae.classify(*some).argmax(-1).cpu())
    guessed, true = torch.cat(found)[known].numpy(), labels[known].numpy()
    if vae.spec.label == "cluster":
        guessed = named(guessed, true, vae.shapes.classes)
    share = float((guessed == true).mean())
    return {
        "accuracy": share,
        "accuracy_std_error": float(np.sqrt(share * (1 - share) / len(true))),
        "accuracy_kind": "classifier" if vae.spec.label == "latent" else "clusters",
    }


def named(clusters: np.ndarray, labels: np.ndarray, num_clusters: int) -> np.ndarray:
    """The class of each datum's cluster."""
    num_classes = int(labels.max()) + 1
    counts = np.zeros((num_clusters, num_classes), dtype=np.int64)
    np.add.at(counts, (clusters, labels), 1)
    if num_clusters > num_classes:
        return counts.argmax(1)[clusters]
    from scipy.optimize import linear_sum_assignment  # arviz brings it

    rows, columns = linear_sum_assignment(-counts)
    names = np.zeros(num_clusters, dtype=np.int64)
    names[rows] = columns
    return names[clusters]
