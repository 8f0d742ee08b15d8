"""Samples: draws from the prior, decoded."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from pyro_vae.app.pictures import queries
from pyro_vae.app.pictures.cells import Look
from pyro_vae.app.pictures.page import Panel, page
from pyro_vae.vae import VAE


def samples(
    vae: VAE, path: str | Path, *, num: int = 64, seed: int = 0, like: Tensor | None = None
) -> Path:
    """`num` draws z ~ p(z): the means of p(x|z) on the left, one draw of each on the right.

    `like`: data `[N, *data_shape]` on whose range the samples are shown.
    """
    queries.at_least(1, num=num)
    with queries.undisturbed(vae, seed):
        p = vae.decode(*vae.draw_prior(num))
        means, draws = p.mean, p.sample()
    look = Look.of(vae, means, like)
    cells = look.cells(means)
    # About a square sheet, a little wider where that fills the last row.
    square = math.ceil(math.sqrt(num * cells.shape[1] / cells.shape[2]))
    columns = min(range(square, square + square // 2 + 1), key=lambda c: -num % c)
    panels = [
        Panel(cells, columns, "means of p(x|z)"),
        Panel(look.cells(draws), columns, "draws from p(x|z)"),
    ]
    return page(path, "Samples, z ~ p(z)", panels, look.note)
