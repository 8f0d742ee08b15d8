"""Peak memory of log p(x) of 1,000 images: every row in a fresh process that does it once."""

from __future__ import annotations

from typing import Any

from benchmarks.plan import Probe, Row, Section, Settings
from benchmarks.sections.evidence import label, task_of

NUM_DATA = 1_000
SMALL, LARGE = 1_000, 100_000


def sections(settings: Settings, probe: Probe) -> list[Section]:
    few, many = settings.pick(SMALL, 100), settings.pick(LARGE, 1_000)
    # 10^5 samples for 1,000 data take minutes; a slice goes through the same tiles.
    part = NUM_DATA if settings.whole_memory else settings.pick(50, 5)

    def row(
        name: str, label: str, worker: str, samples: int, n: int, *, peer: bool = False, **more: Any
    ) -> Row:
        task = task_of(settings, num_samples=samples, warm=False, calls=True, search=False, **more)
        return Row(
            name=f"{name}-{samples}",
            label=f"{label}, {samples:,} samples",
            worker=worker,
            task={**task, "num_data": NUM_DATA},
            n=n,
            units=samples,
            whole=NUM_DATA,
            peer=peer,
        )

    rows = []
    for engine in probe.engines["evidence"]:
        name = f"ours-{engine}"
        rows.append(row(name, label(engine), "ours", few, NUM_DATA, kind=engine))
        rows.append(row(name, label(engine), "ours", many, part, kind=engine))
    for samples, n in ((few, settings.pick(20, 2)), (many, settings.pick(3, 1))):
        rows += [
            row("hand", "PyTorch by hand, eager", "hand_evidence", samples, n, kind="eager"),
            row("renyi", "pyro.infer.RenyiELBO", "with_pyro", samples, n, kind="renyi"),
            row("numpyro", "NumPyro, vmapped", "with_numpyro", samples, n, peer=True),
            row("pythae", "pythae's get_nll", "with_pythae", samples, n, peer=True),
        ]
    rows.append(row("importance", "pyro.infer.Importance", "with_pyro", few, 1, kind="importance"))
    if not settings.quick:  # 10^5 samples would take a minute and grow in proportion
        rows.append(
            row("importance", "pyro.infer.Importance", "with_pyro", 10_000, 1, kind="importance")
        )
    return [
        Section(
            name="memory",
            title=f"Peak memory of log p(x), {NUM_DATA:,} images",
            unit="datum and sample",
            rows=tuple(rows),
            rounds=1,
            alone=True,
            facts={"few": few, "many": many},
        )
    ]
