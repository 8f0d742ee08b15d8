"""log p(x) of trained runs by every estimator, and how far from the truth each is.

    python -m benchmarks.evidence runs/mnist-0 runs/vamp runs/iaf      # some hours; goes on
    python -m benchmarks.evidence --report                             # the README's table, picture

Of a random 1,000 test images (always the same): log p(x), errors, flags, seconds. Of 1,000 images
simulated from the model: the gap between lower and upper bound. Seconds are those of whole calls,
compiling and pilot included. Rows that the JSON file holds are not measured again; each tells the
commit that it was measured at.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import inference
from benchmarks import machine, tables
from benchmarks.report import rewritten
from pyro_vae.app.columns import arguments, choose
from pyro_vae.app.pairs import local_pair
from pyro_vae.app.run import Run

RESULT = machine.ROOT / "benchmarks" / "results" / "evidence.json"
BEGIN, END = "<!-- evidence:begin -->", "<!-- evidence:end -->"
NUM_DATA = 1_000
LONG = 250  # data of rows that take long
LATER = "smc T=50", "ais T=100", "auto", "importance K=50000"  # after the others of all runs
IN_FULL = "importance K=5000", "ais T=200", "smc T=50"  # on all test images, too: last
CURVE = {"ais": (50, 100, 200, 500, 1_000), "importance": (100, 1_000, 5_000, 10_000, 100_000)}
FEW = {"ais": (200,), "importance": (5_000,)}  # of the other runs


def rows(first: bool, start: str) -> dict[str, tuple[inference.evidence.estimator.Estimator, int]]:
    """What is measured of a run, by name, and on how many data; 0 stands for the whole test set."""
    found: dict[str, Any] = {
        "importance K=5000": (inference.Importance(num_samples=5_000), NUM_DATA),
        "ais T=200": (inference.AIS(num_temperatures=200), NUM_DATA),
    }
    held = CURVE if first else FEW
    for size in held["ais"]:
        chains = inference.AIS(num_temperatures=size, start=start)  # type: ignore[arg-type]
        count = NUM_DATA if size <= 200 else LONG
        found[f"sandwich T={size}"] = inference.Sandwich(num_data=count, by=chains), count
    for size in held["importance"]:
        draws = inference.Importance(num_samples=size)
        count = NUM_DATA if size <= 10_000 else LONG
        found[f"sandwich K={size}"] = inference.Sandwich(num_data=count, by=draws), count
    found["smc T=50"] = inference.SMC(num_temperatures=50), NUM_DATA
    found["ais T=100"] = inference.AIS(num_temperatures=100), NUM_DATA
    found["auto"] = inference.Auto(), NUM_DATA
    found["importance K=50000"] = inference.Importance(num_samples=50_000), NUM_DATA
    return found | {f"{name}, all": (found[name][0], 0) for name in IN_FULL}


def measure(
    folder: str,
    *,
    first: bool,
    later: bool,
    result: dict[str, Any],
    path: Path,
    quick: bool,
    untimed: bool,
) -> None:
    """Fill in what `result` lacks of a run's rows, writing after each."""
    run = Run.open(folder)
    vae, spec = run.vae(), run.spec
    held = result["runs"].setdefault(
        run.path.name,
        {
            "prior": spec.model.prior.name,
            "guide": spec.model.guide.name,
            "epochs": run.summary()["epochs_run"],
            "seed": spec.train.seed,
            "weights": run.weights_fingerprint(),
            "rows": {},
        },
    )
    if held["weights"] != run.weights_fingerprint():
        raise SystemExit(f"{folder}: other weights than those of {path}; remove that file")
    whole = arguments(spec.data.load(), "test", spec.model)
    model, guide = local_pair(vae)
    # An inverse autoregressive guide is scored elsewhere one dimension at a time.
    start = "gaussian" if spec.model.guide.name == "iaf" else "guide"
    for name, (estimator, count) in rows(first, start).items():
        late = name in LATER or name.endswith(", all")
        if name in held["rows"] or late != later:
            continue
        x = choose(whole, 20) if quick else choose(whole, count or None)
        if quick:
            estimator = smaller(estimator)
        print(f"{time.strftime('%H:%M:%S')} {run.path.name}: {name}", flush=True)
        busy, began = machine.busy_seconds(), time.perf_counter()
        found = inference.log_marginal(
            model,
            guide,
            x,
            estimator=estimator,
            engine="eager" if quick else "compiled",
            progress=False,
        )
        seconds = time.perf_counter() - began
        row = {**found.summary(), "seconds": seconds, "threads": torch.get_num_threads()}
        row |= {"khat_bad": getattr(found, "num_khat_bad", None), "commit": result["commit"]}
        if untimed:
            del row["seconds"]
        elif busy is not None:
            row["busy_share"] = (machine.busy_seconds() - busy) / seconds  # type: ignore[operator]
        held["rows"][name] = {k: v for k, v in row.items() if _finite(v)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"    {found}", flush=True)
    if "bound" not in held:
        found = inference.bound(model, guide, choose(whole, 20 if quick else NUM_DATA))
        held["bound"] = found.elbo
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def smaller(estimator: Any) -> Any:
    """For a look at whether all rows run."""
    if estimator.name == "sandwich":
        return estimator.model_copy(update={"num_data": 10, "by": smaller(estimator.by)})
    if estimator.name == "importance":
        return estimator.model_copy(update={"num_samples": 50})
    if estimator.name == "auto":
        parts = {"importance": smaller(estimator.importance), "chains": smaller(estimator.chains)}
        return estimator.model_copy(update={"look": 100, **parts})
    return estimator.model_copy(update={"num_temperatures": 3, "num_chains": 4})


def _finite(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and not math.isfinite(value))


# The README ----------------------------------------------------------------------------------


def block(result: dict[str, Any], picture: str) -> str:
    """How it was measured, the table, the sentences, the picture."""
    told = result["machine"]
    parts = [
        f"`python -m benchmarks.evidence` on {result['date']}: {told['cpu']}, {told['cores']} "
        f"cores, {result['threads']} threads, torch {torch.__version__.split('+')[0]}. Of a random "
        f'{NUM_DATA:,} MNIST test images, `engine="compiled"`; seconds are those of the whole '
        "call, compiling and pilot included. Gap: between lower and upper bound on "
        f"{NUM_DATA:,} images simulated from the model ({LONG} where T or K is larger than 200 or "
        "10,000; the picture's seconds are extrapolated there). Nats per image. Measured at "
        f"{_commits(result)}."
    ]
    parts = [tables.wrapped(parts[0])]
    for name, held in result["runs"].items():
        parts.append(tables.markdown(table(name, held)))
        parts.append(tables.wrapped(sentence(held)))
    parts.append(f"![Gap between the bounds against time, by chains and by samples]({picture})")
    return "\n\n".join(parts)


def table(name: str, held: dict[str, Any]) -> tables.Table:
    """One run's rows."""
    title = (
        f"{held['prior']} prior, {held['guide']} guide, {held['epochs']} epochs (`{name}`); bound "
        f"{held['bound']:.2f}"
    )
    body = []
    for label, row in held["rows"].items():
        if label.startswith("sandwich"):
            continue
        setting = label.removesuffix(", all").rpartition(" ")[2]
        gap = None if label.startswith("smc") else held["rows"].get(f"sandwich {setting}")
        several = {"PSIS": row.get("log_px_psis"), "jackknife": row.get("log_px_jackknife")}
        beside = ", ".join(f"{n} {v:.2f}" for n, v in several.items() if v is not None)
        body.append(
            [
                label.replace(", all", f", all {row['num_data']:,}"),
                f"{row['log_px']:.3f}",
                f"{row.get('mc_std_error', math.nan):.3f}",
                beside,
                f"{row['num_flagged'] / row['num_data']:.0%}",
                f"{gap['gap']:.3f} +- {gap['gap_std_error']:.3f}" if gap else "",
                f"{row['seconds']:.0f}" if "seconds" in row else "not measured",
            ]
        )
    columns = ["estimator", "log p(x)", "MC error", "beside it", "flagged", "gap", "seconds"]
    return tables.Table(title, columns, body, [])


def sentence(held: dict[str, Any]) -> str:
    """By how much K = 5000 is low."""
    found = held["rows"]
    low = found["ais T=200"]["log_px"] - found["importance K=5000"]["log_px"]
    ratio = found["ais T=200"]["seconds"] / found["importance K=5000"]["seconds"]
    said = (
        f"K = 5000 is {low:.2f} nats below AIS with 200 temperatures, which takes {ratio:.1f} "
        "times as long"
    )
    pair = [found.get(f"{name}, all") for name in IN_FULL[:2]]
    if all(pair) and all("seconds" in row for row in pair):
        whole = pair[1]["seconds"] / pair[0]["seconds"]
        said += f" ({whole:.1f} times on all {pair[0]['num_data']:,})"
    if held["guide"] == "iaf":
        said += (
            ". The gap is that of chains that begin at a Gaussian with the guide's moments; those "
            "of the table move in the guide's noise, where a true latent's noise is not known"
        )
    return said + "."


def _commits(result: dict[str, Any]) -> str:
    """The commits of all rows, in the order in which rows stand."""
    rows = [row for held in result["runs"].values() for row in held["rows"].values()]
    found = dict.fromkeys(row["commit"][:10] for row in rows)
    return f"commit{'s' * (len(found) > 1)} {', '.join(found)}"


def draw(result: dict[str, Any], path: Path) -> None:
    """Gap against seconds: chains and samples."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    held = next(iter(result["runs"].values()))
    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, letter, colour in (("ais", "T", "C0"), ("importance", "K", "C1")):
        found = [(n, held["rows"].get(f"sandwich {letter}={n}")) for n in CURVE[name]]
        kept = [(n, row) for n, row in found if row]
        seconds = [row["seconds"] * NUM_DATA / row["num_data"] for _, row in kept]
        gaps = [row["gap"] for _, row in kept]
        errors = [row["gap_std_error"] for _, row in kept]
        label = {"ais": "AIS, 16 chains, T temperatures", "importance": "importance, K samples"}
        axes.errorbar(seconds, gaps, errors, marker="o", color=colour, label=label[name], ms=4)
        for (n, _), x, y in zip(kept, seconds, gaps, strict=True):
            axes.annotate(f"{letter} = {n:,}", (x, y), (6, 4), textcoords="offset points", size=8)
    axes.axhline(0.05, color="C7", linewidth=0.8, linestyle="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("seconds for both bounds, 1,000 images simulated from the model")
    axes.set_ylabel("upper less lower bound, nats")
    axes.grid(alpha=0.3, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="trained run folders")
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--readme", type=Path, default=machine.ROOT / "README.md", metavar="FILE")
    parser.add_argument("--report", action="store_true", help="rewrite the README's part")
    parser.add_argument("--untimed", action="store_true", help="other work runs: keep no seconds")
    parser.add_argument("--quick", action="store_true", help="tiny: do all rows run?")
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"runs": {}}
    if args.result.exists():
        result = json.loads(args.result.read_text(encoding="utf-8"))
    if args.runs:
        result |= {"machine": machine.facts(), "commit": machine.commit()}
        result |= {"date": time.strftime("%Y-%m-%d"), "threads": torch.get_num_threads()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", inference.EngineWarning)  # the row says which engine ran
        for later in (False, True):
            for i, folder in enumerate(args.runs):
                measure(
                    folder,
                    first=i == 0,
                    later=later,
                    result=result,
                    path=args.result,
                    quick=args.quick,
                    untimed=args.untimed,
                )
    if args.report:
        if not result["runs"]:
            raise SystemExit(f"--result: {args.result} is not there; name RUNs to measure")
        picture = args.result.with_suffix(".png")
        draw(result, picture)
        text = args.readme.read_text(encoding="utf-8")
        if BEGIN not in text or END not in text.partition(BEGIN)[2]:
            raise SystemExit(f"{args.readme.name} has no {BEGIN} ... {END} to write between")
        link = picture.relative_to(args.readme.resolve().parent).as_posix()
        new = rewritten(text, block(result, link), BEGIN, END)
        args.readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
