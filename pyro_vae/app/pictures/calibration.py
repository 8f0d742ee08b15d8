"""Calibration of the guide: how far the ranks of true latents are from uniform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inference.diagnostics.calibration import Calibration
from pyro_vae.app.pictures.page import COLORS, DIM, figure

LOOKS = [COLORS[i] for i in (0, 1, 2, 4, 5, 9)]  # of the worst units; grey is for the others
OTHERS: dict[str, Any] = {"color": "0.72", "linewidth": 0.7}
MORE: dict[str, Any] = {"color": "0.35", "linewidth": 0.9, "linestyle": ":"}


def draw_calibration(result: Calibration, path: str | Path) -> Path:
    """ECDF of each unit's ranks less that of uniform ones, and the band in which all should lie.

    The worst units are coloured and named with what is wrong. A guide too low lies below 0, one too
    high above; too narrow: above on the left, below on the right; too wide: the other way round.
    The tests are not the band's: they see heavy ends in a unit whose curve stays within.
    """
    difference, band = result.ecdf().numpy(), result.band()
    failed = result.failed.numpy()
    # By the size of the deviation: p-values of the worst are 0 alike.
    size = np.abs(difference).max(0)
    order = np.lexsort((-size, ~failed))
    named = [i for i in order if failed[i]][: len(LOOKS)]
    rank = np.append(0.0, band.points)
    with figure(path, (7.0, 4.0)) as sheet:
        axes = sheet.add_subplot()
        low, high = np.append(0.0, band.low), np.append(0.0, band.high)
        label = f"calibrated: all within,\nin {1 - result.level:.0%} of runs"
        axes.fill_between(rank, low, high, color="0.91", linewidth=0, label=label)
        axes.axhline(0, color=DIM, linewidth=0.6)
        for which, style, what in (
            (failed, MORE, "more miscalibrated"),
            (~failed, OTHERS, "with no fault shown"),
        ):
            rest = [i for i in range(result.num_units) if which[i] and i not in named]
            for n, i in enumerate(rest):
                text = f"{len(rest)} {what}"
                axes.plot(rank, np.append(0, difference[:, i]), label="" if n else text, **style)
        for n, i in enumerate(named):
            text = f"{_name(result.units[i])}: {result.verdicts[i]}"
            color = LOOKS[n]
            axes.plot(rank, np.append(0, difference[:, i]), color=color, linewidth=1.4, label=text)
        several = f"{result.num_failed} of {result.num_units} units"
        axes.set_title(f"Calibration of the guide: {several} miscalibrated", loc="left", pad=20)
        how = f"{result.num_data} simulated data, {result.num_draws} draws of the guide each"
        axes.text(0, 1.02, how, transform=axes.transAxes, color=DIM, fontsize=8)
        axes.set_xlabel("rank of the true latent among the guide's draws (share)")
        axes.set_ylabel("ECDF of ranks less uniform")
        axes.set_xlim(0, 1)
        most = 1.08 * max(size.max(initial=0), float(high.max()), float(-low.min()))
        axes.set_ylim(-most, most)
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0, fontsize=8)
    return Path(path)


def _name(unit: str) -> str:
    return unit.replace("[", "").replace("]", "")
