"""Small trained runs for the tests of the command line, and how to look at what it says."""

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from pyro_vae.app.cli import main

ROOT = Path(__file__).parent.parent
SMALL = [
    "model.latent_dim=2",
    "model.encoder.hidden=[8]",
    "model.decoder.hidden=[8]",
    "train.epochs=2",
    "--quiet",
]
MODELS = {
    "a": [],
    "b": ["train.seed=1"],
    "vamp": ["model.prior.components=5", "model.prior=vamp"],
}


@functools.cache
def _folder():
    return tempfile.TemporaryDirectory(prefix="pyro-vae-test-")


@functools.cache
def trained_runs():
    """A folder with three evaluated runs: two seeds of one model, and another prior."""
    root = Path(_folder().name)
    for name, extra in MODELS.items():
        assert main(["train", "digits", *SMALL, *extra, "--out", str(root / name)]) == 0
        assert main(["evaluate", str(root / name), "--samples", "20", "--quiet"]) == 0
    return root


def files_of(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def rows_of(folder):
    """The rows of a run's metrics."""
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def refused(arguments, capsys, *parts, code=2):
    """The command fails with `code`, and each part stands on one of its lines on stderr."""
    assert main([str(argument) for argument in arguments]) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(line.startswith("pyro-vae: ") for line in lines), lines
    for part in parts:
        assert any(part in line for line in lines), (part, lines)
    return lines


def shell(arguments, **environment):
    """The command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "pyro_vae", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )
