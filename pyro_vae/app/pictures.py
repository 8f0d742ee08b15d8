"""Pictures of a VAE and of its training, as PNG files.

Each function takes what it draws and a path, and returns the path. A datum of shape `[H, W]` or
`[C, H, W]`, C in (1, 3), is drawn as a picture and any other as a small bar chart over its entries,
all on one scale. Nothing is left behind: global random state, training mode and matplotlib's
settings are as before, and a file is either whole or absent.
"""

from __future__ import annotations

import io
import math
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from pyro_vae.app.files import write_bytes
from pyro_vae.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyro_vae.vae import VAE

DPI = 150
CELL = 64  # about how many pixels of the file one datum is wide
GAP = 2  # white pixels between data
PAPER, INK = 0.94, 0.08  # grey levels of no ink and of full ink
BAD = (0.84, 0.37, 0.0)  # what is not a number
DIM = "0.45"  # secondary text

# Ten colours that stay apart under colour-blindness (Petroff, arXiv:2107.02270).
COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
MARKERS = ("o", "^", "s", "D")
MOST_CLASSES = len(COLORS) * len(MARKERS)
NO_LABEL, OTHERS = "no label", "others"
MOST_NAMES = 20  # more distinct numbers than these are a scale

BOUNDS = ("train_bound", "validation_bound")
CONNECTED = ("real", "simplex", "sphere")  # supports with a way between any two points

STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.edgecolor": DIM,
    "axes.facecolor": "white",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "legend.frameon": False,
    "savefig.transparent": False,
    "text.usetex": False,
    "xtick.color": DIM,
    "xtick.labelcolor": "black",
    "ytick.color": DIM,
    "ytick.labelcolor": "black",
}


# The pictures --------------------------------------------------------------------------------


def draw_all(
    vae: VAE,
    x: Tensor,
    labels: Any | None,
    history: Sequence[dict] | None,
    folder: str | os.PathLike,
    *,
    seed: int = 0,
) -> list[Path]:
    """Every picture that applies to this VAE, each under its function's name in `folder`.

    Args:
        x: `[N, *data_shape]`.
        labels: one per datum of `x`, or None.
        history: the rows of a fit, or None.
    """
    folder = Path(folder)
    real = vae.spec.prior.support == "real"
    paths = []
    if any(np.isfinite(_bounds(history or [], key)).any() for key in BOUNDS):
        paths.append(learning_curves(list(history or []), folder / "learning_curves.png"))
    paths.append(samples(vae, folder / "samples.png", seed=seed, like=x))
    paths.append(reconstructions(vae, x, folder / "reconstructions.png", seed=seed))
    if real:
        paths.append(traversals(vae, x, folder / "traversals.png", seed=seed))
    if vae.spec.prior.support in CONNECTED and len(x) >= 2:
        paths.append(interpolations(vae, x, folder / "interpolations.png", seed=seed))
    scatter = folder / "latent_scatter.png"
    paths.append(latent_scatter(vae, x, scatter, labels=labels, seed=seed))
    if real and vae.shapes.latent_dim == 2:
        paths.append(manifold(vae, folder / "manifold.png", seed=seed, like=x))
    return paths


def learning_curves(
    history: Sequence[dict], path: str | os.PathLike, *, best_epoch: int | None = None
) -> Path:
    """The bounds in nats per datum against the epoch, with warm-up and best epoch marked.

    Args:
        history: rows with `epoch` and `train_bound`; `validation_bound`, `beta` and
            `learning_rate` may be absent or None.
        best_epoch: the epoch to mark; without it the one with the highest validation bound, or
            the highest training bound (outside the warm-up) where there is no validation.
    """
    from matplotlib.ticker import MaxNLocator

    path = _png(path)
    epochs = np.array([float(row["epoch"]) for row in history])
    beta = _column(history, "beta", 1.0)
    rate = _column(history, "learning_rate", math.nan)
    curves = {key: _bounds(history, key) for key in BOUNDS}
    seen = np.concatenate(list(curves.values()))
    seen = seen[np.isfinite(seen)]
    if len(seen) == 0:
        raise RequestError("history: holds no finite bound; train for at least one epoch")
    steps = rate[np.isfinite(rate) & (rate > 0)]
    has_rate = len(steps) > 1 and steps.min() < steps.max()

    with _figure(path, (6.4, 4.4 if has_rate else 3.6), layout="constrained") as figure:
        grid = figure.add_gridspec(2 if has_rate else 1, 1, height_ratios=[4, 1][: 1 + has_rate])
        axes = figure.add_subplot(grid[0])
        styles = {
            "train_bound": ("training", COLORS[0]),
            "validation_bound": ("validation", str(INK)),
        }
        marker = "o" if len(history) <= 30 else None
        for key, values in curves.items():
            if np.isfinite(values).any():
                name, color = styles[key]
                shown = np.where(np.isfinite(values), values, np.nan)
                axes.plot(epochs, shown, color=color, label=name, marker=marker, markersize=3)
        for i, (start, stop) in enumerate(_spans(epochs, beta < 1)):
            warm = beta.max() >= 1 and beta[0] < 1
            name = "warm-up (beta < 1)" if warm else "beta < 1"
            label = None if i else name
            axes.axvspan(start, stop, color="0.93", linewidth=0, zorder=0, label=label)

        low, high = _robust_limits(seen)
        axes.set_ylim(low, high)
        axes.margins(x=0.02)
        key, at = _best(epochs, curves, beta, best_epoch)
        if at is not None:
            value = curves[key][at]
            axes.axvline(epochs[at], color=DIM, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            label = _minus(f"best epoch {epochs[at]:g}: {value:.2f}")
            axes.plot(epochs[at], value, "o", color=COLORS[2], markersize=6, label=label)
        cut = int((seen < low).sum())
        if cut:
            text = f"{cut} value{'s' * (cut > 1)} below the axis, lowest {seen.min():.4g}"
            axes.text(0.99, 0.02, _minus(text), ha="right", transform=axes.transAxes, color=DIM)
        axes.set_title("Learning curves", loc="left", pad=22)
        axes.set_ylabel("bound (nats per datum)")
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0.2,
            borderpad=0,
            ncols=4,
            fontsize=8,
            handlelength=1.4,
            columnspacing=1.4,
        )
        last = axes
        if has_rate:
            last = figure.add_subplot(grid[1], sharex=axes)
            last.step(epochs, rate, where="mid", color=DIM)
            last.set_yscale("log")
            last.minorticks_off()
            last.set_yticks(sorted({steps.min(), steps.max()}))
            last.yaxis.set_major_formatter("{x:.2g}")
            last.set_ylabel("learning\nrate")
            axes.tick_params(labelbottom=False)
        last.set_xlabel("epoch")
        last.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return path


def samples(
    vae: VAE,
    path: str | os.PathLike,
    *,
    num: int = 64,
    seed: int = 0,
    like: Tensor | None = None,
) -> Path:
    """`num` draws z ~ p(z): the means of p(x|z) on the left, one draw of each on the right.

    `like`: data `[N, *data_shape]` on whose range the samples are shown.
    """
    path = _png(path)
    _at_least(1, num=num)
    with _undisturbed(vae, seed) as restart:
        means = vae.generate(num, mean=True)
        restart()  # the same z on both sides
        draws = vae.generate(num, mean=False)
    look = _Look.of(vae, means, like)
    cells = look.cells(means)
    # About a square sheet, a little wider where that fills the last row.
    square = math.ceil(math.sqrt(num * cells.shape[1] / cells.shape[2]))
    columns = min(range(square, square + square // 2 + 1), key=lambda c: -num % c)
    panels = [
        _Panel(cells, columns, "means of p(x|z)"),
        _Panel(look.cells(draws), columns, "draws from p(x|z)"),
    ]
    return _page(path, "Samples, z ~ p(z)", panels, look.note)


def reconstructions(
    vae: VAE, x: Tensor, path: str | os.PathLike, *, num: int = 16, seed: int = 0
) -> Path:
    """The first `num` data; below each, the mean of p(x|z) at one z ~ q(z|x), and a draw."""
    path = _png(path)
    _at_least(1, num=num)
    with _undisturbed(vae, seed) as restart:
        x = _data(vae, x)[:num]
        means = vae.reconstruct(x, mean=True)
        restart()
        draws = vae.reconstruct(x, mean=False)
    look = _Look.of(vae, means, x)
    kinds = {"data": x, "mean of p(x|z)": means, "draw from p(x|z)": draws}
    columns = min(16, len(x), 18 * CELL // look.cells(x[:1]).shape[2])
    cells, labels = [], []
    for start in range(0, len(x), columns):
        for name, values in kinds.items():
            block = look.cells(values[start : start + columns])
            missing = columns - len(block)
            cells.append(np.concatenate([block, np.ones((missing, *block.shape[1:]))]))
            labels.append(name)
    panel = _Panel(np.concatenate(cells), columns, row_labels=labels)
    return _page(path, "Reconstructions, z ~ q(z|x)", [panel], look.note)


def traversals(
    vae: VAE,
    x: Tensor | None,
    path: str | os.PathLike,
    *,
    dims: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 11,
    seed: int = 0,
) -> Path:
    """One row per latent: it moves by `span` prior standard deviations either way from the mean.

    The other latents stay at the prior's mean.

    Args:
        x: data `[N, *data_shape]`, or None. With it, each row tells the variance over x of the
            latent's posterior mean, and `dims=None` draws the ten latents where it is largest.
        dims: which latents, in which order; None draws ten at most.
    """
    path = _png(path)
    _at_least(2, steps=steps)
    if not (math.isfinite(span) and span > 0):
        raise RequestError(f"span: {span}; give a positive number of prior standard deviations")
    _need_real(vae, "traversals")
    size = vae.shapes.latent_dim
    wrong = [d for d in dims or () if not 0 <= d < size]
    if wrong or (dims is not None and len(dims) == 0):
        raise RequestError(f"dims: {wrong or 'empty'}; this VAE has latents 0 to {size - 1}")
    with _undisturbed(vae, seed):
        variance = None
        if x is not None:
            variance = _latent_means(vae, _data(vae, x)[:2000]).var(0, correction=0)
        center, scale = _prior_moments(vae)
        if dims is None:
            order = torch.zeros(size) if variance is None else variance
            dims = order.argsort(descending=True, stable=True)[:10].tolist()
        offsets = span * torch.linspace(-1, 1, steps, dtype=torch.float64, device="cpu")
        z = center.repeat(len(dims), steps, 1)
        for row, d in enumerate(dims):
            z[row, :, d] += offsets * scale[d]
        means = _decode_means(vae, z.flatten(0, 1))
    look = _Look.of(vae, means, x)
    panel = _Panel(
        look.cells(means),
        steps,
        row_labels=[f"z{d}" if variance is None else f"z{d}  ({variance[d]:.2f})" for d in dims],
        column_labels=[_minus(f"{round(offset, 9):+.2g}") for offset in offsets.tolist()],
    )
    note = "Prior standard deviations from the prior's mean; the other latents stay at that mean."
    if variance is not None:
        note += " In brackets: variance over the data of the latent's posterior mean."
    return _page(path, "Traversals, means of p(x|z)", [panel], f"{note} {look.note}")


def interpolations(
    vae: VAE,
    x: Tensor,
    path: str | os.PathLike,
    *,
    pairs: int = 6,
    steps: int = 10,
    seed: int = 0,
) -> Path:
    """Means of p(x|z) along the way between the latent means of x[0] and x[1], x[2] and x[3], ...

    The way is straight, or an arc for latents on a sphere. Fewer pairs are drawn where `x` has
    fewer.
    """
    path = _png(path)
    _at_least(1, pairs=pairs)
    _at_least(2, steps=steps)
    support = vae.spec.prior.support
    if support not in CONNECTED:
        raise RequestError(
            f"interpolations: {support} latents have no points in between; "
            "samples and reconstructions draw any latents"
        )
    with _undisturbed(vae, seed):
        x = _data(vae, x)
        if len(x) < 2:
            raise RequestError("interpolations: needs at least two data, x holds one")
        x = x[: 2 * min(pairs, len(x) // 2)]
        z = _latent_means(vae, x)
        share = torch.linspace(0, 1, steps, device="cpu")[None, :, None]
        between = torch.lerp(z[0::2, None], z[1::2, None], share)
        if support == "sphere":
            between = torch.nn.functional.normalize(between, dim=-1)
        means = _decode_means(vae, between.flatten(0, 1))
    look = _Look.of(vae, means, x)
    marks = [""] * steps
    marks[0], marks[-1] = "0", "1"
    panels = [
        _Panel(look.cells(x[0::2]), 1, "data"),
        _Panel(look.cells(means), steps, "means of p(x|z)", column_labels=marks),
        _Panel(look.cells(x[1::2]), 1, "data"),
    ]
    return _page(path, "Interpolations between latent means", panels, look.note)


def latent_scatter(
    vae: VAE,
    x: Tensor,
    path: str | os.PathLike,
    *,
    labels: Any | None = None,
    max_points: int = 5000,
    seed: int = 0,
) -> Path:
    """Latent means of the data, coloured by label, over draws from the prior.

    More than two latents are shown by the first two principal components of their means; the
    prior's draws are projected alike. A random `max_points` of the data are drawn.

    Args:
        labels: `[N]` numbers or strings; -1 stands for a missing one. More than
            20 distinct numbers become a continuous scale.
    """
    path = _png(path)
    _at_least(1, max_points=max_points)
    names = _labels(labels, len(x))
    with _undisturbed(vae, seed):
        rows = torch.randperm(len(x), device="cpu")[:max_points]
        z = _latent_means(vae, _data(vae, x[rows.to(x.device)])).numpy()
        prior = _draw_prior(vae, min(len(z), 2000)).flatten(1).cpu().numpy()
    if names is not None:
        names = names[rows.numpy()]
    if z.shape[1] == 1:
        return _strip(path, z[:, 0], prior[:, 0], names)
    if z.shape[1] == 2:
        axis_names = ["z0", "z1"]
    else:
        z, prior, shares = _principal(z, prior)
        axis_names = [
            f"principal component {i + 1} ({share:.0%} of the latent means' variance)"
            for i, share in enumerate(shares)
        ]
    with _figure(path, (6.4, 5.2), layout="constrained") as figure:
        axes = figure.add_subplot()
        size = float(np.clip(12000 / len(z), 4, 20))
        axes.scatter(
            prior[:, 0],
            prior[:, 1],
            s=size,
            color="0.91",
            linewidths=0,
            label="draws from p(z)",
            zorder=0,
        )
        _scatter(axes, z[:, 0], z[:, 1], names, size)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_xlabel(axis_names[0])
        axes.set_ylabel(axis_names[1])
        axes.set_title(
            f"Latent means of {len(z)} data, {vae.shapes.latent_dim} latents", loc="left"
        )
        if names is None or _is_scale(names):
            axes.legend(loc="upper left", fontsize=8)
        else:
            _legend(axes)
    return path


def manifold(
    vae: VAE,
    path: str | os.PathLike,
    *,
    steps: int = 20,
    seed: int = 0,
    like: Tensor | None = None,
) -> Path:
    """Means of p(x|z) on a grid over two latents.

    A normal prior is cut at equal steps of probability; another prior at equal steps over the
    central 95% of its draws. `like`: data on whose range the means are shown.
    """
    path = _png(path)
    _at_least(2, steps=steps)
    _need_real(vae, "manifold")
    if vae.shapes.latent_dim != 2:
        raise RequestError(
            f"manifold: needs two latents and this VAE has {vae.shapes.latent_dim}; "
            "traversals draws any number"
        )
    with _undisturbed(vae, seed):
        grid = _normal_quantiles(vae, (torch.arange(steps, device="cpu") + 0.5) / steps)
        how = "equal steps of prior probability"
        if grid is None:
            draws = _draw_prior(vae, 4096).cpu()
            ends = torch.from_numpy(np.quantile(draws.double().numpy(), [0.025, 0.975], axis=0))
            share = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")[:, None]
            grid = torch.lerp(ends[:1], ends[1:], share)
            how = "equal steps over the central 95% of the prior's draws"
        across, up = grid.float().unbind(1)
        z = torch.stack([across.repeat(steps), up.flip(0).repeat_interleave(steps)], 1)
        means = _decode_means(vae, z)
    look = _Look.of(vae, means, like)
    told = set(np.linspace(0, steps - 1, min(steps, 5)).round().astype(int).tolist())
    marks = [
        [_minus(f"{v:.2f}") if i in told else "" for i, v in enumerate(g)] for g in (across, up)
    ]
    panel = _Panel(
        look.cells(means),
        steps,
        row_labels=marks[1][::-1],
        column_labels=marks[0],
        axis_names=("z0", "z1"),
    )
    return _page(path, "Latent manifold, means of p(x|z)", [panel], f"Grid: {how}. {look.note}")


def tile(images: Any, columns: int, *, gap: int = GAP, fill: float = 1.0) -> np.ndarray:
    """Put images `[N, H, W]` or `[N, H, W, C]` in rows of `columns`, `gap` pixels apart.

    >>> tile(np.zeros((3, 8, 8)), 2).shape
    (18, 18)
    """
    images = np.asarray(images)
    num, height, width = images.shape[:3]
    rows = math.ceil(num / columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, *images.shape[3:])
    sheet = np.full(shape, fill, dtype=np.result_type(images.dtype, np.float32))
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        sheet[top : top + height, left : left + width] = image
    return sheet


# From data to cells ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """How the data of one VAE become small RGB images: one range, one ink for all of a page."""

    picture: tuple[int, int, int] | None  # channels, height, width; None: bars
    low: float
    high: float
    dark_ink: bool

    @classmethod
    def of(cls, vae: VAE, means: Tensor, x: Tensor | None = None) -> _Look:
        """Range [0, 1] where likelihood or data lie there, otherwise that of means and data.

        Draws do not count: noise would wash out the rest. Grey pictures with an empty border are
        drawings, dark ink on paper; others are photographs, where high is light.
        """
        shown = means.detach().float().cpu()
        if x is not None:
            shown = torch.cat([shown, x.detach()[:256].float().cpu()])
        finite = shown[shown.isfinite()].numpy()
        # Of pictures the outermost 1% may lie outside: a few wild means would dim the rest.
        picture = _picture(tuple(vae.shapes.data))
        ends = [0.005, 0.995] if picture else [0, 1]
        low, high = np.quantile(finite, ends).tolist() if len(finite) else (0.0, 1.0)
        unit = vae.likelihood.support in ("binary", "unit")
        if x is not None:
            unit = unit or bool(((x >= 0) & (x <= 1)).all())
        else:
            unit = unit or (low > -0.2 and 0.5 < high < 1.2)
        if unit:
            low, high = 0.0, 1.0
        elif high <= low:
            high = low + 1.0
        dark_ink = True
        if picture and vae.likelihood.support != "binary":
            flat = shown.reshape(-1, *picture)
            border = torch.cat([flat[..., [0, -1], :].flatten(), flat[..., [0, -1]].flatten()])
            dark_ink = float(border.nanmedian()) < low + 0.25 * (high - low)
        return cls(picture, low, high, dark_ink)

    @property
    def note(self) -> str:
        if self.picture:
            return ""
        scale = _minus(f"from {self.low:.4g} to {self.high:.4g}")
        return f"Each datum: bars over its entries, {scale}."

    def cells(self, data: Tensor) -> np.ndarray:
        """Small RGB images `[N, h, w, 3]` in [0, 1] of data `[N, *data_shape]`."""
        values = data.detach().float().cpu().numpy().reshape(len(data), -1)
        share = np.clip((values - self.low) / (self.high - self.low), 0, 1)
        if self.picture is None:
            return self._bars(share)
        channels, height, width = self.picture
        share = share.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
        bad = np.isnan(share).any(axis=-1, keepdims=True)
        if channels == 1:
            share = np.repeat(share, 3, -1)
            if self.dark_ink:
                share = PAPER + (INK - PAPER) * share
        share = np.where(bad, BAD, share).astype(np.float32)
        return _resize(share)

    def _bars(self, share: np.ndarray) -> np.ndarray:
        """Bars from zero, or from the end of the range that is nearest to it."""
        num, entries = share.shape
        width, height = int(np.clip(entries, CELL, 2 * CELL)), CELL * 3 // 4
        base = float(np.clip(-self.low / (self.high - self.low), 0, 1))
        entry = np.arange(width) * entries // width  # which entry each pixel column belongs to
        level = (np.arange(height)[::-1, None] + 0.5) / height
        top = share[:, None, entry]  # [N, 1, width]
        inside = (level > np.minimum(top, base)) & (level < np.maximum(top, base))
        if entries <= CELL // 4:  # room for a pixel of paper between bars
            inside &= np.append(np.diff(entry) == 0, True)
        inside |= np.abs(level - base) <= 0.5 / height  # the line they stand on
        cells = np.where(inside[..., None], np.float32(INK), np.float32(PAPER))
        cells = np.repeat(cells, 3, -1)
        bad = np.broadcast_to(np.isnan(top), (num, height, width))
        return np.where(bad[..., None], BAD, cells).astype(np.float32)


def _picture(shape: tuple[int, ...]) -> tuple[int, int, int] | None:
    """Channels, height and width of data that are pictures; long thin ones read better as bars."""
    if len(shape) == 2:
        shape = (1, *shape)
    if len(shape) != 3 or shape[0] not in (1, 3) or max(shape[1:]) > 8 * min(shape[1:]):
        return None
    return shape[0], shape[1], shape[2]


def _resize(images: np.ndarray) -> np.ndarray:
    """Repeat pixels, or average blocks of them, until an image is about CELL pixels long."""
    side, shorter = max(images.shape[1:3]), min(images.shape[1:3])
    times = max(round(CELL / side), math.ceil(24 / shorter))  # a label is 24 pixels high
    if times > 1:
        return images.repeat(times, 1).repeat(times, 2)
    block = math.ceil(side / (2 * CELL))
    if block == 1:
        return images
    num, height, width, channels = images.shape
    more = ((0, 0), (0, -height % block), (0, -width % block), (0, 0))
    padded = np.pad(images, more, mode="edge")
    height, width = padded.shape[1] // block, padded.shape[2] // block
    return padded.reshape(num, height, block, width, block, channels).mean((2, 4))


# Pages and files ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Panel:
    """A grid of cells `[N, h, w, 3]` with its labels."""

    cells: np.ndarray
    columns: int
    title: str = ""
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    axis_names: tuple[str, str] = ("", "")


def _page(path: Path, title: str, panels: Sequence[_Panel], note: str = "") -> Path:
    """Panels side by side, each pixel of a cell one pixel of the file."""
    images = [tile(panel.cells, panel.columns) for panel in panels]
    spacing = 32
    width = sum(image.shape[1] for image in images) + spacing * (len(images) - 1)
    height = max(image.shape[0] for image in images)
    with _figure(path, (width / DPI, height / DPI), tight=True) as figure:
        left = 0
        for panel, image in zip(panels, images, strict=True):
            rows, columns = image.shape[:2]
            box = (left / width, 1 - rows / height, columns / width, rows / height)
            axes = figure.add_axes(box)
            axes.imshow(np.clip(image, 0, 1), interpolation="nearest", aspect="auto")
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0, pad=4, labelsize=8)
            cell_height, cell_width = panel.cells.shape[1:3]
            centers = np.arange(len(panel.row_labels)) * (cell_height + GAP) + cell_height / 2
            axes.set_yticks(centers - 0.5, panel.row_labels)
            centers = np.arange(len(panel.column_labels)) * (cell_width + GAP) + cell_width / 2
            axes.set_xticks(centers - 0.5, _thinned(panel.column_labels, cell_width + GAP))
            axes.set_xlabel(panel.axis_names[0])
            axes.set_ylabel(panel.axis_names[1], rotation=0, labelpad=10)
            if panel.title:
                axes.set_title(panel.title, loc="left", color=DIM, pad=5)
            left += columns + spacing
        above = 36 if any(panel.title for panel in panels) else 12
        letters = max(40, width // 11)
        figure.text(0, 1 + above / height, textwrap.fill(title, letters), fontsize=10)
        if note.strip():
            below = 12
            below += 24 * any(panel.column_labels for panel in panels)
            below += 24 * any(panel.axis_names[0] for panel in panels)
            text = textwrap.fill(note.strip(), max(40, width // 9))
            figure.text(0, -below / height, text, fontsize=8, color=DIM, va="top")
    return path


def _thinned(labels: Sequence[str], pitch: int) -> list[str]:
    """Every so many of the labels, where all would be wider than the cells they stand under."""
    named = [i for i, label in enumerate(labels) if label]
    if len(named) < 2:
        return list(labels)
    room = pitch * min(b - a for a, b in pairwise(named))
    every = math.ceil((11 * max(map(len, labels)) + 4) / room)
    kept = set(named[::every])
    return [label if i in kept else "" for i, label in enumerate(labels)]


@contextmanager
def _figure(
    path: Path, size: tuple[float, float], *, layout: Any = None, tight: bool = False
) -> Iterator[Figure]:
    """A figure in our style that is written to `path` at the end, whole or not at all."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=size, dpi=DPI, layout=layout)
        FigureCanvasAgg(figure)
        yield figure
        options: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.12} if tight else {}
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None}, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())


def _minus(text: str) -> str:
    """As matplotlib writes numbers: a true minus sign, and zero without a sign."""
    return "0" if text in ("+0", "-0") else text.replace("-", "\N{MINUS SIGN}")


def _png(path: str | os.PathLike) -> Path:
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise RequestError(f"path: '{path.name}' must end in .png; pictures are PNG files")
    return path


# What is asked of the VAE ---------------------------------------------------------------------


@contextmanager
def _undisturbed(vae: VAE, seed: int) -> Iterator[Callable[[], None]]:
    """Evaluation mode, no gradients and random numbers from `seed`; all put back at the end.

    Yields a function that starts the random numbers over.
    """
    if not all(bool(weight.isfinite().all()) for weight in vae.parameters()):
        raise RequestError("this VAE holds weights that are not finite: nothing can be drawn")
    device = _like(vae).device
    cuda = [torch.device(device)] if device.type == "cuda" else []
    modes = [(module, module.training) for module in vae.modules()]

    def restart() -> None:
        # Not torch.manual_seed: that also seeds devices whose state is not kept here.
        torch.default_generator.manual_seed(seed)
        for place in cuda:
            with torch.cuda.device(place):
                torch.cuda.manual_seed(seed)

    with torch.random.fork_rng(devices=cuda), torch.no_grad():
        try:
            vae.eval()
            restart()
            yield restart
        finally:
            for module, training in modes:
                module.training = training


def _like(vae: VAE) -> Tensor:
    """A weight, whose device and dtype the data should have."""
    return next(vae.parameters())


def _data(vae: VAE, x: Tensor) -> Tensor:
    if len(x) == 0 or tuple(x.shape[1:]) != tuple(vae.shapes.data):
        raise RequestError(
            f"x has shape {tuple(x.shape)}; expected [N, {', '.join(map(str, vae.shapes.data))}] "
            "with N at least 1"
        )
    return x.to(_like(vae))


def _latent_means(vae: VAE, x: Tensor) -> Tensor:
    """`[N, latent_dim]` on the CPU."""
    means = [vae.latent_mean(batch).flatten(1) for batch in x.split(512)]
    return torch.cat(means).float().cpu()


def _decode_means(vae: VAE, z: Tensor) -> Tensor:
    means = [vae.decode(batch.to(_like(vae))).mean for batch in z.split(256)]
    return torch.cat(means).float().cpu()


def _draw_prior(vae: VAE, num: int) -> Tensor:
    return vae.prior.distribution().expand([num]).sample()


def _prior_moments(vae: VAE) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent under the prior: exact, or of 4096 draws."""
    p = vae.prior.distribution()
    try:
        mean, scale = p.mean, p.stddev
    except (NotImplementedError, AttributeError):
        draws = _draw_prior(vae, 4096)
        mean, scale = draws.mean(0), draws.std(0)
    return mean.flatten().float().cpu(), scale.flatten().float().cpu()


def _normal_quantiles(vae: VAE, shares: Tensor) -> Tensor | None:
    """`[len(shares), latent_dim]` for a diagonal normal prior, else None."""
    p = vae.prior.distribution()
    while isinstance(p, torch.distributions.Independent):
        p = p.base_dist
    if not isinstance(p, torch.distributions.Normal):
        return None
    loc, scale = p.loc.flatten().cpu().double(), p.scale.flatten().cpu().double()
    return loc + scale * torch.special.ndtri(shares.double())[:, None]


def _need_real(vae: VAE, name: str) -> None:
    support = vae.spec.prior.support
    if support != "real":
        raise RequestError(
            f"{name}: moves latents freely along the real line and this prior has {support} ones; "
            "samples and reconstructions draw any latents"
        )


def _at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise RequestError(f"{name}: {value}; must be at least {least}")


# Curves and points ----------------------------------------------------------------------------


def _column(history: Sequence[dict], key: str, missing: float) -> np.ndarray:
    values = [row.get(key) for row in history]
    return np.array([missing if value is None else float(value) for value in values])


def _bounds(history: Sequence[dict], key: str) -> np.ndarray:
    return _column(history, key, math.nan)


def _spans(epochs: np.ndarray, on: np.ndarray) -> Iterator[tuple[float, float]]:
    """The stretches of epochs where `on` holds, half a step wider on both sides."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], on.astype(int), [0]])))
    for start, stop in edges.reshape(-1, 2):
        yield epochs[start] - 0.5, epochs[stop - 1] + 0.5


def _robust_limits(values: np.ndarray) -> tuple[float, float]:
    """Limits that keep the later, flatter part of the curves legible: the start may lie outside."""
    top = values.max()
    quarter = np.quantile(values, 0.25)
    low = max(values.min(), quarter - 3 * (top - quarter))
    margin = 0.06 * (top - low) or max(1.0, 0.01 * abs(top))
    return low - margin, top + margin


def _best(
    epochs: np.ndarray, curves: dict[str, np.ndarray], beta: np.ndarray, epoch: int | None
) -> tuple[str, int | None]:
    """Which curve, and which of its rows, is the best."""
    key = "validation_bound" if np.isfinite(curves["validation_bound"]).any() else "train_bound"
    values = np.where(np.isfinite(curves[key]), curves[key], -np.inf)
    if epoch is not None:
        found = np.flatnonzero((epochs == epoch) & np.isfinite(values))
        return key, int(found[0]) if len(found) else None
    # A training bound with beta < 1 counts less of the KL divergence and so looks better.
    if key == "train_bound" and np.isfinite(values[beta >= 1]).any():
        values = np.where(beta >= 1, values, -np.inf)
    return key, int(values.argmax())


def _labels(labels: Any | None, num: int) -> np.ndarray | None:
    if labels is None:
        return None
    names = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if names.shape != (num,):
        raise RequestError(f"labels: shape {names.shape}; expected one label per datum, ({num},)")
    return names


def _is_scale(names: np.ndarray) -> bool:
    return names.dtype.kind in "iuf" and len(np.unique(names)) > MOST_NAMES


def _classes(names: np.ndarray) -> Iterator[tuple[np.ndarray, str, str, str]]:
    """Per label: its rows, its name, a colour and a marker."""
    missing = names == -1 if names.dtype.kind in "iuf" else np.zeros(len(names), dtype=bool)
    if missing.any():
        yield missing, NO_LABEL, "0.75", "o"
    found = np.unique(names[~missing])
    for i, value in enumerate(found[:MOST_CLASSES]):
        marker = MARKERS[i // len(COLORS)]
        name = f"{value:g}" if names.dtype.kind in "iuf" else str(value)
        yield names == value, name, COLORS[i % len(COLORS)], marker
    if len(found) > MOST_CLASSES:
        yield np.isin(names, found[MOST_CLASSES:]), OTHERS, "0.3", "o"


def _scatter(axes: Axes, a: np.ndarray, b: np.ndarray, names: np.ndarray | None, size: float):
    options: dict[str, Any] = {"s": size, "linewidths": 0, "alpha": 0.85}
    if names is None:
        axes.scatter(a, b, color=COLORS[0], label="latent means", **options)
    elif _is_scale(names):
        points = axes.scatter(a, b, c=names, cmap="viridis", **options)
        axes.figure.colorbar(points, ax=axes, label="label")
    else:
        for rows, name, color, marker in _classes(names):
            axes.scatter(a[rows], b[rows], color=color, marker=marker, label=name, **options)
        classes = [c for c in _classes(names) if c[1] not in (NO_LABEL, OTHERS)]
        for rows, name, _, _ in classes if len(classes) <= len(COLORS) else []:
            if len(name) <= 12:
                _name_class(axes, float(np.median(a[rows])), float(np.median(b[rows])), name)


def _name_class(axes: Axes, a: float, b: float, name: str) -> None:
    """A class's name at its middle: colour is not the only way to tell classes apart."""
    from matplotlib.patheffects import withStroke

    halo = [withStroke(linewidth=2.5, foreground="white")]
    axes.text(a, b, name, ha="center", va="center", weight="bold", path_effects=halo)


def _legend(axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    legend = axes.legend(
        handles,
        names,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        borderaxespad=0,
        fontsize=8,
        ncols=1 + len(names) // 22,
    )
    for handle in filter(None, legend.legend_handles):
        handle.set(alpha=1, sizes=[28])


def _strip(path: Path, z: np.ndarray, prior: np.ndarray, names: np.ndarray | None) -> Path:
    """One latent: a histogram, or a row of points per label."""
    with _figure(path, (6.4, 3.6), layout="constrained") as figure:
        axes = figure.add_subplot()
        axes.set_title(f"Latent means of {len(z)} data", loc="left")
        axes.set_xlabel("z0")
        if names is None or _is_scale(names):
            bins = np.histogram_bin_edges(np.concatenate([z, prior]), 60).tolist()
            axes.hist(prior, bins, density=True, color="0.88", label="draws from p(z)")
            axes.hist(z, bins, density=True, histtype="step", color=COLORS[0], label="latent means")
            axes.set_ylabel("density")
            axes.legend(fontsize=8)
            return path
        jitter = np.random.default_rng(0).uniform(-0.3, 0.3, len(z))
        classes = list(_classes(names))
        for row, (rows, _, color, marker) in enumerate(classes):
            axes.scatter(z[rows], row + jitter[rows], s=8, color=color, marker=marker, linewidths=0)
        axes.set_yticks(range(len(classes)), [name for _, name, _, _ in classes])
        axes.invert_yaxis()
        axes.set_ylabel("label")
    return path


def _principal(z: np.ndarray, prior: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z and prior on the first two principal components of z, and these components' shares."""
    center = z.mean(0)
    _, singular, rows = np.linalg.svd(z - center, full_matrices=True)
    basis = rows[:2]
    # The sign of a component is arbitrary: its largest entry is made positive.
    largest = np.abs(basis).argmax(1)
    basis = basis * np.sign(basis[np.arange(2), largest])[:, None]
    power = np.zeros(z.shape[1])
    power[: len(singular)] = singular**2
    shares = power[:2] / max(power.sum(), 1e-30)
    return (z - center) @ basis.T, (prior - center) @ basis.T, shares
