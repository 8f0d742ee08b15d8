"""Wrong requests: exit code 2, one line per mistake, and nothing is overwritten."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import SMALL, files_of, refused, trained_runs

from pyro_vae.app.cli import main


@pytest.fixture(scope="module")
def trained():
    return trained_runs()


@pytest.fixture(autouse=True)
def no_pictures(trained, monkeypatch):
    """The runs of `trained` have theirs; further trainings are quicker without."""
    monkeypatch.setattr("pyro_vae.app.train.draw_all", lambda *_: [])


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a trained run, to be changed or damaged."""
    return Path(shutil.copytree(trained / "a", tmp_path / "run"))


# The request -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["trian"], "no command is called 'trian'; did you mean 'train'?"),
        (["train", "mnits"], "no preset or file is called 'mnits'; did you mean 'mnist'?"),
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train", "digits", "mnist"], "'mnist': a second spec after 'digits'"),
        (["train", "model.prior=vampp"], "no prior is called 'vampp'; did you mean 'vamp'?"),
        (["train", "data=digit"], "did you mean 'digits'?"),
        (["train", "objective=elbow"], "no objective is called 'elbow'; did you mean 'elbo'?"),
        (["train", "model.prior.component=3"], "no such field of StandardNormal"),
        (["train", "train.epoch=3"], "did you mean 'epochs'?"),
        (["train", "modle.prior=vamp"], "did you mean 'model'?"),
        (["train", "objective=m2"], "objective: m2 trains the classifier of a latent label, but"),
        (["train", "objective.nats=2"], "no such field of ELBO. Choices: kl, num_particles, warm"),
        (
            ["train", "model.label=conditon"],
            "'cluster'; did you mean 'condition'? (got 'conditon')",
        ),
        (["train", "train.learning_rate=fast"], "learning_rate: expected a number (got 'fast')"),
        (["train", "data.missing=1.5"], "data.missing: expected a number below 1 (got 1.5)"),
        (
            ["train", "model.likelihood=categorical"],
            "set data.binarize=none and model.likelihood.levels=17, or",
        ),
        (["train", "model.likelihood=beta"], "set data.binarize=none and data.dequantize=uniform"),
        (
            ["train", "model.likelihood=poisson"],
            "has values in {0, 1}; set model.likelihood=bernoulli or",
        ),
        (["train", "train.epochs=many"], "train.epochs: expected an integer"),
        (["train", "train.epochs=0"], "train.epochs: expected a number above 0 (got 0)"),
        (["train", "train.learning_rate=nan"], "train.learning_rate: "),
        (["train", "train.optimizer=adamm"], "optimizer: 'adamm' is unknown"),
        (["train", "train.optimizer_options.beta=3"], "'beta' is unknown to adam"),
        (["train", "model.prior={name: vamp, components"], "not readable as YAML"),
        (["train", "model.encoder.hidden=*x"], "not readable as YAML"),
        (["train", "model.prior=vamp", "model.guide=iaf"], "guides that fit: coupling, full_"),
        (["train", "model.data_shape=[3]"], "model.data_shape: (3,), but a datum of 'digits'"),
        (["train", "model.encoder={name: conv, channels: [1, 1, 1, 1, 1]}"], "below one pixel"),
        (["train", "train.batch_size=99999"], "train.batch_size: 99999, but there are only"),
        (["train", "objective.warmup_epochs=999"], "objective.warmup_epochs: 999, longer than"),
        (["train", "train.device=tpu"], "train.device: 'tpu' is not on this machine"),
        (["train", "data.binarization_seed=-1"], "data.binarization_seed: "),
        (["train", "--resume"], "--resume: give --out DIR"),
        (["train", "--out"], "--out: expected one argument"),
        (["train", "--fast"], "unrecognized arguments: --fast"),
        (["train", "--import", "no_such_module"], "--import no_such_module: ModuleNotFoundError"),
        (["train", "--import", "none.py"], "--import none.py: no such file"),
        (["list", "prior"], "no family is called 'prior'; did you mean 'priors'?"),
        (["evaluate", "nowhere"], "nowhere: no such run folder"),
        (["compare", "nowhere"], "compare: give at least two runs"),
        (["generate"], "the following arguments are required: RUN"),
    ],
)
def test_wrong_requests(arguments, part, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(arguments, capsys, part)
    assert files_of(tmp_path) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_an_absent_device(capsys, tmp_path, run):
    refused(["train", "train.device=cuda", "--out", tmp_path / "x"], capsys, "train.device: 'cuda'")
    assert not (tmp_path / "x").exists()
    refused(["evaluate", run, "--device", "cuda"], capsys, "--device: 'cuda'")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("train: {epochs: 3", "line 1, column"),
        ("train: {epochs: 3}\ntrain: {epochs: 4}", "the key 'train' stands twice"),
        ("- 1\n- 2", "expected a mapping of sections"),
        ("train: &a [*a]", "aliases are not supported"),
        ("!!python/object/apply:os.system ['true']", "not readable as YAML"),
        ("model: !!python/name:os.system", "not readable as YAML"),
        ("train: {seed: 1e400}", "train.seed: "),
        ("[" * 5000, "not readable as YAML"),
        ("model: {prior: [vamp]}", "model.prior: expected the name of a prior"),
        ("model: 3", "model: "),
        ("train: {epochs: 2024-01-01}", "train.epochs: "),
        ("{1: 2}", "no such field of ExperimentSpec"),
        ("a" * 1_000_001, "larger than"),
    ],
)
def test_malformed_and_hostile_yaml(text, part, capsys, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    refused(["train", path, "--out", tmp_path / "run"], capsys, part)
    assert files_of(tmp_path) == {path: text.encode()}


def test_yaml_that_is_not_text(capsys, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    refused(["train", path], capsys, "cannot be read as text")


# The data ----------------------------------------------------------------------------------------

X = np.random.default_rng(0).integers(0, 2, (40, 4, 4)).astype("float32")


def with_value(value):
    x = X.copy()
    x[7, 1, 2] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"train": with_value(np.nan), "test": X}, "set model.missing=true"),
        ({"train": X, "test": with_value(np.inf)}, "infinit"),
        ({"train": X[:0], "test": X}, "empty"),
        ({"train": X, "test": X[:, :3]}, "shape"),
        ({"train": np.float32(1.0), "test": X}, "shape"),
        ({"train": X * 0.5, "test": X}, "bernoulli"),
        ({"train": X, "test": X, "train_labels": np.zeros(39, "int64")}, "39"),
        ({"train": X[:1], "test": X}, "one example"),
        ({"train": X[:5], "test": X}, "train.batch_size: 20, but there are only"),
        ({"test": X, "validation": X}, "expected 'train'"),
        ({"train": X.astype("complex64"), "test": X}, "complex"),
        ({"train": np.array([["a"]]), "test": X}, "train"),
    ],
)
def test_unfit_arrays(arrays, part, capsys, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    lines = train_arrays(path, tmp_path, capsys, part)
    assert all("Traceback" not in line for line in lines)


def train_arrays(path, tmp_path, capsys, part):
    before = files_of(tmp_path)
    request = ["train", *SMALL, "data=arrays", f"data.path={path}", "train.batch_size=20"]
    request += ["model.likelihood=bernoulli", "--out", tmp_path / "run"]
    lines = refused(request, capsys, part)
    assert files_of(tmp_path) == before
    return lines


@pytest.mark.parametrize("name", ["data.npz", "data.npy", "data.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip", b"\x93NUMPY\x01"])
def test_missing_and_corrupt_data_files(name, content, capsys, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    train_arrays(path, tmp_path, capsys, name)


def test_an_array_of_objects_is_not_unpickled(capsys, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, train=np.array([{"a": 1}], dtype=object), test=X)
    train_arrays(path, tmp_path, capsys, "data.npz")


def test_grey_data_under_a_bernoulli_names_the_ways_out(capsys, tmp_path):
    request = ["train", "digits", "data.binarize=none", "model.likelihood=bernoulli"]
    lines = refused([*request, "--out", tmp_path / "run"], capsys, "bernoulli")
    assert "gaussian" in " ".join(lines)
    assert not (tmp_path / "run").exists()


# The run folder ----------------------------------------------------------------------------------


def test_an_output_folder_that_holds_another_run(run, capsys, tmp_path):
    before = files_of(run)
    refused(["train", *SMALL, "--out", run], capsys, "holds another run", "--resume")
    assert files_of(run) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    refused(["train", *SMALL, "--out", tmp_path / "full"], capsys, "is not empty")
    refused(["train", *SMALL, "--out", tmp_path / "full" / "notes.txt"], capsys, "is a file")


READERS = {
    "spec.yaml": ["evaluate", "generate", "latent", "compare", "resume"],
    "model.safetensors": ["evaluate", "generate", "latent", "compare"],
    "evaluation.json": ["compare"],
    "evaluation.safetensors": ["compare"],
    "summary.json": ["resume"],
    "checkpoint/state.safetensors": ["longer"],
}


@pytest.mark.parametrize(
    ("name", "command"), [(name, command) for name, all_ in READERS.items() for command in all_]
)
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_run_folder_that_lacks_a_file_or_has_a_damaged_one(
    name, command, damage, run, trained, capsys
):
    path = run / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] + b"\x00{")
    if (name, damage) == ("summary.json", "missing"):  # an unfinished run: resume mends it
        assert main(["train", "--out", str(run), "--resume", "--quiet"]) == 0
        assert path.exists()
        return
    before = files_of(run)
    arguments = {
        "compare": ["compare", trained / "vamp", run],
        "resume": ["train", "--out", run, "--resume"],
        "longer": ["train", "--out", run, "--resume", "train.epochs=3"],
    }.get(command, [command, run])
    part = "holds no run" if (name, command, damage) == ("spec.yaml", "resume", "missing") else None
    refused(arguments, capsys, part or Path(name).parts[0])
    assert files_of(run) == before


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_resume_mends_weights_and_metrics_from_the_checkpoint(run, trained, damage):
    for name in ("model.safetensors", "metrics.jsonl", "summary.json"):
        if damage == "missing":
            (run / name).unlink()
        elif name == "metrics.jsonl":
            (run / name).write_text("{")
        else:
            (run / name).unlink()
    assert main(["train", "--out", str(run), "--resume", "--quiet"]) == 0
    for name in ("model.safetensors", "metrics.jsonl"):
        assert (run / name).read_bytes() == (trained / "a" / name).read_bytes()


def test_resume_with_a_changed_spec_names_the_fields(run, capsys):
    before = files_of(run)
    changes = ["train.seed=3", "model.prior=vamp", "train.epochs=1"]
    lines = refused(
        ["train", "--out", run, "--resume", *changes],
        capsys,
        "train.seed: 0 in",
        "model.prior.name: standard_normal in",
        "train.epochs: 2 in",
    )
    assert any("epochs may only grow" in line for line in lines)
    assert files_of(run) == before


def test_resume_of_a_schedule_that_depends_on_the_end_cannot_grow(capsys, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *SMALL, "train.schedule=cosine", "--out", str(out)]) == 0
    capsys.readouterr()
    longer = ["train", "--out", out, "--resume", "train.epochs=4"]
    refused(longer, capsys, "schedule 'cosine' depends on the number of epochs")


def test_resume_where_no_run_is(capsys, tmp_path):
    refused(["train", "--out", tmp_path / "x", "--resume"], capsys, "holds no run to resume")
    assert not (tmp_path / "x").exists()


def test_no_samples_and_other_wrong_evaluations(run, capsys):
    before = files_of(run)
    refused(["evaluate", run, "--samples", "0"], capsys, "num_samples: expected a number above 0")
    refused(["evaluate", run, "--samples", "x"], capsys, "invalid int value: 'x'")
    refused(["evaluate", run, "--estimator", "importanc"], capsys, "did you mean 'importance'?")
    refused(["evaluate", run, "--split", "tset"], capsys, "evaluate.split: expected")
    refused(["generate", run, "--out", run / "a.jpg"], capsys, ".png")
    assert files_of(run) == before


def test_compare_refuses_other_data_and_the_same_run_twice(run, trained, capsys):
    refused(["compare", run, run], capsys, "given twice")
    split = ["--split", "validation", "--samples", "5", "--quiet"]
    assert main(["evaluate", str(run), *split]) == 0
    lines = refused(["compare", trained / "vamp", run], capsys, "evaluated with split validation")
    assert str(run) in lines[0]
    assert str(trained / "vamp") in lines[0]
