"""Cost of log p(x) against samples, data, latent size and width, as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.tables import find

AXES = {
    "samples": "samples\n(10,000 images)",
    "data": "images\n(100 samples each)",
    "latent": "latent size\n(10,000 images, 1,000 samples each)",
    "width": "width of the layers\n(10,000 images, 1,000 samples each)",
}

ROWS = {  # name, colour, marker
    "ours-eager": ("pyro-vae, eager", "C1", "o"),
    "ours-compiled": ("pyro-vae, compiled", "C0", "o"),
    "products": ("matrix products alone", "C7", "s"),
}


def cost_points(sections: dict[str, Any], axis: str, row: str) -> list[tuple[float, float, bool]]:
    """(value, seconds of the whole work, extrapolated) of one row along one axis."""
    points = []
    for section in sections.values():
        if section.get("axis") == axis:
            found = find(section, row)
            if found is not None and "median" in found:
                seconds = found["whole_seconds"]
                points.append((section["value"], seconds, found["extrapolated"]))
    return sorted(points)


def draw(result: dict[str, Any], path: Path) -> bool:
    """Write the picture; whether there was anything to draw."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    sections = result["sections"]
    if not any(cost_points(sections, axis, row) for axis in AXES for row in ROWS):
        return False
    figure = Figure(figsize=(12, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (axis, label) in zip(
        figure.subplots(1, len(AXES), sharey=True), AXES.items(), strict=True
    ):
        for row, (name, colour, marker) in ROWS.items():
            points = cost_points(sections, axis, row)
            if not points:
                continue
            values, seconds, sliced = zip(*points, strict=True)
            axes.plot(values, seconds, color=colour, linewidth=1.2, label=name)
            for whole in (True, False):  # extrapolated points are hollow
                kept = [i for i, flag in enumerate(sliced) if flag != whole]
                axes.plot(
                    [values[i] for i in kept],
                    [seconds[i] for i in kept],
                    marker,
                    color=colour,
                    markersize=4.5,
                    markerfacecolor=colour if whole else "white",
                )
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = sorted({v for row in ROWS for v, *_ in cost_points(sections, axis, row)})
        axes.set_xticks(
            ticks, [f"{value:,}" if value < 1e4 else f"{value // 1000}k" for value in ticks]
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(label, fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3, linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    first = figure.axes[0]
    first.set_ylabel("seconds", fontsize=8)
    first.plot([], [], "o", color="black", markerfacecolor="white", markersize=4.5, label="a slice")
    first.legend(fontsize=7.5, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return True
