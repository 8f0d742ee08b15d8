"""A training killed at any moment and resumed ends as one that was left alone, bit for bit."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from cli_runs import ROOT, rows_of

from pyro_vae.app.cli import main

REQUEST = [
    "digits",  # binarized afresh for every batch, with validation data
    "data.train_size=300",
    "model.latent_dim=2",
    "model.encoder.hidden=[8]",
    "model.decoder.hidden=[8]",
    "train.epochs=30",
    "train.batch_size=30",
    "train.checkpoint_seconds=0.05",
    "--quiet",
]
# Imported by the process that is to be killed: writing takes a while, and one replacement of the
# checkpoint, if its number is given, never happens.
SLOW = """
import os, time
import pyro_vae.app.train

replace, stop, seen = os.replace, int(os.environ["STOP_AT_CHECKPOINT"]), []

def slow(old, new, **keywords):
    time.sleep(0.02)
    if "checkpoint" in str(new):
        seen.append(new)
        if len(seen) == stop:
            open(os.environ["STOPPED"], "w").close()
            time.sleep(600)
    replace(old, new, **keywords)

os.replace = slow
append = pyro_vae.app.train._append

def slowly(*arguments):
    time.sleep(0.03)
    append(*arguments)

pyro_vae.app.train._append = slowly
pyro_vae.app.train.draw_all = lambda *_: []
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that are killed: the order of sums may depend on the threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_pictures(one_thread, monkeypatch):
    monkeypatch.setattr("pyro_vae.app.train.draw_all", lambda *_: [])


def ends(run):
    """What must not depend on interruptions."""
    rows = rows_of(run)
    for row in rows:
        del row["seconds"]
    return (run / "model.safetensors").read_bytes(), rows


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, one_thread):
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vae.app.train.draw_all", lambda *_: [])
        assert main(["train", *REQUEST, "--out", str(run)]) == 0
    return ends(run)


def wait_for(there, child, seconds=120):
    end = time.monotonic() + seconds
    while not there():
        assert child.poll() is None, f"ended by itself: {child.communicate()}"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def killed(tmp_path, *, after=0.0, epochs=0, in_checkpoint=0):
    """A run killed `after` seconds of training (negative: before it), or at one of the others."""
    run, stopped = tmp_path / "run", tmp_path / "stopped"
    (tmp_path / "slow.py").write_text(SLOW)
    arguments = ["train", *REQUEST, "--out", str(run), "--import", str(tmp_path / "slow.py")]
    environment = {
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "STOP_AT_CHECKPOINT": str(in_checkpoint),
        "STOPPED": str(stopped),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "pyro_vae", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        if in_checkpoint:
            wait_for(stopped.exists, child)
        elif after >= 0:
            wait_for((run / "spec.yaml").exists, child)
        if epochs:
            metrics = run / "metrics.jsonl"
            wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") >= epochs, child)
        time.sleep(abs(after))
        assert child.poll() is None, f"ended by itself: {child.communicate()}"
    finally:
        child.kill()
        child.communicate()
    assert child.returncode == -signal.SIGKILL
    assert not (run / "summary.json").exists()
    return run


def resumed(run):
    """Go on in another process than the one that was killed: this one."""
    torch.manual_seed(1)  # whose random state is of no consequence
    assert main(["train", *REQUEST, "--out", str(run), "--resume"]) == 0
    left = [path.name for path in run.rglob("*") if path.name.startswith(".")]
    return ends(run), left


MOMENTS = [
    {"after": 0.0},  # as soon as there is a folder
    {"in_checkpoint": 3},  # written beside its place, not yet put there
]
MORE = [
    {"epochs": 6},
    {"after": -0.5},  # before there is a folder
    {"after": 0.1},
    {"after": 0.3},
    {"after": 0.7},
    {"after": 1.0},
    {"epochs": 1},
    {"epochs": 25},
    {"in_checkpoint": 1},
    {"in_checkpoint": 2},
    {"in_checkpoint": 7},
]


@pytest.mark.parametrize(
    "moment", [*MOMENTS, *(pytest.param(m, marks=pytest.mark.slow) for m in MORE)], ids=str
)
def test_a_killed_training_resumes_as_if_nothing_had_been(moment, uninterrupted, tmp_path):
    (weights, rows), left = resumed(killed(tmp_path, **moment))
    assert weights == uninterrupted[0]
    assert rows == uninterrupted[1]
    assert len(rows) == 30
    assert left == [], "files of the killed process were left behind"
