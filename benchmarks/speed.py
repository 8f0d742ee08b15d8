"""Measure everything, side by side, and keep it as JSON.

    python -m benchmarks.speed                  # under half an hour on two quiet cores
    python -m benchmarks.speed --quick          # a minute: do most rows run? Not to be quoted
    python -m benchmarks.speed --quick --only . # every row, tiny
    python -m benchmarks.speed --only 'training-(20|128)/(products|hand|ours)'
    python -m benchmarks.speed --again 'evidence|memory' # whole sections, into the kept result
    python -m benchmarks.report                 # the README's tables and the plot

NumPyro, JAX and pythae are looked for under $PYRO_VAE_PEERS, another interpreter, else under this
one; `benchmarks/requirements.txt` names them. The file is written after every section.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import re
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import machine, tables
from benchmarks.measure import Bench
from benchmarks.plan import Probe, Section, Settings
from benchmarks.process import WorkerError, interpreter
from benchmarks.sections import every
from benchmarks.terminal import cost_table, section_table

RESULT = machine.ROOT / "benchmarks" / "results" / "speed.json"
PARTIAL = machine.ROOT / "build" / "speed.json"
# Without those that take long to compile.
QUICK = (
    r"^training-20/(products|svi$|hand-eager|numpyro-update|pythae|ours-eager)|"
    r"^training-(conv|vamp)/ours-eager|^evidence/(?!.*compiled)|^memory/ours-eager|"
    r"^cost-.*/(products|ours-eager)|^gpu-"
)
PACKAGES = ["torch", "pyro-ppl", "numpy", "pyro-vae", "jax", "jaxlib", "numpyro", "pythae"]


def main(argv: list[str] | None = None) -> None:
    args = _parse(argv)
    settings = Settings(args.quick, args.threads, args.whole_memory)
    # Not in a terminal, lines are as long as they are.
    console = Console(width=None if sys.stdout.isatty() else 160)

    def say(text: str) -> None:
        print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)

    pythons = {False: sys.executable, True: interpreter(args.python)}
    with Bench(settings, pythons, args.wait_policy, say) as bench:
        probe = look(bench)
        chosen = every(settings, probe)
        if args.again:
            chosen = whole(chosen, args.again)
        else:
            chosen = select(chosen, args.only or (QUICK if args.quick else None))
        if args.list:
            for section in chosen:
                for row in section.rows:
                    print(f"{section.name}/{row.name}")
            return
        result = header(settings, probe, args)
        commit = result["commit"]
        if args.again:
            result = to_be_renewed(args.out, result)
        before, started = result["seconds"], time.perf_counter()
        for section in chosen:
            made = {"started": now(), "commit": commit}
            record = result["sections"][section.name] = {**bench.run(section), **made}
            result["seconds"] = round(before + time.perf_counter() - started, 1)
            write(args.out, result)
            if "axis" not in record:
                tables.show(section_table(section.name, record), console)
        if any("axis" in record for record in result["sections"].values()):
            tables.show(cost_table(result["sections"]), console)
    say(f"{result['seconds'] / 60:.1f} minutes; kept in {args.out}")


def look(bench: Bench) -> Probe:
    """Versions under both interpreters, our engines, and the GPU."""
    versions: dict[str, str] = {}
    found: dict[str, Any] = {}
    for peer in (True, False):  # where both have a package, ours is told
        worker = None
        try:
            worker = bench.start(peer=peer)
            found = worker.ask({"do": "probe", "packages": PACKAGES}, 120)
        except WorkerError as error:
            if not peer:
                raise SystemExit(f"pyro-vae does not import: {error}") from None
            bench.say(f"peers: {error}")
            continue
        finally:
            if worker is not None:
                worker.close()
        versions |= found["versions"]
    return Probe(versions, found["engines"], found["cuda"])


def select(sections: list[Section], only: str | None) -> list[Section]:
    """Sections with the rows whose `section/row` holds the pattern."""
    if only is None:
        return sections
    pattern = re.compile(only)
    kept = []
    for section in sections:
        rows = tuple(r for r in section.rows if pattern.search(f"{section.name}/{r.name}"))
        if rows:
            kept.append(replace(section, rows=rows))
    if not kept:
        raise SystemExit(f"--only: no row matches '{only}'; --list shows them all")
    return kept


def whole(sections: list[Section], pattern: str) -> list[Section]:
    """Sections whose name holds the pattern, with all of their rows."""
    kept = [section for section in sections if re.search(pattern, section.name)]
    if not kept:
        raise SystemExit(f"--again: no section matches '{pattern}'; --list shows them all")
    return kept


def to_be_renewed(path: Path, fresh: dict[str, Any]) -> dict[str, Any]:
    """The kept result, if what is measured now may stand beside it."""
    if not path.exists():
        raise SystemExit(f"--again: {path} is not there; run the whole first")
    kept = json.loads(path.read_text(encoding="utf-8"))
    for key in ("settings", "machine", "versions"):
        apart = {
            name
            for name in kept[key].keys() | fresh[key].keys()
            if kept[key].get(name) != fresh[key].get(name) and name != "memory_gib"
        }
        if apart:
            raise SystemExit(
                f"--again: {', '.join(sorted(apart))} of the kept result's {key} are others than "
                "now; run the whole"
            )
    return kept


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def header(settings: Settings, probe: Probe, args: argparse.Namespace) -> dict[str, Any]:
    """What the numbers were made on and with."""
    return {
        "format": 1,
        "started": now(),
        "settings": {**asdict(settings), "only": args.only, "wait_policy": args.wait_policy},
        "machine": {**machine.facts(), "cuda": probe.cuda},
        "versions": probe.versions,
        "engines": probe.engines,
        "commit": machine.commit(),
        "seconds": 0.0,
        "sections": {},
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Whole or not at all: beside its place, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        beside.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            beside.unlink()


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="tiny: a minute in all")
    parser.add_argument("--only", metavar="PATTERN", help="rows whose section/row matches")
    parser.add_argument("--again", metavar="PATTERN", help="measure these sections once more")
    parser.add_argument("--list", action="store_true", help="print section/row of every row")
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"default {_told(RESULT)}")
    parser.add_argument("--threads", type=int, default=2, help="of every row (default 2)")
    parser.add_argument("--python", metavar="PATH", help="interpreter of NumPyro and pythae")
    parser.add_argument(
        "--wait-policy",
        choices=("default", "active", "passive"),
        default="default",
        help="OMP_WAIT_POLICY of every row; default: unset, whatever this environment sets",
    )
    parser.add_argument(
        "--whole-memory",
        action="store_true",
        help="peak memory at 10^5 samples on all 1,000 images instead of 50 (minutes)",
    )
    args = parser.parse_args(argv)
    if args.out is None:  # a part, or a trial, does not replace the whole
        args.out = PARTIAL if args.quick or args.only else RESULT
    return args


def _told(path: Path) -> str:
    return str(path.relative_to(machine.ROOT))


if __name__ == "__main__":
    main()
