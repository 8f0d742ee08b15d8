"""The matrix: which priors and guides work together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pyro_vae.app.pictures.page import COLORS, figure

if TYPE_CHECKING:
    from pyro_vae.app.matrix import Combination

WORKS, REFUSED = COLORS[0], "0.93"


def matrix(found: Sequence[Combination], marks: dict[str, str], path: str | Path) -> Path:
    """One row a prior, one column a guide; a letter says why two do not fit.

    Rows and columns stand in the order of what fits together, so that families are blocks.
    """
    works = {(c.prior, c.guide) for c in found if c.works}
    reasons = {(c.prior, c.guide): marks[c.reason] for c in found if not c.works}
    priors, guides = _in_blocks(works)
    shown = np.array([[(p, g) in works for g in guides] for p in priors])
    size = (1.9 + 0.27 * len(guides), 1.9 + 0.27 * len(priors))
    with figure(path, size, tight=True) as sheet:
        axes = sheet.add_subplot()
        axes.set_title("Priors (rows) and guides (columns): filled cells work together", loc="left")
        for (row, column), fits in np.ndenumerate(shown):
            place = (column - 0.46, row - 0.46)
            axes.add_patch(_square(place, WORKS if fits else REFUSED))
            if not fits:
                letter = reasons[priors[row], guides[column]]
                axes.text(column, row, letter, ha="center", va="center", fontsize=7, color="0.45")
        axes.set_xlim(-0.5, len(guides) - 0.5)
        axes.set_ylim(len(priors) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xticks(range(len(guides)), guides, rotation=90)
        axes.set_yticks(range(len(priors)), priors)
        axes.tick_params(length=0)
        for side in axes.spines.values():
            side.set_visible(False)
        why = ", ".join(f"{mark} {reason}" for reason, mark in marks.items())
        axes.set_xlabel(f"not: {why}", loc="left")
    return Path(path)


def _square(place: tuple[float, float], color: str):
    from matplotlib.patches import Rectangle

    return Rectangle(place, 0.92, 0.92, facecolor=color, linewidth=0)


def _in_blocks(works: set[tuple[str, str]]) -> tuple[list[str], list[str]]:
    """Priors by the guides they take, those with many first; guides likewise."""
    taken: dict[str, set[str]] = {}
    takes: dict[str, set[str]] = {}
    for prior, guide in works:
        taken.setdefault(prior, set()).add(guide)
        takes.setdefault(guide, set()).add(prior)
    priors = sorted(taken, key=lambda p: (-len(taken[p]), sorted(taken[p]), p))
    first = {guide: min(i for i, p in enumerate(priors) if guide in taken[p]) for guide in takes}
    guides = sorted(takes, key=lambda g: (first[g], -len(takes[g]), g))
    return priors, guides
