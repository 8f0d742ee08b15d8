"""Estimates in a notebook."""

from __future__ import annotations

import math
from html import escape
from typing import Any

# What a row is called, how its number is written, and what is said beside it.
ROWS = {
    "log_px": ("", ".3f", "nats per datum"),
    "difference": ("difference", "+.3g", "nats per datum, the first less the second"),
    "std_error": ("standard error", ".2g", "for new data of the same source"),
    "mc_std_error": ("Monte-Carlo error", ".2g", "shrinks with samples and data"),
    "bias_estimate": ("estimated bias", ".2g", "shrinks with samples only"),
    "test_std_error": ("test-set error", ".2g", "for new data of the same source"),
    "elbo": ("ELBO", ".3f", "a lower bound"),
    "upper": ("upper", ".3f", "the upper bound"),
    "gap": ("gap", ".2g", "between the bounds"),
    "num_flagged": ("flagged", "d", "data whose errors are not to be believed"),
}


def as_html(estimate: Any) -> str:
    """A table of the numbers, and the paragraph that says how far to trust them."""
    summary = estimate.summary()
    rows = []
    for name, (called, style, text) in ROWS.items():
        value = summary.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        shown = format(value, style)
        label = called or summary["quantity"]
        rows.append(
            f"<tr><th style='text-align:left'>{escape(label)}</th>"
            f"<td style='text-align:right'>{shown}</td>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
        )
    return f"<table>{''.join(rows)}</table><p>{escape(str(estimate))}</p>"
