"""Run folders: made once, never half-written, and read without running code."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import pyro_vae as pv
from pyro_vae.app import files
from pyro_vae.app.experiment import load_experiment
from pyro_vae.app.run import ARRAYS, Run
from pyro_vae.errors import RunError

SMALL = [
    "model.data_shape=[4, 4]",
    "model.latent_dim=2",
    "model.encoder.hidden=[5]",
    "model.decoder.hidden=[5]",
    "model.likelihood=bernoulli",
]


@pytest.fixture
def spec():
    return load_experiment("digits", SMALL)


@pytest.fixture
def run(tmp_path, spec):
    """A run as `train` leaves it, without the training."""
    run = Run.create(tmp_path / "run", spec)
    with torch.random.fork_rng(devices=[]):
        run.write_weights(pv.VAE.from_spec(spec.model))
    run.write_summary({"status": "completed", "epochs": spec.train.epochs})
    files.write_json_lines(run.metrics, [{"epoch": 1, "train_bound": -1.0}])
    return run


def test_load_gives_the_vae_back(run, spec):
    vae = pv.load(run.path)
    assert vae.spec == spec.model
    assert not vae.training
    for name, tensor in load_file(run.path / "model.safetensors").items():
        assert torch.equal(vae.state_dict()[name], tensor)


def test_load_leaves_the_random_state_alone(run):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    pv.load(run.path)
    assert torch.equal(torch.get_rng_state(), before)


def test_nothing_in_a_run_is_pickle_and_no_temporary_file_stays(run):
    names = sorted(item.name for item in run.path.iterdir())
    assert names == ["metrics.jsonl", "model.safetensors", "spec.yaml", "summary.json"]


def test_fresh_runs_are_numbered(tmp_path, spec):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    paths = [Run.fresh("digits", spec, tmp_path / "runs").path.name for _ in range(2)]
    (tmp_path / "runs" / "0041-other").mkdir()
    paths.append(Run.fresh("vamp", spec, tmp_path / "runs").path.name)
    assert paths == ["0001-digits", "0002-digits", "0042-vamp"]


def test_a_folder_in_use_is_refused(run, spec, tmp_path):
    before = (run.path / "spec.yaml").read_bytes()
    with pytest.raises(RunError, match=r"holds another run.*--resume"):
        Run.create(run.path, spec)
    assert (run.path / "spec.yaml").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(RunError, match="is not empty"):
        Run.create(tmp_path / "mine", spec)
    with pytest.raises(RunError, match="is a file"):
        Run.create(tmp_path / "mine" / "thesis.tex", spec)
    with pytest.raises(RunError, match="cannot be made a folder"):
        Run.create(tmp_path / "mine" / "thesis.tex" / "run", spec)


def test_what_a_killed_write_left_is_no_obstacle(tmp_path, spec):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / f"{files.TEMPORARY}spec.yaml-abc").write_text("half")
    assert [item.name for item in Run.create(folder, spec).path.iterdir()] == ["spec.yaml"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_json_has_no_nan(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": float("nan"), "b": [float("inf"), 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": None, "b": [None, 1.5]}


@pytest.mark.parametrize("name", ["spec.yaml", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage", "empty"])
def test_a_missing_or_damaged_file_is_named(run, name, damage):
    path = run.path / name
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        changed = {"cut": content[: len(content) // 3], "garbage": b"\x80\x81{[", "empty": b""}
        path.write_bytes(changed[damage])
    with pytest.raises(RunError, match=name):
        # A part of a spec may be a spec: then the weights do not fit it.
        pv.load(run.path)


@pytest.mark.parametrize("read", [Run.summary, Run.history])
def test_a_damaged_text_file_is_named_with_a_remedy(run, read):
    name = "summary.json" if read is Run.summary else "metrics.jsonl"
    (run.path / name).write_text('{"a": 1}\n{"b":')
    with pytest.raises(RunError, match=rf"{name}: damaged.*--resume"):
        read(run)
    (run.path / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: missing.*--resume"):
        read(run)


def test_weights_that_are_not_those_of_the_spec_are_refused(run):
    path = run.path / "model.safetensors"
    held = load_file(path)
    names = sorted(held)
    changed = {name: held[name] for name in names[2:]}
    changed[names[1]] = torch.zeros(3, 3)
    changed["stranger"] = torch.zeros(1)
    save_file(changed, path)
    with pytest.raises(RunError) as caught:
        pv.load(run.path)
    text = str(caught.value)
    assert f"lacks the weight '{names[0]}'" in text
    assert f"'{names[1]}' has shape (3, 3), the spec says {tuple(held[names[1]].shape)}" in text
    assert "holds 'stranger', which the spec has no place for" in text
    assert len(text.splitlines()) == 3


def test_a_hostile_spec_is_refused_and_runs_nothing(run, tmp_path):
    mark = tmp_path / "owned"
    (run.path / "spec.yaml").write_text(f"!!python/object/apply:os.mkdir ['{mark}']")
    with pytest.raises(RunError, match=r"spec\.yaml"):
        pv.load(run.path)
    assert not mark.exists()


def test_a_run_with_a_component_of_ones_own_says_how_to_bring_it(run):
    path = run.path / "spec.yaml"
    path.write_text(path.read_text().replace("name: standard_normal", "name: my_prior"))
    with pytest.raises(RunError, match="--import"):
        pv.load(run.path)


def test_no_run_at_all(tmp_path):
    with pytest.raises(RunError, match="no such run folder"):
        pv.load(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is no run folder"):
        pv.load(tmp_path)


def evaluation(run, **changes):
    arrays = {name: torch.ones(3).double() for name in ARRAYS}
    summary = {
        "estimator": "importance",
        "num_samples": 5,
        "num_data": 3,
        "split": "test",
        "data_fingerprint": "f",
        "weights_fingerprint": run.weights_fingerprint(),
        "log_px": -1.0,
    }
    run.write_evaluation(arrays, summary | changes)


def test_an_evaluation_comes_back(run):
    evaluation(run)
    arrays, summary = run.evaluation()
    assert arrays["value"].dtype == torch.float64
    assert summary["num_data"] == 3


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.safetensors"])
def test_a_missing_or_damaged_evaluation_is_named(run, name):
    evaluation(run)
    (run.path / name).write_bytes(b"{")
    with pytest.raises(RunError, match=rf"{name}: damaged.*pyro-vae evaluate"):
        run.evaluation()
    (run.path / name).unlink()
    with pytest.raises(RunError, match=rf"{name}: missing.*pyro-vae evaluate"):
        run.evaluation()


def test_halves_of_two_evaluations_are_not_mixed(run, tmp_path):
    evaluation(run)
    shutil.copy(run.path / "evaluation.json", tmp_path)
    evaluation(run, num_samples=6)
    shutil.copy(tmp_path / "evaluation.json", run.path)
    with pytest.raises(RunError, match="belongs to another evaluation"):
        run.evaluation()


def test_an_evaluation_of_other_weights_is_refused(run, spec):
    evaluation(run)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        run.write_weights(pv.VAE.from_spec(spec.model))
    with pytest.raises(RunError, match="made with other weights"):
        run.evaluation()
