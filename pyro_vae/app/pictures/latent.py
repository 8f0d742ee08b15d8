"""The latent scatter: where the data lie in the latent space."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.app.pictures import queries
from pyro_vae.app.pictures.page import COLORS, figure
from pyro_vae.errors import RequestError
from pyro_vae.vae import VAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_POINTS = 5000
MARKERS = ("o", "^", "s", "D")
MOST_CLASSES = len(COLORS) * len(MARKERS)
MOST_NUMBERS = 20  # more distinct numbers than these are a scale


def latent_scatter(
    vae: VAE, x: queries.Batch, path: str | Path, *, labels: Any | None = None, seed: int = 0
) -> Path:
    """Latent means of the data, coloured by label, over draws from the prior.

    More than two latents are shown by the first two principal components of their means; the
    prior's draws are projected alike. Of more than 5000 data a random 5000 are drawn.

    `labels`: `[N]` numbers or strings; -1 stands for a missing one. More than 20 distinct numbers
    become a continuous scale.
    """
    names, num = None, len(x[0] if isinstance(x, tuple) else x)
    if labels is not None:
        names = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
        if names.shape != (num,):
            raise RequestError(f"labels: shape {names.shape}; expected one per datum, ({num},)")
    with queries.undisturbed(vae, seed):
        rows = torch.randperm(num, device="cpu")[:MOST_POINTS]
        some = tuple(part[rows] for part in queries.head(x, num))
        z = queries.latent_means(vae, queries.prepared(vae, some)).numpy()
        prior = queries.prior_draws(vae, min(len(z), 2000)).numpy()
    names = None if names is None else names[rows.numpy()]
    dim = z.shape[1]
    with figure(path, (6.4, 3.6 if dim == 1 else 5.2)) as sheet:
        axes = sheet.add_subplot()
        axes.set_title(f"Latent means of {len(z)} data, {dim} latent{'s' * (dim > 1)}", loc="left")
        if dim == 1:
            _strip(axes, z[:, 0], prior[:, 0], names)
            return Path(path)
        axes.set(xlabel="z0", ylabel="z1")
        if dim > 2:
            z, prior, shares = _principal(z, prior)
            label = "principal component {} ({:.0%} of the latent means' variance)"
            axes.set(xlabel=label.format(1, shares[0]), ylabel=label.format(2, shares[1]))
        _plane(axes, z, prior, names)
    return Path(path)


def _strip(axes: Axes, z: np.ndarray, prior: np.ndarray, names: np.ndarray | None) -> None:
    """One latent: a histogram, or a row of points per label."""
    axes.set_xlabel("z0")
    if names is None or _is_scale(names):
        bins = np.histogram_bin_edges(np.concatenate([z, prior]), 60).tolist()
        axes.hist(prior, bins, density=True, color="0.88", label="draws from p(z)")
        axes.hist(z, bins, density=True, histtype="step", color=COLORS[0], label="latent means")
        axes.set_ylabel("density")
        axes.legend(fontsize=8)
        return
    jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(z))
    classes = list(_classes(names))
    for i, (rows, _, look) in enumerate(classes):
        axes.scatter(z[rows], i + jitter[rows], s=8, linewidths=0, **look)
    axes.set_yticks(range(len(classes)), [name for _, name, _ in classes])
    axes.invert_yaxis()
    axes.set_ylabel("label")


def _plane(axes: Axes, z: np.ndarray, prior: np.ndarray, names: np.ndarray | None) -> None:
    """Two latents, or two components of more."""
    from matplotlib.patheffects import withStroke

    axes.set_aspect("equal", adjustable="datalim")
    dots: Any = {"s": float(np.clip(12000 / len(z), 4, 20)), "linewidths": 0}
    axes.scatter(*prior.T, color="0.91", label="draws from p(z)", zorder=0, **dots)
    dots["alpha"] = 0.85
    if names is None:
        axes.scatter(*z.T, color=COLORS[0], label="latent means", **dots)
    elif _is_scale(names):
        points = axes.scatter(z[:, 0], z[:, 1], c=names, cmap="viridis", **dots)
        axes.figure.colorbar(points, ax=axes, label="label")
    if names is None or _is_scale(names):
        axes.legend(loc="upper left", fontsize=8)
        return
    classes = list(_classes(names))
    for rows, name, look in classes:
        axes.scatter(*z[rows].T, label=name, **look | dots)
    # A class's name at its middle: colour is not the only way to tell classes apart.
    text: Any = {"ha": "center", "va": "center", "weight": "bold"}
    text["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
    named = [one for one in classes if one[2]["color"] in COLORS]
    for rows, name, _ in named if len(named) <= len(COLORS) else []:
        if len(name) <= 12:
            a, b = np.median(z[rows], 0).tolist()
            axes.text(a, b, name, **text)
    place: Any = {"loc": "upper left", "bbox_to_anchor": (1.01, 1), "borderaxespad": 0}
    legend = axes.legend(**place, fontsize=8, ncols=1 + (len(classes) + 1) // 22)
    for handle in filter(None, legend.legend_handles):
        handle.set(alpha=1, sizes=[28])


def _is_number(names: np.ndarray) -> bool:
    return names.dtype.kind in "iuf"


def _is_scale(names: np.ndarray) -> bool:
    return _is_number(names) and len(np.unique(names)) > MOST_NUMBERS


def _classes(names: np.ndarray) -> Iterator[tuple[np.ndarray, str, dict[str, Any]]]:
    """Per label: which rows have it, its name, and its colour and marker."""
    missing = (names == -1) & _is_number(names)
    if missing.any():
        yield missing, "no label", {"color": "0.75", "marker": "o"}
    found = np.unique(names[~missing])
    for i, value in enumerate(found[:MOST_CLASSES]):
        name = f"{value:g}" if _is_number(names) else str(value)
        look = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i // len(COLORS)]}
        yield names == value, name, look
    if len(found) > MOST_CLASSES:
        rows = np.isin(names, found[MOST_CLASSES:])
        yield rows, "others", {"color": "0.3", "marker": "o"}


def _principal(z: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z and prior on the first two principal components of z, and these components' shares."""
    center = z.mean(0, dtype=np.float64)
    variances, vectors = np.linalg.eigh((z - center).T @ (z - center))
    basis = vectors[:, :-3:-1]
    # The sign of a component is arbitrary: its largest entry is made positive.
    basis = basis * np.sign(basis[np.abs(basis).argmax(0), [0, 1]])
    shares = variances[:-3:-1].clip(0) / max(variances.sum(), 1e-30)
    return (z - center) @ basis, (prior - center) @ basis, shares
