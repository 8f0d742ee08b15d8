"""Interpolations: the way from one datum to another through the latents."""

from __future__ import annotations

from pathlib import Path

import torch

from pyro_vae.app.pictures import queries
from pyro_vae.app.pictures.cells import Look
from pyro_vae.app.pictures.page import Panel, page
from pyro_vae.errors import RequestError
from pyro_vae.vae import VAE


def interpolations(
    vae: VAE, x: queries.Batch, path: str | Path, *, pairs: int = 6, steps: int = 10, seed: int = 0
) -> Path:
    """Means of p(x|z) along the way between the latent means of x[0] and x[1], x[2] and x[3], ...

    Fewer pairs are drawn where `x` has fewer.
    """
    queries.at_least(1, pairs=pairs)
    queries.at_least(2, steps=steps)
    queries.need_real(vae, "interpolations")
    with queries.undisturbed(vae, seed):
        batch = queries.prepared(vae, x)
        if len(batch[0]) < 2:
            raise RequestError("interpolations: needs at least two data, x holds one")
        batch = queries.head(batch, 2 * min(pairs, len(batch[0]) // 2))
        x, y = batch[0], queries.labels_of(vae, batch)
        z = queries.latent_means(vae, batch)
        share = torch.linspace(0, 1, steps, device="cpu")[None, :, None]
        between = torch.lerp(z[0::2, None], z[1::2, None], share)
        # On the way a label stays that of the first.
        first = None if y is None else y[0::2].repeat_interleave(steps)
        means = queries.decoded_means(vae, between.flatten(0, 1), first)
    look = Look.of(vae, means, x)
    marks = ["0", *[""] * (steps - 2), "1"]
    panels = [
        Panel(look.cells(x[0::2]), 1, "data"),
        Panel(look.cells(means), steps, "means of p(x|z)", column_labels=marks),
        Panel(look.cells(x[1::2]), 1, "data"),
    ]
    return page(path, "Interpolations between latent means", panels, look.note)
