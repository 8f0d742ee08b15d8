"""What was to be reached, beside what was: one line each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.sections.training import BATCHES
from benchmarks.summary import ratio
from benchmarks.tables import best_by_hand, find, number

Sections = dict[str, Any]


def lines(sections: Sections) -> list[str]:
    """`what: 1.03x; must <= 1.05x, stretch 0.9x: reached`, where both rows were measured."""
    return [*_training(sections), *_evidence(sections), *_memory(sections), *_gpu(sections)]


def _multiple(row: Any, other: Any) -> float | None:
    if row is None or other is None or "median" not in row or "median" not in other:
        return None
    return ratio(row["times"], other["times"])["median"]


def _told(
    what: str, value: float | None, *, at_most: float = 0.0, at_least: float = 0.0, stretch: str
) -> Iterator[str]:
    if value is None:
        return
    reached = value <= at_most if at_most else value >= at_least
    must = f"<= {at_most:g}x" if at_most else f">= {at_least:g}x"
    more = f", stretch {stretch}" if stretch else ""
    yield f"{what}: {number(value)}x; must {must}{more}: {'reached' if reached else 'MISSED'}"


def _training(sections: Sections) -> Iterator[str]:
    faster = {20: (2.8, "4x"), 128: (1.7, "2.2x")}
    for batch in BATCHES:
        section = sections.get(f"training-{batch}")
        if section is None:
            continue
        ours = find(section, "ours-compiled")
        what = f"training step, compiled, batch {batch}"
        by_hand = _multiple(ours, best_by_hand(section))
        yield from _told(f"{what}, time / best by hand", by_hand, at_most=1.05, stretch="0.9x")
        if batch in faster:
            must, stretch = faster[batch]
            speed = _multiple(find(section, "svi"), ours)
            yield from _told(f"{what}, SVI / time", speed, at_least=must, stretch=stretch)
        for name in ("hand-whole-step", "numpyro-scan"):
            value = _multiple(ours, find(section, name))
            if value is not None:
                yield f"{what}, time / {name}: {number(value)}x; to be reported"


def _evidence(sections: Sections) -> Iterator[str]:
    section = sections.get("evidence")
    if section is None:
        return
    ours = find(section, "ours-compiled")
    what = "log p(x), compiled, compiling included"
    products = _multiple(ours, find(section, "products"))
    yield from _told(f"{what}, time / products", products, at_most=1.5, stretch="1.25x")
    faster = _multiple(find(section, "importance"), ours)
    yield from _told(f"{what}, Importance / time", faster, at_least=130, stretch="")


def _memory(sections: Sections) -> Iterator[str]:
    section = sections.get("memory")
    if section is None:
        return
    # Last, what `auto` may choose: the larger work compiled, the smaller not.
    for engines in (("eager", "eager"), ("compiled", "compiled"), ("eager", "compiled")):
        few = find(section, f"ours-{engines[0]}-{section['few']}")
        many = find(section, f"ours-{engines[1]}-{section['many']}")
        if few and many and "peak_mib" in few and "peak_mib" in many:
            what = f"peak memory, {section['many']:,} samples {engines[1]} / "
            what += f"{section['few']:,} samples {engines[0]}"
            value = many["peak_mib"] / few["peak_mib"]
            yield from _told(what, value, at_most=1.2, stretch="")


def _gpu(sections: Sections) -> Iterator[str]:
    section = sections.get("gpu-training-128", {"rows": []})
    ours = find(section, "ours-cuda_graph")
    svi = _multiple(find(section, "svi"), ours)
    yield from _told("GPU training step, SVI / cuda_graph", svi, at_least=20, stretch="")
    by_hand = _multiple(ours, find(section, "hand-reduce-overhead"))
    yield from _told("GPU training step, time / by hand", by_hand, at_most=1.05, stretch="")
    for row in sections.get("gpu-evidence", {"rows": []})["rows"]:
        if row["name"].startswith("ours") and "median" in row:
            seconds = row["whole_seconds"]
            must = ""
            if row["name"].endswith("float32"):
                must = f"; must < 3 s: {'reached' if seconds < 3 else 'MISSED'}"
            yield f"GPU {row['label'].replace('**', '')}: {number(seconds)} s{must}"
