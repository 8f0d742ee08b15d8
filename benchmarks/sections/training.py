"""Training steps: three batch sizes, a convolutional network, a VampPrior."""

from __future__ import annotations

from typing import Any

from benchmarks.plan import Probe, Row, Section, Settings

BATCHES = 20, 128, 1024
NUM_DATA = 51_200  # a multiple of every batch size: no ragged batch
COMPONENTS = 500
STEADY = 1_000  # steps of warm-up: 0.9^t has underflowed, as in most of a real training


def sections(settings: Settings, probe: Probe) -> list[Section]:
    """First the network of the issue's table, then the other two."""
    return [
        *(mlp(batch, settings, probe) for batch in BATCHES),
        other("conv", "convolutional network (32 and 64 channels)", settings, probe),
        other("vamp", f"VampPrior with {COMPONENTS} components", settings, probe),
    ]


def task_of(settings: Settings, *, model: str, batch: int, slow: bool = False) -> dict[str, Any]:
    """What every training row is told."""
    size = settings.pick(50 if slow else 200, 5 if slow else 10)
    return {
        "work": "training",
        "model": model,
        "batch": batch,
        "components": COMPONENTS if model == "vamp" else 0,
        "num_data": settings.pick(NUM_DATA, 5_120),
        "warmup": settings.pick(100 if slow else 200, size),
        "trial": settings.pick(25 if slow else 50, 3),
        "n": size,
        "search": not settings.quick,
        "device": "cpu",
    }


def row(name: str, label: str, worker: str, task: dict[str, Any], kind: str = "", **more) -> Row:
    return Row(name, label, worker, {**task, "kind": kind}, n=task["n"], **more)


def by_hand(task: dict[str, Any]) -> list[Row]:
    return [
        row("hand-eager", "PyTorch by hand, eager", "by_hand", task, "eager"),
        row("hand-compiled", "PyTorch by hand, torch.compile", "by_hand", task, "compiled"),
    ]


def ours(task: dict[str, Any], probe: Probe, warmup: int | None = None) -> list[Row]:
    """Each engine; where others warm up for less, past the steps that may be faster."""
    task = task if warmup is None else {**task, "warmup": warmup}
    return [
        row(f"ours-{engine}", f"**pyro-vae, engine {engine}**", "ours", task, engine)
        for engine in probe.engines["training"]
        if engine != "cuda_graph"  # of the GPU's section
    ]


def mlp(batch: int, settings: Settings, probe: Probe) -> Section:
    task = task_of(settings, model="mlp", batch=batch, slow=batch > 500)
    rows = [
        row("products", "matrix products alone", "products", task),
        row("svi", "pyro.infer.SVI, Trace_ELBO", "with_pyro", task, "svi"),
        row(
            "svi-no-validation",
            "the same, Pyro's validation off",
            "with_pyro",
            task,
            "no-validation",
        ),
        row("svi-jit", "pyro.infer.SVI, JitTrace_ELBO", "with_pyro", task, "jit"),
        *by_hand(task),
        row(
            "hand-reduce-overhead",
            'PyTorch by hand, torch.compile(mode="reduce-overhead")',
            "by_hand",
            task,
            "reduce-overhead",
        ),
        row(
            "hand-whole-step",
            "PyTorch by hand, whole step in one graph",
            "by_hand",
            task,
            "whole-step",
        ),
        row("numpyro-update", "NumPyro, svi.update jitted", "with_numpyro", task, peer=True),
        row("numpyro-scan", "NumPyro, lax.scan", "with_numpyro", task, "scan", peer=True),
        row("pythae", "pythae's trainer", "with_pythae", task, peer=True),
        *ours(task, probe, settings.pick(STEADY, None)),
    ]
    return Section(
        name=f"training-{batch}",
        title=f"Training step, 784-200-200-50 tanh network, batch {batch}",
        unit="step",
        rows=tuple(rows),
        rounds=settings.pick(5 if batch > 500 else 7, 2),
        references=("products", "svi"),
        seconds=settings.pick(120.0, 10.0),
    )


def other(model: str, title: str, settings: Settings, probe: Probe) -> Section:
    task = task_of(settings, model=model, batch=128, slow=True)
    if model == "conv":  # ten times the work of the others
        task |= {"n": settings.pick(30, 2), "warmup": settings.pick(30, 2)}
        task |= {"trial": settings.pick(10, 1)}
    rows = [
        row("svi", "pyro.infer.SVI, Trace_ELBO", "with_pyro", task, "svi"),
        *by_hand(task),
        *ours(task, probe, settings.pick(STEADY, None) if model == "vamp" else None),
    ]
    if model == "vamp":
        rows.insert(0, row("products", "matrix products alone", "products", task))
    return Section(
        name=f"training-{model}",
        title=f"Training step, {title}, batch 128",
        unit="step",
        rows=tuple(rows),
        rounds=settings.pick(7, 2),
        references=("products", "svi") if model == "vamp" else ("svi",),
        seconds=settings.pick(90.0, 10.0),
    )
