"""Pictures of a VAE and of its training, as PNG files.

Each function takes what it draws and a path, and returns the path. A datum of shape `[H, W]` or
`[C, H, W]`, C in (1, 3), is drawn as a picture and any other as a small bar chart over its entries,
all on one scale. Nothing is left behind: global random state, training mode and matplotlib's
settings are as before, and a file is either whole or absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pyro_vae.app.pictures import queries
from pyro_vae.app.pictures.curves import bounds, learning_curves
from pyro_vae.app.pictures.interpolations import interpolations
from pyro_vae.app.pictures.latent import latent_scatter
from pyro_vae.app.pictures.manifold import manifold
from pyro_vae.app.pictures.page import tile
from pyro_vae.app.pictures.reconstructions import reconstructions
from pyro_vae.app.pictures.samples import samples
from pyro_vae.app.pictures.traversals import traversals
from pyro_vae.vae import VAE

__all__ = [
    "draw_all",
    "interpolations",
    "latent_scatter",
    "learning_curves",
    "manifold",
    "reconstructions",
    "samples",
    "tile",
    "traversals",
]


def draw_all(
    vae: VAE,
    x: queries.Batch,
    labels: Any | None,
    history: Sequence[dict] | None,
    folder: str | Path,
    *,
    seed: int = 0,
) -> list[Path]:
    """Every picture that applies to this VAE, each under its function's name in `folder`.

    `x`: `[N, *data_shape]`, or all that the VAE's programs take. `labels`: one per
    datum. `history`: the rows of a fit.
    """
    folder, real = Path(folder), vae.spec.prior.support == "real"
    pictures = x[0] if isinstance(x, tuple) else x
    paths = []
    if history and bounds(history):
        paths.append(learning_curves(history, folder / "learning_curves.png"))
    paths.append(samples(vae, folder / "samples.png", seed=seed, like=pictures))
    paths.append(reconstructions(vae, x, folder / "reconstructions.png", seed=seed))
    if real:
        paths.append(traversals(vae, x, folder / "traversals.png", seed=seed))
    if real and len(pictures) > 1:
        paths.append(interpolations(vae, x, folder / "interpolations.png", seed=seed))
    scatter = folder / "latent_scatter.png"
    paths.append(latent_scatter(vae, x, scatter, labels=labels, seed=seed))
    if real and vae.shapes.latent_dim == 2:
        paths.append(manifold(vae, folder / "manifold.png", seed=seed, like=pictures))
    return paths
