"""Reconstructions: data, and what the VAE makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pyro_vae.app.pictures import queries
from pyro_vae.app.pictures.cells import CELL, Look
from pyro_vae.app.pictures.page import Panel, page
from pyro_vae.vae import VAE


def reconstructions(
    vae: VAE, x: queries.Batch, path: str | Path, *, num: int = 16, seed: int = 0
) -> Path:
    """The first `num` data; below each, the mean of p(x|z) at one z ~ q(z|x), and a draw."""
    queries.at_least(1, num=num)
    with queries.undisturbed(vae, seed):
        batch = queries.prepared(vae, queries.head(x, num))
        p = vae.decode(vae.encode(*batch).sample(), queries.labels_of(vae, batch))
        means, draws = p.mean, p.sample()
    look = Look.of(vae, means, batch[0])
    kinds = np.stack([look.cells(values) for values in (batch[0], means, draws)])  # [3, N, h, w, 3]
    columns = min(16, len(batch[0]), 18 * CELL // kinds.shape[3])
    white = ((0, 0), (0, -len(batch[0]) % columns), (0, 0), (0, 0), (0, 0))
    kinds = np.pad(kinds, white, constant_values=1)
    rows = kinds.reshape(3, -1, columns, *kinds.shape[2:]).swapaxes(0, 1)
    names = ["data", "mean of p(x|z)", "draw from p(x|z)"] * len(rows)
    panel = Panel(rows.reshape(-1, *kinds.shape[2:]), columns, row_labels=names)
    return page(path, "Reconstructions, z ~ q(z|x)", [panel], look.note)
