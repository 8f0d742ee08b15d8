"""Tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table; columns whose title starts with `>` are flush right."""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold")
    rows = [tuple(row) for row in rows]
    for i, column in enumerate(columns):
        if column.startswith(">"):
            table.add_column(column[1:], justify="right", no_wrap=True)
        else:  # wide enough for its longest word, within reason
            words = [word for row in rows for word in row[i].split()]
            least = min(24, max(map(len, words), default=0))
            table.add_column(column, overflow="fold", min_width=least)
    for row in rows:
        table.add_row(*row)
    console().print(table)


def say(text: str) -> None:
    """Print a paragraph, wrapped to the terminal."""
    console().print(text, soft_wrap=False)


def console() -> Console:
    """Plain words: no markup in what users name, no colour codes in files."""
    return Console(markup=False, highlight=False, emoji=False)
