"""What the three questions share: training through the application, means with their errors."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks import machine
from pyro_vae.app.experiment import load_experiment
from pyro_vae.app.run import Run
from pyro_vae.app.train import train

Row = dict[str, Any]


@dataclass
class Bench:
    """Where runs are trained, what is measured already, and how to keep a new row.

    `rows` is the JSON's part of one question; `save` writes the whole file.
    """

    rows: dict[str, Row]
    save: Callable[[], None]
    work: Path
    quick: bool = False
    engine: str = "compiled"

    def trained(self, name: str, preset: str, changes: Sequence[str]) -> Run:
        """The run of a preset with changes; one that is finished is opened, a stopped one goes on.

        In a quick look the changes that `QUICK` names come on top.
        """
        wanted = [f"train.engine={'eager' if self.quick else self.engine}", *changes]
        spec = load_experiment(preset, wanted + (QUICK[preset] if self.quick else []))
        print(f"{time.strftime('%H:%M:%S')} {name}: training", flush=True)
        return train(spec, self.work / name, resume=True, progress=False)

    def missing(self, *names: str) -> bool:
        """Is one of these rows not measured yet?"""
        return any(name not in self.rows for name in names)

    def keep(self, name: str, row: Row) -> None:
        """A row with its commit, written at once."""
        held = {**row, "commit": machine.commit()}
        self.rows[name] = {k: v for k, v in held.items() if not _unknown(v)}
        self.save()
        told = ", ".join(
            f"{k} {v:.4g}" for k, v in row.items() if isinstance(v, float) and not _unknown(v)
        )
        print(f"{time.strftime('%H:%M:%S')} {name}: {told}", flush=True)


SMALL = ["train.epochs=2", "train.batch_size=50"]
NETS = ["model.encoder.hidden=[8]", "model.decoder.hidden=[8]"]
DIGITS = ["data.name=digits", "data.binarize=threshold"]  # they need no download
QUICK = {
    "missing_mnist": [*SMALL, *NETS, *DIGITS, "data.missing=0.5", "data.train_size=100"],
    "bayesian_mnist": [*SMALL, *NETS, *DIGITS],
    "topics": SMALL,
}


def of_run(run: Run) -> Row:
    """What a table says of a training."""
    told = run.summary()
    return {name: told[name] for name in ("engine", "epochs_run", "seconds", "num_train")}


def mean_and_error(each: Tensor) -> tuple[float, float]:
    """Mean of one number a datum `[N]`, and its standard error over data."""
    each = each.double()
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))


def _unknown(value: Any) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))
