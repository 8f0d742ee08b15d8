"""Rows of a section, measured in turn: one slice each, several rounds."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.machine import busy_seconds, load
from benchmarks.plan import Row, Section, Settings
from benchmarks.process import Worker, WorkerError
from benchmarks.summary import ratio, spread

Say = Callable[[str], None]


@dataclass
class Taken:
    """What has been seen of a row."""

    row: Row
    worker: Worker | None = None
    reason: str | None = None
    prepared: dict[str, Any] = field(default_factory=dict)
    replies: list[dict[str, Any]] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def times(self) -> list[float]:
        """Seconds a unit, slice by slice.

        What was done before the first slice (`once`), the whole work pays once.
        """
        row, found = self.row, []
        for reply in self.replies:
            time = reply["seconds"] / (reply["pieces"] * row.units)
            if row.whole is not None:
                time += reply.get("once", 0.0) / (row.whole * row.units)
            found.append(time)
        return found


class Bench:
    """Runs sections; closes every process that it started."""

    def __init__(self, settings: Settings, pythons: dict[bool, str], wait_policy: str, say: Say):
        self.settings, self.pythons, self.wait_policy = settings, pythons, wait_policy
        self.say = say
        # For one answer, seconds.
        self.limit = 3600.0 if settings.whole_memory else settings.pick(300.0, 90.0)
        self.kept: dict[tuple[str, str], Worker] = {}
        # A folder of this run's own: what a run before it compiled is compiled anew.
        self.compiled = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self.release(None)
        self.compiled.cleanup()

    def release(self, keep: str | None) -> None:
        """Close shared processes but those of `keep`."""
        for key in [key for key in self.kept if key[0] != keep]:
            self.kept.pop(key).close()

    def start(self, *, peer: bool) -> Worker:
        return Worker(self.pythons[peer], self.settings, self.wait_policy, self.compiled.name)

    def run(self, section: Section) -> dict[str, Any]:
        """One section's record, as plain data."""
        self.release(section.keep)
        started = time.perf_counter()
        taken = [Taken(row, reason=row.absent) for row in section.rows]
        loads: list[list[float]] = []
        try:
            if section.alone:
                for one in taken:
                    self._prepare(one, section)
                    loads.append(load())
                    self._slice(one)
                    self._close(one, section)
            else:
                for one in taken:
                    self._prepare(one, section)
                self._rounds(taken, section, loads)
        finally:
            for one in taken:
                self._close(one, section)
        return {
            "title": section.title,
            "unit": section.unit,
            "references": list(section.references),
            "rows": _records(taken, section),
            "load": loads,
            "seconds": round(time.perf_counter() - started, 1),
            **section.facts,
        }

    def _rounds(self, taken: list[Taken], section: Section, loads: list[list[float]]) -> None:
        started = time.perf_counter()
        for number in range(section.rounds):
            if number >= 3 and time.perf_counter() - started > section.seconds:
                break
            loads.append(load())
            # There and back, so that no row always follows the same one.
            for one in taken if number % 2 == 0 else reversed(taken):
                self._slice(one)

    def _prepare(self, one: Taken, section: Section) -> None:
        if one.reason is not None:
            return
        key = (section.keep or "", one.row.name)
        self.say(f"{section.name}: prepares {one.row.label.replace('**', '')}")
        try:
            one.worker = self.kept.pop(key, None) or self.start(peer=one.row.peer)
            if section.keep is not None:
                self.kept[key] = one.worker
            task = {**one.row.task, "n": one.row.n}
            request = {"do": "prepare", "worker": one.row.worker, "task": task}
            one.prepared = one.worker.ask(request, self.limit)
        except WorkerError as error:
            self._fail(one, error)

    def _slice(self, one: Taken) -> None:
        if one.reason is not None or one.worker is None:
            return
        time.sleep(0.02)  # the threads of the row before may still spin
        before, started = busy_seconds(), time.perf_counter()
        try:
            reply = one.worker.ask({"do": "run", "n": one.row.n}, self.limit)
        except WorkerError as error:
            self._fail(one, error)
            return
        after, elapsed = busy_seconds(), time.perf_counter() - started
        one.replies.append({"pieces": one.row.n, **reply})
        if before is not None and after is not None:
            one.others.append(max(0.0, (after - before - reply["cpu_seconds"]) / elapsed))

    def _fail(self, one: Taken, error: WorkerError) -> None:
        one.reason = str(error)
        self.say(f"not measured: {one.row.label.replace('**', '')}: {error}")
        if one.worker is not None:
            for key in [key for key, worker in self.kept.items() if worker is one.worker]:
                del self.kept[key]
            one.worker.close(kill=True)
            one.worker = None

    def _close(self, one: Taken, section: Section) -> None:
        if one.worker is not None and section.keep is None:
            one.worker.close()
            one.worker = None


def _records(taken: list[Taken], section: Section) -> list[dict[str, Any]]:
    measured = {one.row.name: one for one in taken if one.reason is None and one.replies}
    records = []
    for one in taken:
        row = one.row
        record: dict[str, Any] = {"name": row.name, "label": row.label}
        records.append(record)
        if row.name not in measured:
            record["reason"] = one.reason or "not run"
            continue
        times, last = one.times, one.replies[-1]
        record |= {
            "times": times,
            **spread(times),
            "ratios": {
                name: ratio(times, measured[name].times)
                for name in section.references
                if name in measured
            },
            "pieces": last["pieces"],
            "units": row.units,
            "value": last.get("value"),
            "note": one.prepared.get("note") or "",
            "prepare_seconds": round(one.prepared["seconds"], 2),
            "baseline_mib": round(one.prepared["maxrss_mib"], 1),
            "peak_mib": round(last["maxrss_mib"], 1),
            "processors": round(
                sum(r["cpu_seconds"] for r in one.replies)
                / sum(r["wall_seconds"] for r in one.replies),
                2,
            ),
            "others": round(spread(one.others)["median"], 2) if one.others else None,
        }
        if row.whole is not None:
            record["whole"] = row.whole
            record["once_seconds"] = round(last.get("once", 0.0), 3)
            record["whole_seconds"] = record["median"] * row.whole * row.units
            record["extrapolated"] = last["pieces"] != row.whole
    return records
