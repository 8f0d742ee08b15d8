"""Figures in one style, as whole PNG files, and pages of labelled cells."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_vae.app.files import write_bytes
from pyro_vae.errors import RequestError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAP = 2  # white pixels between cells
SPACING = 32  # and between panels
DPI = 150
DIM = "0.45"  # secondary text
# Ten colours that stay apart under colour-blindness (Petroff, arXiv:2107.02270).
COLORS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6"),
    *("#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"),
)
# Beside matplotlib's defaults:
STYLE: dict[str, Any] = {"font.size": 9, "axes.titlesize": 9, "axes.edgecolor": DIM}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}
STYLE |= {"xtick.color": DIM, "xtick.labelcolor": "black"}
STYLE |= {"ytick.color": DIM, "ytick.labelcolor": "black"}


@contextmanager
def figure(path: str | Path, size: tuple[float, float], *, tight: bool = False) -> Iterator[Figure]:
    """A figure that is written to `path` at the end, whole or not at all.

    `tight`: cut to what is drawn; otherwise of this size, in inches, with what is drawn fitted in.
    """
    from matplotlib import style
    from matplotlib.figure import Figure

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise RequestError(f"path: '{path.name}' must end in .png; pictures are PNG files")
    content = io.BytesIO()
    with style.context(["default", STYLE]):
        drawn = Figure(figsize=size, dpi=DPI, layout=None if tight else "constrained")
        yield drawn
        box: Any = {"bbox_inches": "tight", "pad_inches": 0.12} if tight else {}
        drawn.savefig(content, format="png", metadata={"Software": None}, **box)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, content.getvalue())


@dataclass(frozen=True)
class Panel:
    """A grid of cells `[N, h, w, 3]` with its labels."""

    cells: np.ndarray
    columns: int
    title: str = ""
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()
    axis_names: tuple[str, str] = ("", "")


def page(path: str | Path, title: str, panels: Sequence[Panel], note: str = "") -> Path:
    """Panels side by side, each pixel of a cell one pixel of the file."""
    images = [tile(panel.cells, panel.columns) for panel in panels]
    width = sum(image.shape[1] + SPACING for image in images) - SPACING
    height = max(len(image) for image in images)
    with figure(path, (width / DPI, height / DPI), tight=True) as sheet:
        left = 0
        for panel, image in zip(panels, images, strict=True):
            rows, columns = image.shape[:2]
            place = (left / width, 1 - rows / height, columns / width, rows / height)
            axes = sheet.add_axes(place)
            axes.imshow(image, interpolation="nearest", aspect="auto")
            axes.spines[:].set_visible(False)
            axes.tick_params(length=0, pad=4, labelsize=8)
            down, across = panel.cells.shape[1] + GAP, panel.cells.shape[2] + GAP
            axes.set_yticks(_centers(panel.row_labels, down), panel.row_labels)
            marks = _thinned(panel.column_labels, across)
            axes.set_xticks(_centers(marks, across), marks)
            axes.set_xlabel(panel.axis_names[0])
            axes.set_ylabel(panel.axis_names[1], rotation=0, labelpad=10)
            axes.set_title(panel.title, loc="left", color=DIM, pad=5)
            left += columns + SPACING
        above = 36 if any(panel.title for panel in panels) else 12
        title = textwrap.fill(title, max(40, width // 11))
        sheet.text(0, 1 + above / height, title, fontsize=10)
        below = 12
        below += 24 * any(panel.column_labels for panel in panels)
        below += 24 * any(panel.axis_names[0] for panel in panels)
        note = textwrap.fill(note.strip(), max(40, width // 9))
        sheet.text(0, -below / height, note, fontsize=8, color=DIM, va="top")
    return Path(path)


def _centers(labels: Sequence[str], pitch: int) -> np.ndarray:
    return (np.arange(len(labels)) + 0.5) * pitch - (1 + GAP) / 2


def _thinned(labels: Sequence[str], pitch: int) -> list[str]:
    """Every so many of the labels, where all would be wider than the cells they stand under."""
    named = [i for i, label in enumerate(labels) if label]
    room = pitch * min((b - a for a, b in pairwise(named)), default=1)
    every = math.ceil((11 * max(map(len, labels), default=0) + 4) / room)
    kept = named[::every]
    return [label if i in kept else "" for i, label in enumerate(labels)]


def tile(cells: np.ndarray, columns: int) -> np.ndarray:
    """One image of cells in rows of `columns`, with white between them and after the last.

    >>> tile(np.zeros((3, 8, 8, 3)), 2).shape
    (18, 18, 3)
    """
    room = ((0, -len(cells) % columns), (0, GAP), (0, GAP), (0, 0))
    padded = np.pad(cells, room, constant_values=1)
    _, height, width, channels = padded.shape
    rows = padded.reshape(-1, columns, height, width, channels).swapaxes(1, 2)
    return rows.reshape(-1, columns * width, channels)[:-GAP, :-GAP]


def minus(text: str) -> str:
    """As matplotlib writes numbers: a true minus sign, and zero without a sign."""
    return "0" if text in ("+0", "-0") else text.replace("-", "\N{MINUS SIGN}")
