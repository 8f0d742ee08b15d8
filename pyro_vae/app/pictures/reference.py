"""The posterior by chains beside the guide, for a few data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import inference
from pyro_vae.app.pictures.page import COLORS, DIM, figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_DATA = 4
MOST_DOTS = 800
SHARES = (0.5, 0.9)  # of the guide's draws within its contours
BINS = 60


def draw_reference(result: inference.Reference, path: str | Path) -> Path:
    """Per datum, the two latents in which guide and posterior differ most: dots and contours.

    Dots are the chains' draws, lines hold 50% and 90% of the guide's. One latent: histograms.
    """
    count = min(MOST_DATA, result.num_data)
    one = len(result.names) == 1
    with figure(path, (2.3 * count + 0.5, 2.5 if one else 2.9)) as sheet:
        grid = sheet.subplots(1, count, squeeze=False)[0]
        for n, axes in enumerate(grid):
            (_marginal if one else _pair)(axes, result, n)
            rhat = float(result.rhat[n].max())
            warned = bool(result.flagged[n])
            text = f"R-hat {rhat:.3f}" + (": do not trust" if warned else "")
            color = COLORS[2] if warned else DIM
            axes.text(0, 1.02, text, transform=axes.transAxes, color=color, fontsize=8)
            axes.set_title(f"datum {n}", loc="left", pad=16)
        handles, labels = grid[0].get_legend_handles_labels()
        place: Any = {"loc": "outside lower left", "ncols": 2, "fontsize": 8}
        legend = sheet.legend(handles, labels, **place)
        for handle in filter(None, legend.legend_handles):
            if hasattr(handle, "set_sizes"):
                handle.set(alpha=1, sizes=[20])
    return Path(path)


def _differing(result: inference.Reference, n: int) -> np.ndarray:
    """The two numbers of a datum whose marginals differ most: 1/2 (m^2 + r^2 - 1) - ln r."""
    ratio = result.sd_ratio[n].numpy()
    divergence = 0.5 * (result.shift[n].numpy() ** 2 + ratio**2 - 1) - np.log(ratio)
    return np.sort(np.argsort(-divergence)[:2])


def _pair(axes: Axes, result: inference.Reference, n: int) -> None:
    from matplotlib.lines import Line2D

    pair = _differing(result, n)
    draws = result.draws[:, :, n].flatten(0, 1).numpy()[:, pair]
    guide = result.guide_draws[:, n].numpy()[:, pair]
    every = -(-len(draws) // MOST_DOTS)
    dots: Any = {"s": 5, "linewidths": 0, "alpha": 0.55, "color": COLORS[0]}
    axes.scatter(*draws[::every].T, label="posterior (Hamiltonian chains)", **dots)
    height, x, y = _density(guide)
    levels = _levels(height)
    axes.contour(x, y, height.T, levels=levels, colors=COLORS[2], linewidths=[0.9, 1.4])
    axes.add_line(Line2D([], [], color=COLORS[2], label="guide: 50% and 90% of its draws"))
    both = np.concatenate([draws, guide])
    low, high = np.quantile(both, [0.002, 0.998], axis=0)
    room = 0.08 * (high - low)
    axes.set_xlim(low[0] - room[0], high[0] + room[0])
    axes.set_ylim(low[1] - room[1], high[1] + room[1])
    names = [_name(result.names[i]) for i in pair]
    axes.set_xlabel(names[0], labelpad=1)
    axes.set_ylabel(names[1], labelpad=1)
    axes.tick_params(labelsize=8)


def _marginal(axes: Axes, result: inference.Reference, n: int) -> None:
    draws = result.draws[:, :, n, 0].flatten().numpy()
    guide = result.guide_draws[:, n, 0].numpy()
    bins = np.histogram_bin_edges(np.concatenate([draws, guide]), 40).tolist()
    label = "posterior (Hamiltonian chains)"
    axes.hist(draws, bins, density=True, color=COLORS[0], alpha=0.6, label=label)
    axes.hist(guide, bins, density=True, histtype="step", color=COLORS[2], label="guide")
    axes.set_xlabel(_name(result.names[0]), labelpad=1)
    axes.set_yticks([])


def _density(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A smoothed histogram of points of the plane: heights, and where along both axes."""
    from scipy.ndimage import gaussian_filter

    spread = points.std(0)
    center = points.mean(0)
    edges: Any = np.linspace(center - 5 * spread, center + 5 * spread, BINS + 1).T
    height, *_ = np.histogram2d(points[:, 0], points[:, 1], bins=list(edges))
    middles = [(edge[1:] + edge[:-1]) / 2 for edge in edges]
    # Half more than Scott's rule, n^(-1/6) standard deviations, for lines that do not wobble.
    width = 1.5 * len(points) ** (-1 / 6) * BINS / 10
    return gaussian_filter(height, width), middles[0], middles[1]


def _levels(height: np.ndarray) -> list[float]:
    """Heights above which lie these shares of all, lowest first."""
    ordered = np.sort(height.ravel())[::-1]
    held = ordered.cumsum() / ordered.sum()
    return [float(ordered[np.searchsorted(held, share)]) for share in sorted(SHARES, reverse=True)]


def _name(name: str) -> str:
    """As other pictures call them: z0, z1, ..."""
    return name.replace("[", "").replace("]", "")
