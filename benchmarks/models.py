"""One table of models on MNIST: priors, guides, objectives and networks, alike in all else.

    python -m benchmarks.models                    # all rows: some hours; goes on where it stopped
    python -m benchmarks.models vamp iaf           # these rows
    python -m benchmarks.models --report           # the README's table

Every row is a preset with some fields changed, trained for the same number of epochs. log p(x) of
a random 1,000 test images, always the same, by K = 5000 importance samples and by chains. Rows are
compared image by image. What the results folder holds is not measured again; each row tells its
commit.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import inference
from benchmarks import machine, tables
from benchmarks.report import rewritten
from pyro_vae.app.columns import arguments, choose
from pyro_vae.app.experiment import load_experiment
from pyro_vae.app.pairs import local_pair
from pyro_vae.app.run import Run
from pyro_vae.app.train import train

RESULTS = machine.ROOT / "benchmarks" / "results" / "models"
RUNS = machine.ROOT / "runs" / "models"
BEGIN, END = "<!-- models:begin -->", "<!-- models:end -->"
EPOCHS, NUM_DATA = 50, 1_000
IMPORTANCE = inference.Importance(num_samples=5_000)
CHAINS = inference.AIS(num_temperatures=100)
ESTIMATORS = {"importance": IMPORTANCE, "ais": CHAINS}


@dataclass(frozen=True)
class Row:
    """A preset and what is changed of it."""

    preset: str = "mnist"
    changes: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)


TWO = (0, 1)
CONV = "{name: conv, channels: [16, 32], hidden: 200}"
GATED = "{name: gated_mlp, hidden: [300, 300]}"
ROWS: dict[str, Row] = {
    "standard": Row(seeds=TWO),
    "vamp": Row("vamp_mnist", seeds=TWO),
    "iaf": Row("iaf_mnist", seeds=TWO),
    "iwae-5": Row(changes=("objective=iwae", "objective.num_particles=5"), seeds=TWO),
    "mixture": Row(changes=("model.prior=gaussian_mixture", "model.prior.components=100")),
    "flow prior": Row(changes=("model.prior=flow",)),
    "exemplar": Row(changes=("model.prior=exemplar",)),
    "full rank": Row(changes=("model.guide=full_rank",)),
    "planar": Row(changes=("model.guide=planar", "model.guide.depth=10")),
    "sylvester": Row(changes=("model.guide=sylvester",)),
    "spline": Row(changes=("model.guide=spline",)),
    "dreg-5": Row(changes=("objective=dreg", "objective.num_particles=5")),
    "stl": Row(changes=("objective=stl",)),
    "two levels, bottom up": Row("hierarchy_mnist"),
    "two levels, top down": Row("hierarchy_mnist", ("model.guide=top_down",)),
    "two levels, top down, warm-up": Row(
        "hierarchy_mnist", ("model.guide=top_down", "objective.warmup_epochs=25")
    ),
    "conv": Row(changes=(f"model.encoder={CONV}", f"model.decoder={CONV}")),
    "gated": Row("vamp_mnist", (f"model.encoder={GATED}", f"model.decoder={GATED}")),
}


def specification(row: Row, seed: int, *, epochs: int, further: Sequence[str] = ()):
    """The spec of a row, and the command that trains it."""
    changes = [*row.changes, f"train.epochs={epochs}", f"train.seed={seed}", *further]
    command = shlex.join(["pyro-vae", "train", row.preset, *changes])
    return load_experiment(row.preset, changes), command


def measure(name: str, seed: int, *, folder: Path, runs: Path, quick: bool) -> None:
    """Train a row (or go on), estimate its log p(x) by both, and write what was found."""
    label = f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"
    told, kept = folder / f"{label}.json", folder / f"{label}.safetensors"
    if told.exists():
        return
    further = ["train.engine=" + ("eager" if quick else "compiled")]
    if quick:
        further += ["data.name=digits", "train.batch_size=64"]
    spec, command = specification(ROWS[name], seed, epochs=1 if quick else EPOCHS, further=further)
    print(f"{time.strftime('%H:%M:%S')} {command}", flush=True)
    run = train(spec, runs / label, resume=True, progress=False)
    result = {
        "row": name,
        "seed": seed,
        "command": command,
        "summary": run.summary(),
        "machine": machine.facts(),
        "commit": machine.commit(),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__.split("+")[0],
        "threads": torch.get_num_threads(),
    }
    found, values = evaluate(run, quick=quick)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(values, kept)
    told.write_text(json.dumps(result | found, indent=1) + "\n", encoding="utf-8")


def evaluate(run: Run, *, quick: bool) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Bound, active units and log p(x) by each estimator; and the values of each datum."""
    vae, spec = run.vae(), run.spec
    batch = choose(arguments(spec.data.load(), "test", spec.model), 20 if quick else NUM_DATA)
    model, guide = local_pair(vae)
    units = inference.active_units(model, guide, batch)
    found: dict[str, Any] = {
        "bound": inference.bound(model, guide, batch).elbo,
        "active_units": units.count,
        "num_units": units.num_units,
        "num_data": len(batch[0]),
    }
    values = {}
    for kind, estimator in ESTIMATORS.items():
        began = time.perf_counter()
        estimate = inference.log_marginal(
            model,
            guide,
            batch,
            estimator=smaller(estimator) if quick else estimator,
            engine="eager" if quick else "compiled",
            progress=False,
        )
        print(f"    {estimate}", flush=True)
        summary = estimate.summary()
        kept = ("log_px", "mc_std_error", "test_std_error", "bias_estimate", "num_flagged")
        found[kind] = {key: summary[key] for key in kept if _finite(summary.get(key))}
        found[kind]["seconds"] = time.perf_counter() - began
        values[kind] = estimate.value.float().contiguous()
        values[f"{kind} error"] = estimate.std_error.float().contiguous()
    return found, values


def smaller(estimator: Any) -> Any:
    if estimator.name == "importance":
        return estimator.model_copy(update={"num_samples": 20})
    return estimator.model_copy(update={"num_temperatures": 3, "num_chains": 4})


def _finite(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


# The README ----------------------------------------------------------------------------------

Held = Mapping[str, list[tuple[dict[str, Any], dict[str, torch.Tensor]]]]


def held(folder: Path) -> Held:
    """What was measured of each row, seed by seed."""
    found: dict[str, list] = {name: [] for name in ROWS}
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        found[told["row"]].append((told, load_file(path.with_suffix(".safetensors"))))
    return {name: seeds for name, seeds in found.items() if seeds}


def mean_of(seeds: Sequence[tuple[dict, dict[str, torch.Tensor]]], kind: str) -> torch.Tensor:
    """Of each image, over seeds."""
    return torch.stack([values[kind].double() for _, values in seeds]).mean(0)


def against(seeds: Sequence, others: Sequence, kind: str = "ais") -> tuple[float, float]:
    """Mean difference and its error over images: those are common, seeds are not in it."""
    gap = mean_of(seeds, kind) - mean_of(others, kind)
    return float(gap.mean()), float(gap.std()) / math.sqrt(len(gap))


def table(found: Held) -> tables.Table:
    columns = [
        "row", "seeds", "bound", "K = 5000", "AIS", "MC error", "flagged", "above the first",
        "active", "training",
    ]  # fmt: skip
    first = next(iter(found.values()))
    body = []
    for name, seeds in found.items():
        told = [one for one, _ in seeds]
        gap, error = against(seeds, first)
        body.append(
            [
                name,
                str(len(told)),
                _each(told, lambda t: f"{t['bound']:.2f}"),
                _each(told, lambda t: f"{t['importance']['log_px']:.2f}"),
                _each(told, lambda t: f"**{t['ais']['log_px']:.2f}**"),
                _each(told, lambda t: f"{t['ais']['mc_std_error']:.3f}"),
                _each(told, lambda t: f"{t['ais']['num_flagged'] / t['num_data']:.0%}"),
                "" if seeds is first else f"{gap:+.2f} +- {error:.2f}",
                _each(told, lambda t: f"{t['active_units']} of {t['num_units']}"),
                _each(told, lambda t: tables.duration(t["summary"]["seconds"])),
            ]
        )
    return tables.Table("", columns, body, [])


def _each(told: Sequence[dict], say) -> str:
    return ", ".join(dict.fromkeys(say(one) for one in told))


def block(found: Held) -> str:
    every = [told for seeds in found.values() for told, _ in seeds]
    first = every[0]
    commits = ", ".join(dict.fromkeys(told["commit"][:10] for told in every))
    how = (
        f"`python -m benchmarks.models` on {first['date']}: {first['machine']['cpu']}, "
        f"torch {first['torch']}, {first['threads']} thread a row, `engine=compiled`; training "
        "times are of a machine with other work, pauses included, and compare nothing. "
        f"{EPOCHS} epochs of dynamically binarized MNIST each. log p(x) of a random "
        f"{first['num_data']:,} test images, the same for every row, in nats: by "
        f"K = {IMPORTANCE.num_samples} importance samples, and by AIS with "
        f"{CHAINS.num_temperatures} temperatures. Above the first: by AIS, image by image (mean "
        "of seeds); the test-set error of a row, which all share, is "
        f"{first['ais']['test_std_error']:.2f}. Flagged: images whose AIS error "
        "may be larger than the MC error says. An error of a difference is that of the images: "
        f"seeds are not in it. Commits {commits}."
    )
    spread = [
        f"{name} {abs(a['ais']['log_px'] - b['ais']['log_px']):.2f}"
        for name, seeds in found.items()
        if len(seeds) == 2
        for a, b in [[told for told, _ in seeds]]
    ]
    between = f"Two seeds of a row differ by: {', '.join(spread)}." if spread else ""
    lacking = [name for name in ROWS if name not in found]
    between += f" Not measured yet: {', '.join(lacking)}." if lacking else ""
    commands = "\n".join(f"{told['command']}" for told in every if told["seed"] == 0)
    listed = f"<details><summary>Commands</summary>\n\n```\n{commands}\n```\n\n</details>"
    parts = [tables.wrapped(how), tables.markdown(table(found)), tables.wrapped(between), listed]
    return "\n\n".join(part for part in parts if part)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW[:SEED]", help="default: all")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR")
    parser.add_argument("--readme", type=Path, default=machine.ROOT / "README.md", metavar="FILE")
    parser.add_argument("--report", action="store_true", help="rewrite the README's part")
    parser.add_argument("--quick", action="store_true", help="tiny: do all rows run?")
    args = parser.parse_args(argv)
    if args.report:
        text = args.readme.read_text(encoding="utf-8")
        if BEGIN not in text or END not in text.partition(BEGIN)[2]:
            raise SystemExit(f"{args.readme.name} has no {BEGIN} ... {END} to write between")
        found = held(args.results)
        args.readme.write_text(rewritten(text, block(found), BEGIN, END), encoding="utf-8")
        return
    wanted = [one.partition(":") for one in args.rows or ROWS]
    for name, _, _ in wanted:
        if name not in ROWS:
            raise SystemExit(f"ROW: {name!r} is unknown; choices: {', '.join(ROWS)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", inference.EngineWarning)  # the summary says which ran
        for name, _, seed in wanted:
            for each in [int(seed)] if seed else ROWS[name].seeds:
                measure(name, each, folder=args.results, runs=args.runs, quick=args.quick)


if __name__ == "__main__":
    main()
