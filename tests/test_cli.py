"""The command line: what it does, what it refuses, and with which exit code."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import pyro_vae as pv
from pyro_vae.app.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
SMALL = [
    "model.latent_dim=2",
    "model.encoder.hidden=[8]",
    "model.decoder.hidden=[8]",
    "train.epochs=2",
    "--quiet",
]
KEYS = [
    *("quantity", "estimator", "num_samples", "num_data", "split", "data_fingerprint", "log_px"),
    *("mc_std_error", "bias_estimate", "test_std_error", "bias_direction", "khat_bad_share"),
    *("khat_threshold", "median_ess", "elbo", "seconds"),
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Two threads wait for each other when anything else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three evaluated runs: two seeds of one model, and another prior."""
    root = tmp_path_factory.mktemp("runs")
    for name, extra in {
        "a": [],
        "b": ["train.seed=1"],
        "vamp": ["model.prior.components=5", "model.prior=vamp"],
    }.items():
        assert main(["train", "digits", *SMALL, *extra, "--out", str(root / name)]) == 0
        assert main(["evaluate", str(root / name), "--samples", "20", "--quiet"]) == 0
    return root


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a trained run, to be damaged."""
    return Path(shutil.copytree(trained / "a", tmp_path / "run"))


@pytest.fixture
def said(capsys):
    """What was printed since the last look: (out, err)."""
    capsys.readouterr()
    return capsys.readouterr


def files_of(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def refused(arguments, said, *parts, code=2):
    """The command fails with `code`, and each part stands on one of its lines on stderr."""
    assert main([str(argument) for argument in arguments]) == code
    lines = said().err.splitlines()
    assert lines
    assert all(line.startswith("pyro-vae: ") for line in lines), lines
    for part in parts:
        assert any(part in line for line in lines), (part, lines)
    return lines


# What it does ----------------------------------------------------------------------------------


def test_a_run_folder_holds_what_is_promised(trained):
    held = {item.name for item in (trained / "a").iterdir()}
    assert held == {
        "spec.yaml",
        "model.safetensors",
        "metrics.jsonl",
        "summary.json",
        "checkpoint",
        "pictures",
        "evaluation.safetensors",
        "evaluation.json",
    }
    rows = [json.loads(line) for line in (trained / "a" / "metrics.jsonl").open()]
    assert [row["epoch"] for row in rows] == [1, 2]
    spec = pv.ExperimentSpec.from_dict(
        __import__("yaml").safe_load((trained / "a/spec.yaml").open())
    )
    assert spec.train.engine == "eager"
    assert spec.model.data_shape == (8, 8)
    summary = json.loads((trained / "a" / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["epochs_run"] == 2
    assert {"learning_curves.png", "samples.png", "manifold.png"} <= {
        item.name for item in (trained / "a" / "pictures").iterdir()
    }


def test_evaluation_holds_the_promised_keys(trained):
    summary = json.loads((trained / "a" / "evaluation.json").read_text())
    assert summary.keys() >= set(KEYS)
    assert summary["num_samples"] == 20
    arrays = load_file(trained / "a" / "evaluation.safetensors")
    assert float(arrays["value"].mean()) == pytest.approx(summary["log_px"], abs=1e-12)
    total = float(arrays["std_error"].square().sum().sqrt()) / summary["num_data"]
    assert total == pytest.approx(summary["mc_std_error"])
    kl = sum(summary["kl"].values())
    error = 10 * summary["bound_std_error"]
    assert summary["reconstruction"] - kl == pytest.approx(summary["bound"], abs=error)


def test_evaluate_says_how_far_to_trust(trained, tmp_path, said):
    run = shutil.copytree(trained / "a", tmp_path / "run")
    assert main(["evaluate", str(run), "--samples", "1", "--split", "validation", "--quiet"]) == 0
    out = said().out
    assert "How far to trust it: log p(x) =" in out
    assert "One sample tells nothing" in " ".join(out.split())
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["split"] == "validation"
    assert summary["mc_std_error"] is None  # unknown is null, never 0


def test_training_is_determined_by_its_seed_and_leaves_the_caller_alone(trained, tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert main(["train", "digits", *SMALL, "--out", str(tmp_path / "again")]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    first, again = (load_file(f / "model.safetensors") for f in (trained / "a", tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = load_file(trained / "b" / "model.safetensors")
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_compare_groups_seeds_and_pairs_data(trained, said):
    runs = [str(trained / name) for name in ("a", "b", "vamp")]
    assert main(["compare", *runs]) == 0
    out = " ".join(said().out.split())
    assert "prior=standard_normal 2 -" in out
    assert "prior=vamp 1 -" in out
    assert "paired standard errors" in out


def test_a_difference_and_its_errors():
    from pyro_vae.app.compare import Difference, Model

    a = Model(
        "a", (None, None), torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 6.0]]), torch.zeros(2, 3)
    )
    b = Model("b", (None,), torch.tensor([[0.0, 1.0, 2.0]]), torch.zeros(1, 3))
    both = Difference(a, b)
    assert both.mean == pytest.approx((1 + 1 + 2.5) / 3)
    assert both.std_error == pytest.approx(np.std([1, 1, 2.5], ddof=1) / math.sqrt(3), rel=1e-6)
    assert a.seed_std == pytest.approx(np.std([2, 3], ddof=1), rel=1e-6)
    assert math.isnan(b.seed_std)
    assert math.isnan(both.seed_std_error)
    assert "higher, more than 2 paired standard errors; for these trained weights" in both.words
    assert "within 2 paired standard errors" in Difference(b, b).words


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("generate", ["samples.png"]),
        ("reconstruct", ["reconstructions.png"]),
        ("traverse", ["traversals.png"]),
        ("latent", ["latent_scatter.png", "manifold.png"]),
    ],
)
def test_pictures(command, names, run, said, tmp_path):
    shutil.rmtree(run / "pictures")
    assert main([command, str(run)]) == 0
    printed = [Path(line) for line in said().out.splitlines()]
    assert printed == [run / "pictures" / name for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in printed)
    assert main([command, str(run), "--out", str(tmp_path / "mine.png"), "--seed", "3"]) == 0
    assert (tmp_path / "mine.png").exists()


def test_resume_of_a_finished_run_has_nothing_to_do(run, said):
    before = files_of(run)
    assert main(["train", "--out", str(run), "--resume", "--quiet"]) == 0
    assert "nothing left to do" in said().out
    assert files_of(run) == before


def test_resume_with_more_epochs_equals_a_longer_training(run, tmp_path):
    longer = ["train.epochs=3", "--quiet"]
    assert main(["train", "--out", str(run), "--resume", *longer]) == 0
    fresh = tmp_path / "fresh"
    assert main(["train", "digits", *SMALL, *longer, "--out", str(fresh)]) == 0
    assert (run / "model.safetensors").read_bytes() == (fresh / "model.safetensors").read_bytes()
    assert (run / "spec.yaml").read_bytes() == (fresh / "spec.yaml").read_bytes()
    lines = [[json.loads(line) for line in (f / "metrics.jsonl").open()] for f in (run, fresh)]
    for row in lines[0] + lines[1]:
        del row["seconds"]
    assert lines[0] == lines[1]


def test_resume_of_a_run_killed_before_its_first_checkpoint_starts_it(trained, tmp_path, said):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained / "a" / "spec.yaml", run)
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    assert main(["train", "--out", str(run), "--resume", "--quiet"]) == 0
    assert "starting from the first step" in said().out
    name = "model.safetensors"
    assert (run / name).read_bytes() == (trained / "a" / name).read_bytes()


def test_a_component_of_ones_own_through_import(tmp_path, said):
    module = tmp_path / "wide_prior.py"
    module.write_text(
        "import pyro.distributions as dist, torch\n"
        "from pyro_vae.priors.base import Prior, PriorModule\n"
        "class WidePrior(Prior, name='wide'):\n"
        "    '''p(z) = N(0, scale^2).'''\n"
        "    scale: float = 2.0\n"
        "    def build(self, shapes):\n"
        "        module = PriorModule(shapes)\n"
        "        normal = dist.Normal(torch.zeros(shapes.latent), self.scale).to_event(1)\n"
        "        module.distribution = lambda y=None: normal\n"
        "        return module\n"
    )
    out, own = str(tmp_path / "run"), ["--import", str(module)]
    train = ["train", *SMALL, "model.prior=wide", "train.epochs=1", "--out", out]
    refused(train, said, "no prior is called 'wide'")
    try:
        assert main([*train, *own]) == 0
        assert main(["generate", out, *own]) == 0
        assert main(["list", "priors", *own]) == 0
        assert "N(0, scale^2)" in said().out
    finally:  # what is registered stays so for the life of the process
        pv.Prior.registry._members.pop("wide")
        sys.modules.pop("wide_prior")
    refused(["evaluate", out], said, "no prior is called 'wide'", "--import")


@pytest.mark.parametrize("family", [None, "priors", "datasets", "presets", "estimators"])
def test_list(family, said):
    assert main(["list", *([family] if family else [])]) == 0
    out = said().out
    assert ("pseudo-inputs" in " ".join(out.split())) == (family in (None, "priors", "presets"))
    assert ("num_samples" in out) == (family in (None, "estimators"))


def test_schema_is_a_json_schema(said):
    assert main(["schema"]) == 0
    schema = json.loads(said().out)
    assert set(schema["properties"]) == {"data", "model", "objective", "train", "evaluate"}
    assert "vamp" in json.dumps(schema)


# One process per exit code, as a shell sees them ------------------------------------------------


def shell(arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pyro_vae", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
    )


def test_exit_code_0_help_without_torch(tmp_path):
    (tmp_path / "torch.py").write_text("raise SystemExit('help imports torch')")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        done = shell(arguments, PYTHONPATH=path)
        assert done.returncode == 0, done.stderr
        assert "pyro-vae" in done.stdout
    assert all(name in shell(["--help"]).stdout for name in COMMANDS)


def test_exit_code_2_without_traceback(tmp_path):
    done = shell(["train", "model.prior=vampp", "--out", tmp_path / "run"])
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "pyro-vae: model.prior: no prior is called 'vampp'; did you mean 'vamp'? "
        "Choices: gaussian_mixture, standard_normal, vamp"
    ]
    assert not (tmp_path / "run").exists()


def test_exit_code_1_of_a_run_that_fails(tmp_path):
    run = tmp_path / "run"
    done = shell(["train", *SMALL, "train.learning_rate=1e30", "--out", run])
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "training stopped: " in done.stderr
    assert f"{run}/checkpoint holds the state after" in done.stderr
    assert f"pyro-vae train --out {run} --resume" in done.stderr


def test_an_interrupted_training_says_how_to_go_on(tmp_path, said, monkeypatch):
    import inference

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "fit", interrupted)
    out = tmp_path / "run"
    refused(["train", *SMALL, "--out", out], said, f"--out {out} --resume", code=1)


# What it refuses: the request --------------------------------------------------------------------


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
        (["train", "train.epochs=many"], "train.epochs: input should be a valid integer"),
        (["train", "train.epochs=0"], "train.epochs: input should be greater than 0 (got 0)"),
        (["train", "train.learning_rate=nan"], "train.learning_rate: "),
        (["train", "train.optimizer=adamm"], "optimizer: 'adamm' is unknown"),
        (["train", "train.optimizer_options.beta=3"], "unexpected keyword argument 'beta'"),
        (["train", "model.prior={name: vamp, components"], "not readable as YAML"),
        (["train", "model.encoder.hidden=*x"], "not readable as YAML"),
        (["train", "model.prior=vamp", "model.guide=iaf"], "guides that fit: full_rank, mean_fi"),
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
def test_wrong_requests(arguments, part, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(arguments, said, part)
    assert files_of(tmp_path) == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_an_absent_device(said, tmp_path, run):
    refused(["train", "train.device=cuda", "--out", tmp_path / "x"], said, "train.device: 'cuda'")
    assert not (tmp_path / "x").exists()
    refused(["evaluate", run, "--device", "cuda"], said, "--device: 'cuda'")


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
def test_malformed_and_hostile_yaml(text, part, said, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    refused(["train", path, "--out", tmp_path / "run"], said, part)
    assert files_of(tmp_path) == {path: text.encode()}


def test_yaml_that_is_not_text(said, tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    refused(["train", path], said, "cannot be read as text")


# What it refuses: the data -----------------------------------------------------------------------

X = np.random.default_rng(0).integers(0, 2, (40, 4, 4)).astype("float32")


def with_value(value):
    x = X.copy()
    x[7, 1, 2] = value
    return x


@pytest.mark.parametrize(
    ("arrays", "part"),
    [
        ({"train": with_value(np.nan), "test": X}, "NaN"),
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
def test_unfit_arrays(arrays, part, said, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    lines = train_arrays(path, tmp_path, said, part)
    assert all("Traceback" not in line for line in lines)


def train_arrays(path, tmp_path, said, part):
    before = files_of(tmp_path)
    request = ["train", *SMALL, "data=arrays", f"data.path={path}", "train.batch_size=20"]
    request += ["model.likelihood=bernoulli", "--out", tmp_path / "run"]
    lines = refused(request, said, part)
    assert files_of(tmp_path) == before
    return lines


@pytest.mark.parametrize("name", ["data.npz", "data.npy", "data.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 not a zip", b"\x93NUMPY\x01"])
def test_missing_and_corrupt_data_files(name, content, said, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    train_arrays(path, tmp_path, said, name)


def test_an_array_of_objects_is_not_unpickled(said, tmp_path):
    path = tmp_path / "data.npz"
    np.savez(path, train=np.array([{"a": 1}], dtype=object), test=X)
    train_arrays(path, tmp_path, said, "data.npz")


def test_grey_data_under_a_bernoulli_names_the_ways_out(said, tmp_path):
    request = ["train", "digits", "data.binarize=none", "model.likelihood=bernoulli"]
    lines = refused([*request, "--out", tmp_path / "run"], said, "bernoulli")
    assert "gaussian" in " ".join(lines)
    assert not (tmp_path / "run").exists()


# What it refuses: the run folder -----------------------------------------------------------------


def test_an_output_folder_that_holds_another_run(run, said, tmp_path):
    before = files_of(run)
    refused(["train", *SMALL, "--out", run], said, "holds another run", "--resume")
    assert files_of(run) == before
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    refused(["train", *SMALL, "--out", tmp_path / "full"], said, "is not empty")
    refused(["train", *SMALL, "--out", tmp_path / "full" / "notes.txt"], said, "is a file")


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
    name, command, damage, run, trained, said
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
    refused(arguments, said, part or Path(name).parts[0])
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


def test_resume_with_a_changed_spec_names_the_fields(run, said):
    before = files_of(run)
    changes = ["train.seed=3", "model.prior=vamp", "train.epochs=1"]
    lines = refused(
        ["train", "--out", run, "--resume", *changes],
        said,
        "train.seed: 0 in",
        "model.prior.name: standard_normal in",
        "train.epochs: 2 in",
    )
    assert any("epochs may only grow" in line for line in lines)
    assert files_of(run) == before


def test_resume_of_a_schedule_that_depends_on_the_end_cannot_grow(said, tmp_path):
    out = tmp_path / "run"
    assert main(["train", *SMALL, "train.schedule=cosine", "--out", str(out)]) == 0
    said()
    longer = ["train", "--out", out, "--resume", "train.epochs=4"]
    refused(longer, said, "schedule 'cosine' depends on the number of epochs")


def test_resume_where_no_run_is(said, tmp_path):
    refused(["train", "--out", tmp_path / "x", "--resume"], said, "holds no run to resume")
    assert not (tmp_path / "x").exists()


def test_no_samples_and_other_wrong_evaluations(run, said):
    before = files_of(run)
    refused(["evaluate", run, "--samples", "0"], said, "num_samples: input should be greater than")
    refused(["evaluate", run, "--samples", "x"], said, "invalid int value: 'x'")
    refused(["evaluate", run, "--estimator", "importanc"], said, "did you mean 'importance'?")
    refused(["evaluate", run, "--split", "tset"], said, "evaluate.split: input should be")
    refused(["generate", run, "--out", run / "a.jpg"], said, ".png")
    assert files_of(run) == before


def test_compare_refuses_other_data_and_the_same_run_twice(run, trained, said):
    refused(["compare", run, run], said, "given twice")
    split = ["--split", "validation", "--samples", "5", "--quiet"]
    assert main(["evaluate", str(run), *split]) == 0
    lines = refused(["compare", trained / "vamp", run], said, "data_fingerprint")
    assert str(run) in lines[0]
    assert str(trained / "vamp") in lines[0]
