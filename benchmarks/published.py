"""What the README shows."""

from __future__ import annotations

from benchmarks.sections.training import BATCHES
from benchmarks.tables import Record, Table, duration, find, reasons, times, with_spread


def readme_tables(sections: dict[str, Record]) -> list[Table]:
    """Those that the result has sections for."""
    made = []
    steps = {f"training-{batch}": f"batch {batch}" for batch in BATCHES}
    other = {"training-conv": "convolutional", "training-vamp": "VampPrior, 500 components"}
    for title, names in (
        ("Training step, 784-200-200-50 tanh network", steps),
        ("Training step, batch 128, other models", other),
    ):
        found = {told: sections[name] for name, told in names.items() if name in sections}
        if found:
            made.append(training_table(title, found))
    makers = {
        "evidence": evidence_table,
        "memory": memory_table,
        "gpu-training-128": lambda r: training_table(r["title"], {"batch 128": r}, "svi"),
        "gpu-evidence": evidence_table,
    }
    return made + [make(sections[name]) for name, make in makers.items() if name in sections]


def training_table(title: str, records: dict[str, Record], by: str = "products") -> Table:
    """ms a step; rows of several sections side by side."""
    labels: dict[str, str] = {}
    for record in records.values():
        labels |= {row["name"]: row["label"] for row in record["rows"]}
    made = []
    for name, label in labels.items():
        cells = [label]
        for record in records.values():
            row = find(record, name)
            cell = "" if row is None else "not measured"
            if row is not None and "median" in row:
                cell = with_spread(row, 1e3)
                if by in row["ratios"] and name != by:
                    cell += f", {times(row['ratios'][by]['median'])}"
            cells.append(cell)
        made.append(cells)
    what = "the matrix products" if by == "products" else "pyro.infer.SVI"
    title += f": ms, median (quartiles), multiple of {what}"
    return Table(title, ["", *records], made, reasons(*records.values()))


def evidence_table(record: Record) -> Table:
    columns = ["", "time", "x matrix products", "measured on"]
    made = []
    for row in record["rows"]:
        if "median" not in row:
            made.append([row["label"], "not measured", "", ""])
            continue
        shown = row["ratios"].get(record["references"][0])
        extrapolated = row["extrapolated"]
        slice_of = f"{row['pieces']} x {row['units']:,}, extrapolated" if extrapolated else "all"
        bounds = (row["whole_seconds"] * row[key] / row["median"] for key in ("lower", "upper"))
        made.append(
            [
                row["label"],
                duration(row["whole_seconds"], *bounds),
                times(shown["median"]) if shown else "",
                slice_of,
            ]
        )
    title = f"{record['title']}: time, median (quartiles)"
    return Table(title, columns, made, reasons(record))


def memory_table(record: Record) -> Table:
    columns = ["", "peak, MiB", "above start, MiB", "measured on"]
    made = []
    for row in record["rows"]:
        if "peak_mib" not in row:
            made.append([row["label"], "not measured", "", ""])
            continue
        grown = row["peak_mib"] - row["baseline_mib"]
        part = f"the first {row['pieces']:,} images" if row["extrapolated"] else "all images"
        made.append([row["label"], f"{row['peak_mib']:,.0f}", f"{grown:,.0f}", part])
    return Table(record["title"], columns, made, reasons(record))
