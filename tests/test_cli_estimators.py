"""`pyro-vae evaluate --estimator` for each: what it writes, stopped and gone on with, refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_runs import files_of, refused, trained_runs

from inference.evidence import importance, kept
from inference.tiles import TILE_NUMBERS
from pyro_vae.app.cli import main
from pyro_vae.app.run import Run

CHAINS = ["num_chains=4", "num_temperatures=4", "pilot_temperatures=4"]
ESTIMATORS = {
    "importance": ["num_samples=30"],
    "ais": CHAINS,
    "smc": CHAINS,
    "sandwich": ["num_data=40", *(f"by.{each}" for each in CHAINS)],
    "quadrature": ["tolerance=0.01"],
    "auto": ["look=100", "importance.num_samples=30", *(f"chains.{each}" for each in CHAINS)],
}


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(trained_runs() / "a", tmp_path / "run"))


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setitem(TILE_NUMBERS, "cpu", 64 * 40)
    monkeypatch.setattr(importance, "DATA_AT_ONCE", 4)


def command(run, name):
    changes = [f"estimator.{each}" for each in ESTIMATORS[name]]
    chosen = ["evaluate", run, *changes, "--estimator", name, "--num-data", "24", "--quiet"]
    return list(map(str, chosen))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_stopped_and_gone_on_with(name, run, small_tiles, monkeypatch, capsys):
    assert main(command(run, name)) == 0
    arrays, whole = Run.open(run).evaluation()
    assert whole["estimator"] == name
    assert whole["evaluate"]["estimator"]["name"] == name
    before = files_of(run)

    put, seen = kept.Kept.put, []

    def stopping(self, part, tensors):
        put(self, part, tensors)
        seen.append(part)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(kept.Kept, "put", stopping)
        capsys.readouterr()
        refused(command(run, name), capsys, "interrupted; what is done is kept", code=1)
    partial = [path for path in files_of(run) if path not in before]
    assert [path.name.startswith("evaluation-partial-") for path in partial] == [True]
    assert {path: before[path] for path in before} == {p: p.read_bytes() for p in before}

    assert main(command(run, name)) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "goes on with an evaluation that was stopped" in told
    again, summary = Run.open(run).evaluation()
    assert all(torch.equal(again[n].nan_to_num(-1), arrays[n].nan_to_num(-1)) for n in arrays)
    assert summary | {"seconds": 0} == whole | {"seconds": 0}  # JSON has null for NaN
    assert set(files_of(run)) == set(before)


def test_another_evaluation_drops_what_was_stopped(run, small_tiles, monkeypatch, capsys):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        put = kept.Kept.put
        patch.setattr(kept.Kept, "put", lambda *each: (put(*each), stop()))
        refused(command(run, "ais"), capsys, "interrupted", code=1)
    assert any("partial" in path.name for path in files_of(run))
    capsys.readouterr()
    assert main(command(run, "importance")) == 0
    assert "drops the beginning of an evaluation" in " ".join(capsys.readouterr().out.split())
    assert not any("partial" in path.name for path in files_of(run))


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (["estimator.num_temperatures=0"], "num_temperatures: input should be greater than"),
        (["estimator.num_tempratures=9"], "did you mean 'num_temperatures'?"),
        (["estimator.space=upper"], "evaluate.estimator.space: input should be"),
        (["estimator.start=gaussian", "estimator.space=noise"], "take space 'latent'"),
        (["estimatr.num_chains=9"], "did you mean 'estimator'?"),
        (["num_temperatures"], "expected key=value"),
        (["--samples", "100"], "--samples: is for importance and auto"),
    ],
)
def test_bad_values_are_refused(changes, part, run, capsys):
    before = files_of(run)
    refused(["evaluate", run, "--estimator", "ais", *changes], capsys, part)
    assert files_of(run) == before


def test_an_estimator_that_does_not_fit(run, capsys):
    before = files_of(run)
    refused(["evaluate", run, "--estimator", "enumerate", "--quiet"], capsys, "is no finite set")
    refused(
        ["evaluate", run, "--estimator", "sandwich", "--precision", "bfloat16", "--quiet"],
        capsys,
        "takes float32 or float64",
    )
    assert files_of(run) == before


def test_what_was_done_is_in_the_summary(run):
    assert main([*command(run, "ais"), "seed=5"]) == 0
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["evaluate"]["seed"] == 5
    assert summary["num_samples"] == 4
    assert summary["num_temperatures"] == 4
    assert summary["evaluate"]["estimator"]["pilot_temperatures"] == 4


def test_samples_of_auto_and_the_kind_of_a_sandwich(run):
    chosen = [each for each in command(run, "auto") if "importance.num_samples" not in each]
    assert main([*chosen, "--samples", "40"]) == 0
    held = json.loads((run / "evaluation.json").read_text())["evaluate"]["estimator"]
    assert held["importance"]["num_samples"] == 40
    assert held["importance"]["name"] == "importance"
    for kind in ("estimator.by=importance", "estimator.by.name=importance"):
        settings = [kind, "estimator.by.num_samples=30", "estimator.num_data=20"]
        chosen = ["evaluate", str(run), "--estimator", "sandwich", *settings, "--quiet"]
        assert main(chosen) == 0
        summary = json.loads((run / "evaluation.json").read_text())
        assert summary["num_samples"] == 30
        assert summary["evaluate"]["estimator"]["by"]["name"] == "importance"


def test_sandwiches_are_not_compared(run, capsys):
    other = shutil.copytree(trained_runs() / "vamp", run.parent / "vamp")
    for each in (run, other):
        assert main(command(each, "sandwich")) == 0
    capsys.readouterr()
    refused(["compare", run, other], capsys, "data simulated from its own model")
