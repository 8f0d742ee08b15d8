"""What models of missing values, of counts and of few data are for, measured.

    python -m benchmarks.uses                  # trains and measures; goes on where it stood
    python -m benchmarks.uses missing few      # these questions alone
    python -m benchmarks.uses --report         # the README's part

Models are the presets `missing_mnist`, `topics` and `bayesian_mnist`, trained by the application
into run folders under --work. Rows that the JSON file holds are not measured again; each tells the
commit that it was measured at.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import warnings
from pathlib import Path
from typing import Any

import torch

import inference
from benchmarks import machine
from benchmarks.report import rewritten
from benchmarks.uses import corpora, few, missing, pictures, report, topics
from benchmarks.uses.common import Bench

RESULT = machine.ROOT / "benchmarks" / "results" / "uses.json"
BEGIN, END = "<!-- uses:begin -->", "<!-- uses:end -->"
QUESTIONS = {"missing": missing, "topics": topics, "few": few}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.uses",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("questions", nargs="*", metavar="QUESTION", help=", ".join(QUESTIONS))
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--readme", type=Path, default=machine.ROOT / "README.md", metavar="FILE")
    parser.add_argument("--work", type=Path, default=Path("runs/uses"), metavar="DIR")
    parser.add_argument("--report", action="store_true", help="rewrite the README's part")
    parser.add_argument("--quick", action="store_true", help="tiny: do all rows run?")
    args = parser.parse_args(argv)
    for name in args.questions:
        if name not in QUESTIONS:
            raise SystemExit(f"QUESTION: no '{name}'; choices: {', '.join(QUESTIONS)}")
    result: dict[str, Any] = {name: {} for name in QUESTIONS}
    if args.result.exists():
        result |= json.loads(args.result.read_text(encoding="utf-8"))
    if not args.report:
        measure(args, result)
        return
    if not all(result[name] for name in QUESTIONS):
        raise SystemExit(f"--result: {args.result} lacks rows; run python -m benchmarks.uses")
    text = args.readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise SystemExit(f"{args.readme.name} has no {BEGIN} ... {END} to write between")
    folder = args.result.resolve().parent.relative_to(args.readme.resolve().parent).as_posix()
    block = report.block(result, folder)
    args.readme.write_text(rewritten(text, block, BEGIN, END), encoding="utf-8")


def measure(args: argparse.Namespace, result: dict[str, Any]) -> None:
    """What is asked for and not in `result` yet; written after each row."""
    result |= {"machine": machine.facts(), "date": time.strftime("%Y-%m-%d")}
    result |= {"threads": torch.get_num_threads(), "quick": args.quick, "text": corpora.source()}
    result["versions"] = {"torch": torch.__version__.split("+")[0]}

    def save() -> None:
        args.result.parent.mkdir(parents=True, exist_ok=True)
        args.result.write_text(compact(json.dumps(result, indent=1)) + "\n", encoding="utf-8")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", inference.EngineWarning)  # the row says which engine ran
        for name in args.questions or QUESTIONS:
            bench = Bench(result[name], save, args.work, quick=args.quick)
            shown = QUESTIONS[name].measure(bench)
            pictures.draw(name, shown, args.result.parent)


def compact(text: str) -> str:
    """JSON with lists of numbers on one line each."""
    return re.sub(r"\[[\s\d.,e+-]*\]", lambda m: re.sub(r"\s+", " ", m[0]), text)


if __name__ == "__main__":
    main()
