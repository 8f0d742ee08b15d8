"""log p(x) of 10,000 images by 5,000 samples each: every row on a slice of the images."""

from __future__ import annotations

from typing import Any

from benchmarks.plan import Probe, Row, Section, Settings

NUM_DATA, NUM_SAMPLES = 10_000, 5_000


def task_of(settings: Settings, **more: Any) -> dict[str, Any]:
    """What every row of log p(x) is told."""
    return {
        "work": "evidence",
        "model": "mlp",
        "kind": "",
        "num_data": settings.pick(NUM_DATA, 1_000),
        "num_samples": NUM_SAMPLES,
        "search": not settings.quick,
        "warm": True,
        "calls": False,
        "device": "cpu",
        **more,
    }


def label(engine: str) -> str:
    return f"**pyro-vae, log_marginal, {engine}**"


def sections(settings: Settings, probe: Probe) -> list[Section]:
    samples = settings.pick(NUM_SAMPLES, 1_000)
    task = task_of(settings, num_samples=samples)
    few = settings.pick(200, 20)  # of Importance, which takes half a millisecond a sample

    def row(name: str, label: str, worker: str, n: int, **more: Any) -> Row:
        peer = more.pop("peer", False)
        full = {**task, **more}
        return Row(
            name=name,
            label=label,
            worker=worker,
            task=full,
            n=settings.pick(n, 2),
            units=full["num_samples"],
            # Fewer samples of a datum stand for all: so many data more are as much work.
            whole=NUM_DATA * samples // full["num_samples"],
            peer=peer,
        )

    rows = [
        row("products", "matrix products alone", "products", 60),
        row(
            "importance",
            "pyro.infer.Importance",
            "with_pyro",
            5,
            kind="importance",
            num_samples=few,
        ),
        row("renyi", "pyro.infer.RenyiELBO, vectorized", "with_pyro", 20, kind="renyi"),
        row("hand-eager", "PyTorch by hand, eager", "hand_evidence", 40, kind="eager"),
        row(
            "hand-compiled",
            "PyTorch by hand, torch.compile",
            "hand_evidence",
            40,
            kind="compiled",
        ),
        row("numpyro", "NumPyro, log_density vmapped and jitted", "with_numpyro", 20, peer=True),
        row("pythae", "pythae's get_nll", "with_pythae", 10, peer=True),
    ]
    rows += [
        row(f"ours-{engine}", label(engine), "ours", 60, kind=engine)
        for engine in probe.engines["evidence"]
    ]
    return [
        Section(
            name="evidence",
            title=f"log p(x) of {NUM_DATA:,} images, {samples:,} samples each",
            unit="datum and sample",
            rows=tuple(rows),
            rounds=settings.pick(7, 2),
            references=("products", "importance"),
            seconds=settings.pick(120.0, 10.0),
        )
    ]
