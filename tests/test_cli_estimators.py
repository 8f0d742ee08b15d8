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
from pyro_vae.app.compare import compare
from pyro_vae.app.run import Run
from pyro_vae.errors import RunError

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


def kind_of(name):
    """What the files of an estimator are called."""
    return "sandwich" if name == "sandwich" else "evaluation"


def command(run, name):
    changes = [f"estimator.{each}" for each in ESTIMATORS[name]]
    chosen = ["evaluate", run, *changes, "--estimator", name, "--quiet"]
    if name != "sandwich":
        chosen += ["--num-data", "24"]
    return list(map(str, chosen))


LONG = {"quadrature": [pytest.mark.slow]}


@pytest.mark.parametrize("name", [pytest.param(n, marks=LONG.get(n, ())) for n in ESTIMATORS])
def test_stopped_and_gone_on_with(name, run, small_tiles, monkeypatch, capsys):
    assert main(command(run, name)) == 0
    kind = kind_of(name)
    arrays, whole = Run.open(run).evaluation(kind)
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
    assert [path.name.startswith(f"{kind}-partial-") for path in partial] == [True]
    assert {path: before[path] for path in before} == {p: p.read_bytes() for p in before}

    assert main(command(run, name)) == 0
    told = " ".join(capsys.readouterr().out.split())
    article = "a sandwich" if name == "sandwich" else "an evaluation"
    assert f"goes on with {article} that was stopped" in told
    again, summary = Run.open(run).evaluation(kind)
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
        (["estimator.num_temperatures=0"], "num_temperatures: expected a number above 0"),
        (["estimator.num_tempratures=9"], "did you mean 'num_temperatures'?"),
        (["estimator.space=upper"], "evaluate.estimator.space: expected"),
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
        summary = json.loads((run / "sandwich.json").read_text())
        assert summary["num_samples"] == 30
        assert summary["evaluate"]["estimator"]["by"]["name"] == "importance"


def test_a_sandwich_leaves_the_evaluation_as_it_is(run, capsys):
    """It is of data of the model's own, so nothing of the test data is told of it."""
    other = shutil.copytree(trained_runs() / "vamp", run.parent / "vamp")
    before = {each: files_of(each) for each in (run, other)}
    for each in (run, other):
        capsys.readouterr()
        assert main(command(each, "sandwich")) == 0
        told = "".join(capsys.readouterr().out.split())  # lines break anywhere in a path
        assert "40datasimulatedfromthemodel" in told
        assert "logp(x),atleast" in told
        assert "agapof" in told
        assert "sandwich.json" in told
        assert "evaluation.json" not in told
        assert "intheplaceof" not in told
        after = files_of(each)
        assert after.items() >= before[each].items()
        added = sorted(path.name for path in after.keys() - before[each].keys())
        assert added == ["sandwich.json", "sandwich.safetensors"]
    summary = json.loads((run / "sandwich.json").read_text())
    assert summary["gap"] == pytest.approx(summary["upper"] - summary["log_px"])
    assert summary["evaluate"]["estimator"]["name"] == "sandwich"
    of_test_data = {"split", "data_fingerprint", "bound", "active_units", "warnings"}
    assert not of_test_data & (summary.keys() | summary["evaluate"].keys())
    assert not any(key.startswith(("bits", "bound")) for key in summary)
    evaluated = compare([run, other])
    assert [model.estimators for model in evaluated] == [("importance, K=20",)] * 2
    assert main(command(run, "sandwich")) == 0
    assert "in the place of the one that was there" in " ".join(capsys.readouterr().out.split())
    assert main(["latent", str(run)]) == 0


def test_of_a_sandwich_and_an_evaluation_neither_drops_the_beginning(
    run, small_tiles, monkeypatch, capsys
):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        put = kept.Kept.put
        patch.setattr(kept.Kept, "put", lambda *each: (put(*each), stop()))
        for name in ("ais", "sandwich"):
            refused(command(run, name), capsys, "interrupted", code=1)
    partial = {path.name.partition("-")[0] for path in files_of(run) if "partial" in path.name}
    assert partial == {"evaluation", "sandwich"}
    for name in ("sandwich", "ais"):
        capsys.readouterr()
        assert main(command(run, name)) == 0
        assert "that was stopped" in " ".join(capsys.readouterr().out.split())
    assert not any("partial" in path.name for path in files_of(run))


def test_what_is_wrong_with_a_sandwich_is_told(run):
    with pytest.raises(RunError, match=r"sandwich\.json: missing.*--estimator sandwich"):
        Run.open(run).evaluation("sandwich")
    assert main(command(run, "sandwich")) == 0
    path = run / "sandwich.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"upper": 0.0}))
    with pytest.raises(RunError, match=r"belongs to another evaluation than sandwich\.json"):
        Run.open(run).evaluation("sandwich")


@pytest.mark.parametrize("option", ["--num-data=24", "--split=train"])
def test_a_sandwich_takes_no_choice_of_data(run, capsys, option):
    """It would be of other data than those asked for."""
    refused([*command(run, "sandwich"), option], capsys, "estimator.num_data=100")
