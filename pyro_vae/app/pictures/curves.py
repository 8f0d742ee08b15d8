"""Learning curves: the bounds against the epoch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pyro_vae.app.pictures.page import COLORS, DIM, figure, minus
from pyro_vae.errors import RequestError

LOOKS = {
    "train_bound": {"label": "training", "color": COLORS[0]},
    "validation_bound": {"label": "validation", "color": "0.08"},
}


def learning_curves(history: Sequence[dict], path: str | Path) -> Path:
    """The bounds in nats per datum against the epoch, with warm-up and best epoch marked.

    The best epoch is that with the highest validation bound, or with the highest training bound
    (outside the warm-up) where there is no validation.

    Args:
        history: rows with `epoch` and `train_bound`; `validation_bound`, `beta` and
            `learning_rate` may be absent or None.
    """
    from matplotlib.ticker import MaxNLocator

    curves = bounds(history)
    if not curves:
        raise RequestError("history: holds no finite bound; train for at least one epoch")
    epochs, rate = _column(history, "epoch"), _column(history, "learning_rate")
    beta = _column(history, "beta", 1.0)
    rates = sorted(set(rate[rate > 0].tolist()))
    panels = 2 if len(rates) > 1 else 1
    with figure(path, (6.4, 2.8 + 0.8 * panels)) as sheet:
        grid: Any = {"sharex": True, "squeeze": False, "height_ratios": [4, 1][:panels]}
        axes, last = sheet.subplots(panels, **grid)[[0, -1], 0]
        marker = "o" if len(history) <= 30 else None
        for key, values in curves.items():
            axes.plot(epochs, values, marker=marker, markersize=3, **LOOKS[key])
        if (beta < 1).any():
            label = "warm-up (beta < 1)" if beta[0] < 1 <= beta.max() else "beta < 1"
            where: Any = {"transform": axes.get_xaxis_transform(), "zorder": 0}
            axes.bar(epochs[beta < 1], 1, 1, color="0.93", label=label, **where)

        seen = np.concatenate(list(curves.values()))
        seen = seen[np.isfinite(seen)]
        low, high = _robust_limits(seen)
        axes.set_ylim(low, high)
        axes.margins(x=0.02)
        key, best = _best(curves, beta)
        epoch, value = epochs[best], curves[key][best]
        axes.axvline(epoch, color=DIM, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        label = minus(f"best epoch {epoch:g}: {value:.2f}")
        axes.plot(epoch, value, "o", color=COLORS[2], markersize=6, label=label)
        cut = int((seen < low).sum())
        if cut:
            text = f"{cut} value{'s' * (cut > 1)} below the axis, lowest {seen.min():.4g}"
            axes.text(0.99, 0.02, minus(text), ha="right", transform=axes.transAxes, color=DIM)
        axes.set_title("Learning curves", loc="left", pad=22)
        axes.set_ylabel("bound (nats per datum)")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), borderpad=0, ncols=4, fontsize=8)
        if last is not axes:
            last.step(epochs, rate, where="mid", color=DIM)
            last.set_yscale("log")
            last.minorticks_off()
            last.set_yticks([rates[0], rates[-1]])
            last.yaxis.set_major_formatter("{x:.2g}")
            last.set_ylabel("learning\nrate")
        last.set_xlabel("epoch")
        last.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    return Path(path)


def bounds(history: Sequence[dict]) -> dict[str, np.ndarray]:
    """The bounds that are finite anywhere; not a number where they are not."""
    curves = {key: _column(history, key) for key in LOOKS}
    finite = {key: np.where(np.isfinite(curve), curve, np.nan) for key, curve in curves.items()}
    return {key: curve for key, curve in finite.items() if not np.isnan(curve).all()}


def _column(history: Sequence[dict], key: str, missing: float = math.nan) -> np.ndarray:
    values = [row.get(key) for row in history]
    return np.array([missing if value is None else float(value) for value in values])


def _robust_limits(values: np.ndarray) -> tuple[float, float]:
    """Limits that keep the later, flatter part of the curves legible: the start may lie outside."""
    top = values.max()
    quarter = np.quantile(values, 0.25)
    low = max(values.min(), quarter - 3 * (top - quarter))
    margin = 0.06 * (top - low) or max(1.0, 0.01 * abs(top))
    return low - margin, top + margin


def _best(curves: dict[str, np.ndarray], beta: np.ndarray) -> tuple[str, int]:
    """Which curve, and which of its rows, is the best."""
    key = list(curves)[-1]
    values = curves[key]
    # A training bound with beta < 1 counts less of the KL divergence and so looks better.
    whole = np.where(beta >= 1, values, np.nan)
    if key == "train_bound" and not np.isnan(whole).all():
        values = whole
    return key, int(np.nanargmax(values))
