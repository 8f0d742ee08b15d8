"""The README's tables and the plot, from what `benchmarks.speed` kept.

    python -m benchmarks.report [--result benchmarks/results/speed.json] [--readme README.md]

Rewrites what stands between `<!-- speed:begin -->` and `<!-- speed:end -->`, draws the plot beside
the JSON file, and prints all tables, and the targets, to the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import textwrap
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import plot, tables, targets
from benchmarks.machine import ROOT
from benchmarks.published import readme_tables
from benchmarks.sections.training import BATCHES
from benchmarks.speed import RESULT
from benchmarks.summary import quantile
from benchmarks.terminal import cost_table, section_table

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", metavar="FILE")
    args = parser.parse_args(argv)
    if not args.result.exists():
        raise SystemExit(f"--result: {args.result} is not there; run python -m benchmarks.speed")
    result = json.loads(args.result.read_text(encoding="utf-8"))
    text = args.readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise SystemExit(f"{args.readme.name} has no {BEGIN} ... {END} to write between")
    picture = args.result.with_suffix(".png")
    drawn = plot.draw(result, picture)
    link = os.path.relpath(picture, args.readme.parent) if drawn else None
    args.readme.write_text(rewritten(text, block(result, link)), encoding="utf-8")
    show(result)


def rewritten(text: str, block: str, begin: str = BEGIN, end: str = END) -> str:
    """The README with the part between the marks replaced."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{block}\n{end}{after}"


def block(result: dict[str, Any], picture: str | None) -> str:
    """What the README says: how it was measured, the tables, the plot."""
    parts = [how(result), *conclusions(result["sections"])]
    parts += [tables.markdown(table) for table in readme_tables(result["sections"])]
    if picture is not None:
        title = "Time of log p(x) against samples, images, latent size and width"
        parts.append(f"![{title}]({Path(picture).as_posix()})")
    return "\n\n".join(parts)


def how(result: dict[str, Any]) -> str:
    """Machine, versions, load, and what was done, in one paragraph."""
    machine, settings, sections = result["machine"], result["settings"], result["sections"]
    versions = ", ".join(f"{name} {told}" for name, told in result["versions"].items())
    load = [now[0] for section in sections.values() for now in section["load"]]
    rows = [row for section in sections.values() for row in section["rows"]]
    broken_off = not {"evidence", "memory"} <= sections.keys()  # they come last but for the costs
    rows = [row for row in rows if len(row.get("times", ())) > 1]
    rounds = [len(row["times"]) for row in rows]
    # In a short slice the clock of processor time ticks too seldom.
    others = [
        row["others"]
        for row in rows
        if row.get("others") is not None and row["median"] * row["pieces"] * row["units"] > 0.5
    ]
    said = [
        "**Quick settings, not to be quoted.**" if settings["quick"] else "",
        f"`python -m benchmarks.speed` on {result['started'][:10]}"
        + (", broken off: the sections shown are all that was measured" if broken_off else "")
        + f": {machine['cpu']}, {machine['cores']} "
        f"cores, {settings['threads']} thread{'s' * (settings['threads'] > 1)} a row;"
        + (f" {machine['cuda']};" if machine["cuda"] else ""),
        f"{versions}; commit {commit_of(result)}.",
        *again(result),
        f"Load average before a round {quantile(load, 0.5):.1f} (most {max(load):.1f}), the rows' "
        "own work included."
        if load
        else "",
        f"Other work on the machine took {quantile(others, 0.5):.2f} processors (most "
        f"{max(others):.2f})."
        if others
        else "",
        "Rows of a table took turns in one run, each in a process of its own. Times: the median "
        f"of {min(rounds)} to {max(rounds)} rounds, quartiles in brackets, less is better; "
        "multiples (2.3x: 2.3 times as long) are taken round by round. Weights are untrained, with "
        "a fixed seed. By hand: no Pyro, the same Monte Carlo loss, fused Adam. Matrix products "
        "alone: what the layers need, whoever calls them. What was measured on a slice is marked "
        "extrapolated."
        if rounds
        else "",
    ]
    return textwrap.fill(" ".join(part for part in said if part), 100, break_on_hyphens=False)


def commit_of(made: dict[str, Any]) -> str:
    commit = made["commit"] or "unknown"
    return commit[:10] + (" with changes" if "changes" in commit else "")


def again(result: dict[str, Any]) -> list[str]:
    """What was measured once more, later."""
    later: dict[str, list[str]] = {}
    for name, record in result["sections"].items():
        if commit_of({"commit": None, **record}) not in (commit_of(result), "unknown"):
            later.setdefault(commit_of(record), []).append(name.partition("-")[0])
    return [
        f"Measured again at commit {commit}: {', '.join(dict.fromkeys(names))}."
        for commit, names in later.items()
    ]


def conclusions(sections: dict[str, Any]) -> list[str]:
    """What the tables say of ours, in a few sentences; none where a row is missing."""
    said = []
    by_hand, svi = [], []
    for batch in BATCHES:
        record = sections.get(f"training-{batch}", {"rows": []})
        ours = tables.find(record, "ours-compiled")
        for found, other in (
            (by_hand, tables.best_by_hand(record)),
            (svi, tables.find(record, "svi")),
        ):
            if ours and tables.against(ours, other):
                found.append((batch, ours, other))
    if by_hand and svi:
        told = ", ".join(f"{tables.against(ours, other)} ({b})" for b, ours, other in by_hand)
        faster = ", ".join(f"{tables.against(other, ours)} ({b})" for b, ours, other in svi)
        said.append(
            f"A compiled step takes {told} the time of the fastest PyTorch by hand with its Adam "
            f"outside the graph, by batch size; `pyro.infer.SVI` takes {faster} ours."
        )
    record = sections.get("evidence", {"rows": []})
    ours = tables.find(record, "ours-compiled")
    others = [tables.find(record, name) for name in ("products", "importance")]
    if ours and all(tables.against(ours, other) for other in others):
        said.append(
            f"log p(x), compiled, takes {tables.against(ours, others[0])} the time of its matrix "
            f"products; `pyro.infer.Importance` takes {tables.against(others[1], ours)} ours."
        )
    return [textwrap.fill(" ".join(said), 100, break_on_hyphens=False)] if said else []


def show(result: dict[str, Any]) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    sections = result["sections"]
    for name, record in sections.items():
        if "axis" not in record:
            tables.show(section_table(name, record), console)
    if any("axis" in record for record in sections.values()):
        tables.show(cost_table(sections), console)
    for line in targets.lines(sections):
        console.print(line, markup=False, highlight=False)


if __name__ == "__main__":
    main()
