"""What was measured, drawn: imputed digits, and topics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.uses import missing

NUM_TOPICS, NUM_WORDS = 12, 8


def draw(question: str, shown: dict[str, Any], folder: Path) -> None:
    """The pictures of a question, as far as what they show was made in this call."""
    if question == "missing" and {"truth", "mean_field"} <= shown.keys():
        _save(_imputations(shown), folder / "uses-imputed.png")
    if question == "topics" and {"made", "real"} <= shown.keys():
        _save(_topics(*shown["made"], *shown["real"]), folder / "uses-topics.png")


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _figure(**fields: Any) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained", **fields)
    FigureCanvasAgg(figure)
    return figure


def _imputations(shown: dict[str, Any]) -> Any:
    """A row of digits for each way of imputing."""
    truth, mask = shown["truth"], shown["mask"]
    rows = [("whole", truth), ("known", torch.where(mask, truth, torch.tensor(0.5)))]
    for name in ("probabilistic PCA", *missing.GUIDES):
        if name in shown:
            rows.append((name, torch.where(mask, truth, shown[name].clamp(0, 1))))
    figure = _figure(figsize=(8, 0.8 * len(rows)))
    for axis, (name, x) in zip(figure.subplots(len(rows), 1), rows, strict=True):
        axis.imshow(torch.cat(list(x), 1).numpy(), cmap="gray_r", vmin=0, vmax=1)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
        axis.set(xticks=[], yticks=[])
    return figure


def _topics(
    true: np.ndarray, found: np.ndarray, words: tuple[str, ...], real: np.ndarray, share: np.ndarray
) -> Any:
    """Found beside true topics of made documents; the words of the commonest real ones."""
    figure = _figure(figsize=(10, 7.5))
    above, below = figure.subfigures(2, 1, height_ratios=[1, 1.6])
    order = np.lexsort([-true.max(0), true.argmax(0)])  # words by the topic they are likeliest in
    top = np.sqrt(max(true.max(), found.max()))
    for axis, (name, topics) in zip(
        above.subplots(1, 2), (("true topics", true), ("topics found", found)), strict=True
    ):
        axis.imshow(np.sqrt(topics[:, order]), aspect="auto", cmap="Blues", vmin=0, vmax=top)
        axis.set(title=name, xlabel="word", ylabel="topic", xticks=[], yticks=[])
    kept = np.argsort(-share)[:NUM_TOPICS]
    axes = below.subplots(2, -(-len(kept) // 2), squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, k in zip(axes, kept, strict=False):
        best = real[k].argsort()[::-1][:NUM_WORDS]
        axis.set_axis_on()
        axis.barh(range(len(best)), real[k][best], color="C0")
        axis.set_yticks(range(len(best)), [words[i] for i in best], fontsize=8)
        axis.invert_yaxis()
        axis.set_xticks([])
        axis.set_title(f"{share[k]:.0%} of words", fontsize=9)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
    return figure
