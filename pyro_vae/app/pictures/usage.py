"""KL per latent unit, as bars."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from inference.diagnostics.unit_kl import UnitKL
from pyro_vae.app.pictures.page import COLORS, DIM, figure
from pyro_vae.errors import RequestError

MOST_UNITS = 200
NAMED = 60  # more bars than these are too narrow for names
SUBJECT = {
    "analytic": "KL(q(z|x) || p(z)) per latent unit",
    "monte_carlo": "KL(q(z|x) || p(z)) per latent unit",
    "marginal": "KL of the guide's marginals to the prior, per latent unit",
    "out_of_order": "Terms of KL(q(z|x) || p(z)) per latent unit",
    "information": "Information about x per latent unit",
}


def draw_unit_kl(result: UnitKL, path: str | Path) -> Path:
    """Units from the largest KL to the smallest, with standard errors and the line of collapse.

    Of more than 200 units the 200 largest. Raises: `RequestError` where no unit's KL is known.
    """
    from matplotlib.ticker import MaxNLocator

    kl, error = result.kl.numpy(), result.std_error.numpy()
    known = np.flatnonzero(np.isfinite(kl))
    if not len(known):
        raise RequestError("result: no unit's KL is known, so there is nothing to draw")
    order = known[np.argsort(-kl[known], kind="stable")]
    shown = order[:MOST_UNITS]
    alive = kl[shown] >= result.threshold
    kinds = {kind for kind in result.kinds.values() if kind != "unknown"}
    subject = SUBJECT[kinds.pop()] if len(kinds) == 1 else "Nats per latent unit"
    place = np.arange(len(shown))
    with figure(path, (float(np.clip(1.5 + 0.17 * len(shown), 6, 10)), 3.2)) as sheet:
        axes = sheet.add_subplot()
        looks = (
            (alive, COLORS[0], f"{int((kl[order] >= result.threshold).sum())} above it"),
            (~alive, COLORS[6], f"{result.num_collapsed} collapsed"),
        )
        for which, color, label in looks:
            if which.any():
                axes.bar(place[which], kl[shown][which], 0.8, color=color, label=label)
        if len(shown) <= NAMED:
            look: Any = {"fmt": "none", "ecolor": "0.2", "elinewidth": 0.8}
            axes.errorbar(place, kl[shown], error[shown], label="standard error", **look)
        # Bars below the line are too low to be seen: a mark says where they stand.
        low = place[~alive]
        axes.plot(low, np.zeros(len(low)), "|", color=COLORS[6], markersize=5, clip_on=False)
        label = f"collapse below {result.threshold:g} nats"
        axes.axhline(result.threshold, color=DIM, linewidth=0.8, linestyle=(0, (4, 3)), label=label)
        axes.set_title(subject, loc="left", pad=38)
        whole = f"KL of all latents together: {result.total:.2f} nats per datum"
        axes.text(0, 1.13, whole, transform=axes.transAxes, color=DIM, fontsize=8)
        axes.set_ylabel("nats per datum")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, ncols=4, fontsize=8)
        axes.set_xlim(-0.8, len(shown) - 0.2)
        axes.yaxis.set_major_locator(MaxNLocator(6))
        left = len(order) - len(shown)
        below = (
            f"latent unit, largest first ({left} smaller ones left out)"
            if left
            else "latent unit, largest first"
        )
        if len(shown) <= NAMED:
            size = 8 if len(shown) <= 30 else 6
            axes.set_xticks(place, _names(result.units, shown), rotation=90, fontsize=size)
        else:
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
            below = below.replace("latent unit", "rank of the latent unit")
        axes.set_xlabel(below)
    return Path(path)


def _names(units: tuple[str, ...], shown: np.ndarray) -> list[str]:
    """Units as other pictures call them: z0, z1, ..."""
    return [units[i].replace("[", "").replace("]", "") for i in shown]
