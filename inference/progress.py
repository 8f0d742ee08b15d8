"""Progress on standard error, or silence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any


class Progress:
    """`with Progress("training", total, show) as bar: bar.advance(text="bound -98.2")`."""

    def __init__(self, title: str, total: int, show: bool, unit: str = "steps", done: int = 0):
        self.bar: Any = None
        if not show:
            return
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            ProgressColumn,
            Task,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as RichProgress
        from rich.text import Text

        class Rate(ProgressColumn):
            """Units a second, of late."""

            def render(self, task: Task) -> Text:
                speed = task.finished_speed or task.speed
                return Text("" if speed is None else f"{speed:.3g} {unit}/s")

        self.bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            Rate(),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self.task = self.bar.add_task(title, total=total, text="", completed=done)

    def __enter__(self) -> Progress:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar:
            self.bar.stop()

    def advance(self, count: int = 1, text: str | None = None) -> None:
        if self.bar:
            fields = {} if text is None else {"text": text}
            self.bar.update(self.task, advance=count, **fields)


@contextmanager
def working(text: str, show: bool) -> Iterator[None]:
    """A sign of life around work whose length is not known."""
    if not show:
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield


def say(text: str) -> None:
    """One line beside the progress bars."""
    from rich.console import Console

    Console(stderr=True).print(text, markup=False, highlight=False)
