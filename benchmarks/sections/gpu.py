"""The same on a GPU, where there is one; else every row says that it was not measured."""

from __future__ import annotations

from typing import Any

from benchmarks.plan import Probe, Row, Section, Settings
from benchmarks.sections import evidence, training

ABSENT = "no CUDA device"


def sections(settings: Settings, probe: Probe) -> list[Section]:
    absent = None if probe.cuda else ABSENT
    device = probe.cuda or "none here"
    task = training.task_of(settings, model="mlp", batch=128) | {"device": "cuda"}

    def step(name: str, label: str, worker: str, kind: str) -> Row:
        return training.row(name, label, worker, task, kind, absent=absent)

    engines = [
        step(f"ours-{engine}", f"**pyro-vae, engine {engine}**", "ours", engine)
        # Shown where no engine of that name exists yet, too.
        for engine in dict.fromkeys([*probe.engines["training"], "cuda_graph"])
    ]
    steps = [
        step("svi", "pyro.infer.SVI, Trace_ELBO", "with_pyro", "svi"),
        step(
            "hand-reduce-overhead",
            'PyTorch by hand, torch.compile(mode="reduce-overhead")',
            "by_hand",
            "reduce-overhead",
        ),
        *engines,
    ]

    samples = settings.pick(evidence.NUM_SAMPLES, 100)
    whole = settings.pick(evidence.NUM_DATA, 1_000)

    def weigh(name: str, label: str, worker: str, precision: str, kind: str = "") -> Row:
        more: dict[str, Any] = {"num_samples": samples, "device": "cuda", "precision": precision}
        more["kind"] = kind
        return Row(
            f"{name}-{precision}",
            f"{label}, {precision}",
            worker,
            evidence.task_of(settings, **more),
            n=whole,
            units=samples,
            whole=whole,
            absent=absent,
        )

    weighed = []
    for precision in ("float32", "tf32"):
        weighed.append(weigh("products", "matrix products alone", "products", precision))
        weighed += [
            weigh(f"ours-{engine}", evidence.label(engine), "ours", precision, engine)
            for engine in probe.engines["evidence"]
        ]

    return [
        Section(
            name="gpu-training-128",
            title=f"Training step, 784-200-200-50 tanh network, batch 128, GPU ({device})",
            unit="step",
            rows=tuple(steps),
            rounds=settings.pick(9, 2),
            references=("svi",),
            seconds=60.0,
        ),
        Section(
            name="gpu-evidence",
            title=f"log p(x) of {whole:,} images, {samples:,} samples each, GPU ({device})",
            unit="datum and sample",
            rows=tuple(weighed),
            rounds=settings.pick(3, 1),
            references=("products-float32",),
            seconds=60.0,
        ),
    ]
