"""Tables: how numbers are told, and drawn as Markdown or in the terminal."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.summary import ratio

Record = dict[str, Any]
BY_HAND = "hand-eager", "hand-compiled", "hand-reduce-overhead"  # Adam outside the graph


@dataclass(frozen=True)
class Table:
    title: str
    columns: list[str]
    rows: list[list[str]]
    reasons: list[str]  # one line a row that was not measured, or has a note


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0 or value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def times(value: float) -> str:
    return f"{number(value)}x"


def duration(seconds: float, *bounds: float) -> str:
    """In seconds, minutes or hours; bounds behind it in the same unit."""
    sizes = ((3600.0, "h"), (60.0, "min"), (0.0, "s"))
    size, name = next(known for known in sizes if seconds >= 2 * known[0])
    told = [number(each / (size or 1.0)) for each in (seconds, *bounds)]
    return f"{told[0]} {name}" + (f" ({'-'.join(told[1:])})" if bounds else "")


def with_spread(row: Record, scale: float) -> str:
    """Median and quartiles."""
    middle, low, high = (number(row[key] * scale) for key in ("median", "lower", "upper"))
    return f"{middle} ({low}-{high})"


def best_by_hand(record: Record) -> Record | None:
    """The fastest of the rows written by hand with Adam outside the graph."""
    rows = [r for r in record["rows"] if r["name"] in BY_HAND and "median" in r]
    return min(rows, key=lambda r: r["median"], default=None)


def against(row: Record, other: Record | None) -> str:
    """A row's time as a multiple of another's, round by round."""
    if other is None or "median" not in row or "median" not in other:
        return ""
    return times(ratio(row["times"], other["times"])["median"])


def find(record: Record, name: str) -> Record | None:
    return next((row for row in record["rows"] if row["name"] == name), None)


def reasons(*records: Record) -> list[str]:
    """Why rows were not measured; one line a reason."""
    told: dict[str, dict[str, None]] = {}
    for record in records:
        for row in record["rows"]:
            if "reason" in row:
                told.setdefault(row["reason"], {})[plain(row["label"])] = None
    return [f"not measured ({reason}): {'; '.join(labels)}" for reason, labels in told.items()]


def plain(label: str) -> str:
    """A label without Markdown."""
    return label.replace("**", "")


def wrapped(text: str) -> str:
    return textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)


def markdown(table: Table) -> str:
    lines = [f"{table.title}.", ""] if table.title else []
    lines += [
        f"| {' | '.join(table.columns)} |",
        f"| {' | '.join('---' for _ in table.columns)} |",
    ]
    lines += [f"| {' | '.join(row)} |" for row in table.rows]
    if table.reasons:
        lines += ["", *(f"* {reason}" for reason in table.reasons)]
    return "\n".join(lines)


def show(table: Table, console: Console) -> None:
    drawn = RichTable(title=escape(table.title), title_justify="left")
    for i, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if i else "left")
    for row in table.rows:
        drawn.add_row(*(escape(plain(cell)) for cell in row))
    console.print(drawn)
    for reason in table.reasons:
        console.print(f"  {reason}", markup=False, soft_wrap=True)
