"""What the terminal shows: all that is known of every row."""

from __future__ import annotations

from benchmarks.published import memory_table
from benchmarks.tables import (
    Record,
    Table,
    against,
    best_by_hand,
    duration,
    find,
    plain,
    reasons,
    times,
    with_spread,
)


def section_table(name: str, record: Record) -> Table:
    """All that is known of one section's rows."""
    if name == "memory":
        return memory_table(record)
    steps = record["unit"] == "step"
    unit = "ms a step" if steps else "us a datum and sample"
    scale = 1e3 if steps else 1e6
    columns = ["", f"{unit}, median (quartiles)"]
    columns += [] if steps else ["whole work"]
    columns += [f"x {reference}" for reference in record["references"]]
    columns += ["x best by hand"] if steps else ["log p(x)"]
    columns += ["processors", "others"]
    best = best_by_hand(record)
    made = []
    for row in record["rows"]:
        if "median" not in row:
            made.append([row["label"], "not measured"] + [""] * (len(columns) - 2))
            continue
        cells = [row["label"], with_spread(row, scale)]
        cells += [] if steps else [duration(row["whole_seconds"]) + _mark(row)]
        for reference in record["references"]:
            found = row["ratios"].get(reference)
            cells.append(times(found["median"]) if found else "")
        value = row["value"]
        cells.append(against(row, best) if steps else "" if value is None else f"{value:.2f}")
        others = row["others"]
        cells += [str(row["processors"]), "" if others is None else str(others)]
        made.append(cells)
    notes = [f"{plain(r['label'])}: {r['note']}" for r in record["rows"] if r.get("note")]
    return Table(record["title"], columns, made, [*notes, *reasons(record)])


def _mark(row: Record) -> str:
    return " (extrapolated)" if row.get("extrapolated") else ""


def cost_table(sections: dict[str, Record]) -> Table:
    """Ours and the products alone along every axis, one line a point."""
    columns = ["axis", "value", "products", "pyro-vae", "x products", "measured on"]
    made = []
    for record in sections.values():
        ours, products = find(record, "ours"), find(record, "products")
        if "axis" not in record or ours is None or "median" not in ours:
            continue
        known = products is not None and "median" in products
        cells = [record["axis"], f"{record['value']:,}"]
        cells.append(duration(products["whole_seconds"]) if known else "")  # type: ignore[index]
        cells.append(duration(ours["whole_seconds"]))
        whole = ours["whole_seconds"] / products["whole_seconds"] if known else None  # type: ignore[index]
        cells.append(times(whole) if whole else "")
        made.append([*cells, f"{ours['pieces']:,} of {ours['whole']:,} images"])
    return Table("Cost of log p(x)", columns, made, [])
