"""Estimates in a notebook."""

from __future__ import annotations

import math
from html import escape
from typing import Any

ROWS = {
    "log_px": "nats per datum",
    "mc_std_error": "shrinks with samples and data",
    "bias_estimate": "shrinks with samples only",
    "test_std_error": "for new data of the same source",
    "elbo": "a lower bound",
    "upper": "the upper bound",
    "gap": "between the bounds",
    "num_flagged": "data whose errors are not to be believed",
}


def as_html(estimate: Any) -> str:
    """A table of the numbers, and the paragraph that says how far to trust them."""
    summary = estimate.summary()
    rows = []
    for name, text in ROWS.items():
        value = summary.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        shown = str(value) if isinstance(value, int) else f"{value:.3f}"
        label = estimate.quantity if name == "log_px" else name.replace("_", " ")
        rows.append(
            f"<tr><th style='text-align:left'>{escape(label)}</th>"
            f"<td style='text-align:right'>{shown}</td>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table><p>{escape(str(estimate))}</p>"
