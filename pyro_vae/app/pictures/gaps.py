"""The budget of log p(x), and the gap below it, datum by datum and guide by guide."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import inference
from pyro_vae.app.pictures.page import COLORS, DIM, figure, minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PARTS = {  # of the inference gap, from the bound upwards
    "amortization": COLORS[0],
    "approximation": COLORS[1],
}
ERRORS: dict[str, Any] = {"fmt": "none", "ecolor": "0.2", "elinewidth": 0.9, "capsize": 2}


def draw_gaps(result: inference.Gaps, path: str | Path) -> Path:
    """From the reconstruction down to the bound, up to log p(x); and each datum's gap.

    Where noise takes a part below zero it is drawn below zero.
    """
    with figure(path, (8.6, 3.3)) as sheet:
        left, right = sheet.subplots(1, 2, width_ratios=[1.25, 1])
        _waterfall(left, result)
        _by_datum(right, result)
    return Path(path)


def draw_gap_comparison(results: Mapping[str, inference.Gaps], path: str | Path) -> Path:
    """The mean gap of several guides, each in its two parts, with Monte-Carlo errors."""
    names = list(results)
    with figure(path, (6.4, 1.3 + 0.42 * len(names))) as sheet:
        axes = sheet.add_subplot()
        start = np.zeros(len(names))
        for name, color in PARTS.items():
            items = [getattr(result, name) for result in results.values()]
            width = np.array([item.mean for item in items])
            axes.barh(names, width, left=start, color=color, label=f"{name} gap", height=0.6)
            start = start + width
        error = [result.inference.mc_std_error for result in results.values()]
        axes.errorbar(start, range(len(names)), xerr=error, **ERRORS)
        for i, result in enumerate(results.values()):
            text = f"  {result.inference.mean:.2f}"
            axes.text(start[i] + error[i], i, text, va="center", fontsize=8)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("log p(x) less the bound (nats per datum)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, ncols=2, fontsize=8)
    return Path(path)


def _waterfall(axes: Axes, result: inference.Gaps) -> None:
    steps = [("reconstruction", result.reconstruction, 1, COLORS[3])]
    steps += [(f"KL({site})", item, -1, COLORS[8]) for site, item in result.kl.items()]
    steps += [(f"{name} gap", getattr(result, name), 1, color) for name, color in PARTS.items()]
    at, ends, places = 0.0, [], []
    for row, (name, item, sign, color) in enumerate(steps):
        start, at = at, at + sign * item.mean
        axes.barh(row, at - start, left=start, color=color, height=0.62)
        axes.errorbar(at, row, xerr=item.mc_std_error, **ERRORS)
        places.append((row, start, at, f"{sign * item.mean:+.2f}", name))
        ends.append(at)
    whole = result.log_px.mean
    axes.axvline(whole, color="0.08", linewidth=0.9, zorder=0)
    axes.axvline(result.elbo.mean, color=DIM, linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    # From 0 to the reconstruction is one long bar, of which the end tells something.
    reach = max(ends) - min(ends)
    low, high = min(ends) - 0.15 * reach, max(ends) + 0.35 * reach
    axes.set_xlim(low, high)
    for row, start, end, text, _ in places:
        edge = min(max(start, end), high)
        inside = edge > high - 0.2 * reach
        place = high - 0.02 * reach if inside else edge + 0.02 * reach
        color = "white" if inside else "black"
        look: Any = {"ha": "right" if inside else "left", "va": "center", "fontsize": 8}
        if not inside:  # over the line of log p(x)
            look["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axes.text(place, row, minus(text), color=color, **look)
    axes.set_yticks(range(len(steps)), [name for *_, name in places])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    labels: Any = {"rotation": 0, "fontsize": 8, "va": "bottom"}
    top = axes.get_xaxis_transform()
    bound = minus(f"bound {result.elbo.mean:.2f} ")
    axes.text(result.elbo.mean, 1.0, bound, ha="center", transform=top, color=DIM, **labels)
    axes.text(whole, 1.07, minus(f"log p(x) {whole:.2f}"), ha="center", transform=top, **labels)
    axes.set_title(f"Mean of {result.num_data} data", loc="left", pad=26)
    axes.set_xlabel("nats per datum")


def _by_datum(axes: Axes, result: inference.Gaps) -> None:
    gap = result.inference.value.numpy()
    order = np.argsort(gap)
    place = np.arange(len(gap))
    amortization = result.amortization.value.numpy()[order]
    axes.fill_between(place, 0, amortization, color=PARTS["amortization"], step="mid", linewidth=0)
    axes.fill_between(
        place, amortization, gap[order], color=PARTS["approximation"], step="mid", linewidth=0
    )
    axes.step(place, gap[order], where="mid", color="0.2", linewidth=0.8)
    flagged = result.log_px.flagged
    if flagged is not None and bool(flagged.any()):
        where = np.flatnonzero(flagged.numpy()[order])
        label = f"flagged ({len(where)}): at least this"
        axes.plot(where, gap[order][where], "v", color=COLORS[2], markersize=3, label=label)
        axes.legend(loc="upper left", fontsize=8)
    axes.margins(x=0.01)
    axes.set_ylim(min(0.0, float(min(gap.min(), amortization.min()))), None)
    axes.set_title("Each datum's gap", loc="left", pad=26)
    axes.set_xlabel("data, by their gap")
    axes.set_ylabel("nats")
