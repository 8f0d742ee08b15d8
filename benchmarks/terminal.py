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
    names = {"products": "matrix products", "ours-eager": "eager", "ours-compiled": "compiled"}
    made = []
    for record in sections.values():
        rows = [find(record, name) for name in names]
        known = [row for row in rows if row is not None and "median" in row]
        if "axis" not in record or not known:
            continue
        cells = [record["axis"], f"{record['value']:,}"]
        for row in rows:
            cell = ""
            if row is not None:
                cell = "not measured"
            if row in known:
                cell = duration(row["whole_seconds"])
                if row["name"] != "products":
                    cell += f", {against(row, find(record, 'products'))}"
            cells.append(cell)
        made.append([*cells, f"{known[0]['pieces']:,} of {known[0]['whole']:,} images"])
    title = "Cost of log p(x): time, multiple of the matrix products"
    return Table(title, ["axis", "value", *names.values(), "measured on"], made, [])
