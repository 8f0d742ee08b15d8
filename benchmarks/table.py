"""The README's table of measured results, from evaluated run folders.

    python benchmarks/table.py runs/mnist-0 runs/vamp-0 ... [--save benchmarks/results]

Prints Markdown: one row a run. With `--save`, a JSON file per run keeps what the row was made of.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pyro_vae.app.run import Run

HEADER = (
    "| data, prior, guide | epochs, seed | bound | log p(x) | Monte-Carlo error | estimated bias "
    "| test-set error | active units | training |\n| --- | --- | --- | --- | --- | --- | --- | --- "
    "| --- |"
)


def result(folder: str) -> dict:
    """Everything a row says, as plain data."""
    run = Run.open(folder)
    evaluation = json.loads((run.path / "evaluation.json").read_text(encoding="utf-8"))
    return {
        "run": run.path.name,
        "spec": run.spec.to_dict(),
        "summary": run.summary(),
        "evaluation": evaluation,
    }


def row(found: dict) -> str:
    spec, summary, said = found["spec"], found["summary"], found["evaluation"]
    model, train = spec["model"], spec["train"]
    what = f"{spec['data']['name']}, {model['prior']['name']}, {model['guide']['name']}"
    epochs = f"{summary['epochs_run']}, {train['seed']}"
    if train["schedule"]["name"] != "constant":
        epochs += f", {train['schedule']['name']}"
    log_px = f"{said['log_px']:.2f}"
    if "bits_per_dim" in said:
        log_px += f" ({said['bits_per_dim']:.3f} bits/dim)"
    cells = [
        what,
        epochs,
        f"{said['bound']:.2f}",
        f"**{log_px}**",
        f"{said['mc_std_error']:.3f}",
        f"{said['bias_estimate']:.2f}",
        f"{said['test_std_error']:.2f}",
        f"{said['active_units']} of {said['num_units']}",
        f"{summary['seconds'] / 60:.0f} min",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("runs", nargs="+", metavar="RUN")
    parser.add_argument("--save", metavar="DIR", type=Path)
    args = parser.parse_args()
    print(HEADER)
    for folder in args.runs:
        found = result(folder)
        print(row(found))
        if args.save:
            args.save.mkdir(parents=True, exist_ok=True)
            path = args.save / f"{found['run']}.json"
            path.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
