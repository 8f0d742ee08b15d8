"""What is to be measured: rows, and the sections that they stand in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """How much is measured."""

    quick: bool = False
    threads: int = 2
    whole_memory: bool = False  # 10^5 samples for all 1,000 data, minutes

    def pick(self, full: T, quick: T) -> T:
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """One way of doing a section's work, in a process of its own.

    A slice does `n` pieces (training steps, or data), each of `units` units (one step, or K
    samples); times are told per unit. Where a slice stands for `whole` pieces, the row is
    extrapolated. `absent`: why it cannot be measured here, if that is known beforehand.
    """

    name: str
    label: str
    worker: str  # module in benchmarks.workers
    task: dict[str, Any]
    n: int
    units: int = 1
    whole: int | None = None
    peer: bool = False  # runs under the peers' interpreter
    absent: str | None = None


@dataclass(frozen=True)
class Section:
    """Rows that are measured side by side: `rounds` slices each, in turn."""

    name: str
    title: str
    unit: str  # of one time: "step" or "datum and sample"
    rows: tuple[Row, ...]
    rounds: int
    references: tuple[str, ...] = ()  # rows that the others are told as multiples of
    seconds: float = 120.0  # rounds end early after so long, but not before the third
    alone: bool = False  # one process at a time (peak memory)
    keep: str | None = None  # sections of one name in a row share their processes
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Probe:
    """What a look at the interpreters found."""

    versions: dict[str, str]
    engines: dict[str, list[str]]  # ours, of training and of evidence
    cuda: str | None  # name of the device
