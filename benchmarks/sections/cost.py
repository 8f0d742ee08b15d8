"""Cost of our log p(x) against samples, data, latent size and width, beside the products alone."""

from __future__ import annotations

from typing import Any

from benchmarks.plan import Probe, Row, Section, Settings
from benchmarks.sections.evidence import label, task_of

# Of each axis: (value, data measured, data meant).
SAMPLES = [
    *((1, 10_000, 10_000), (10, 10_000, 10_000), (100, 2_000, 10_000)),
    *((1_000, 200, 10_000), (10_000, 20, 10_000), (100_000, 3, 10_000)),
]
DATA = [(n, n, n) for n in (1, 10, 100, 1_000, 10_000)]  # by 100 samples
LATENT = [(size, 200, 10_000) for size in (2, 50, 200)]  # by 1,000 samples
WIDTH = [(size, 200, 10_000) for size in (50, 200, 800)]


def sections(settings: Settings, probe: Probe) -> list[Section]:
    made = []
    axes: dict[str, tuple[list, dict[str, Any]]] = {
        "samples": (SAMPLES, {}),
        "data": (DATA, {"num_samples": 100}),
        "latent": (LATENT, {"num_samples": 1_000}),
        "width": (WIDTH, {"num_samples": 1_000}),
    }
    fields = {"samples": "num_samples", "latent": "latent", "width": "hidden"}
    for axis, (points, fixed) in axes.items():
        for value, n, whole in settings.pick(points, points[:2]):
            more = {**fixed, **({fields[axis]: value} if axis in fields else {})}
            made.append(_point(settings, probe, axis, value, n, whole, more))
    return made


def _point(
    settings: Settings,
    probe: Probe,
    axis: str,
    value: int,
    n: int,
    whole: int,
    more: dict[str, Any],
) -> Section:
    task = task_of(settings, **more)
    n, whole = min(n, task["num_data"]), min(whole, task["num_data"])
    task["calls"] = axis == "data"  # there, what a call costs by itself is the question

    def row(name: str, label: str, worker: str, kind: str = "") -> Row:
        told = {**task, "kind": kind}
        return Row(name, label, worker, told, n=n, units=task["num_samples"], whole=whole)

    return Section(
        name=f"cost-{axis}-{value}",
        title=f"Cost of log p(x), {axis} {value:,}",
        unit="datum and sample",
        rows=(
            row("products", "matrix products alone", "products"),
            *(row(f"ours-{e}", label(e), "ours", e) for e in probe.engines["evidence"]),
        ),
        rounds=settings.pick(3, 1),
        references=("products",),
        seconds=30.0,
        keep="cost",  # one process of each for all points
        facts={"axis": axis, "value": value, "num_data": whole},
    )
