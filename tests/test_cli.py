"""The command line: what each command does, and its exit codes as a shell sees them."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_runs import ROOT, SMALL, files_of, refused, rows_of, shell, trained_runs
from safetensors.torch import load_file

import pyro_vae as pv
from pyro_vae.app.cli import COMMANDS, main
from pyro_vae.yaml_files import load_yaml

KEYS = [
    *("quantity", "estimator", "num_samples", "num_data", "split", "data_fingerprint", "log_px"),
    *("mc_std_error", "bias_estimate", "test_std_error", "bias_direction", "khat_bad_share"),
    *("khat_threshold", "median_ess", "elbo", "seconds"),
]


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
    assert [row["epoch"] for row in rows_of(trained / "a")] == [1, 2]
    spec = pv.ExperimentSpec.from_dict(load_yaml(trained / "a" / "spec.yaml"))
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


def test_evaluate_says_how_far_to_trust(trained, tmp_path, capsys):
    run = shutil.copytree(trained / "a", tmp_path / "run")
    assert main(["evaluate", str(run), "--samples", "1", "--split", "validation", "--quiet"]) == 0
    out = capsys.readouterr().out
    assert "How far to trust it: log p(x) =" in out
    assert "One sample tells nothing" in " ".join(out.split())
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["split"] == "validation"
    assert summary["mc_std_error"] is None  # unknown is null, never 0


def test_bits_per_dimension_are_on_the_scale_of_the_levels(tmp_path, capsys):
    request = ["data.dequantize=uniform", "data.binarize=none", "model.likelihood=gaussian"]
    run = tmp_path / "run"
    assert main(["train", "digits", *SMALL, *request, "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--samples", "10", "--quiet"]) == 0
    assert "upper bound, 0-16 scale" in capsys.readouterr().out
    summary = json.loads((run / "evaluation.json").read_text())
    log_prob = summary["log_px"] - 64 * math.log(17)  # of the levels 0 to 16, with noise on top
    assert summary["bits_per_dim"] == pytest.approx(-log_prob / (64 * math.log(2)))
    assert 0 < summary["bits_per_dim"] < math.log2(17) + 1


def test_bits_per_dimension_of_a_likelihood_of_levels(tmp_path, capsys):
    request = ["data.binarize=none", "model.likelihood={name: discretized_logistic, levels: 17}"]
    run = tmp_path / "run"
    assert main(["train", "digits", *SMALL, *request, "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--samples", "10", "--quiet"]) == 0
    assert "upper bound, 0-16 scale" not in capsys.readouterr().out
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["bits_per_dim"] == pytest.approx(-summary["log_px"] / (64 * math.log(2)))
    assert summary["bits_per_dim_kind"] == "code length of the discrete data"
    assert not [said for said in summary["warnings"] if "noise" in said]


def test_training_is_determined_by_its_seed_and_leaves_the_caller_alone(trained, tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    assert main(["train", "digits", *SMALL, "--out", str(tmp_path / "again")]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    first, again = (load_file(f / "model.safetensors") for f in (trained / "a", tmp_path / "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    other = load_file(trained / "b" / "model.safetensors")
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_compare_groups_seeds_and_pairs_data(trained, capsys):
    runs = [str(trained / name) for name in ("a", "b", "vamp")]
    assert main(["compare", *runs]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "prior=standard_normal 2 -" in out
    assert "prior=vamp 1 -" in out
    assert "Difference from the highest" in out
    # Twenty samples are too few for k-hat.
    assert "importance, K=20 unknown 100%" in out
    assert "k-hat is unknown, for want of samples, for 100% of the data" in out


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("generate", ["samples.png"]),
        ("reconstruct", ["reconstructions.png"]),
        ("traverse", ["traversals.png"]),
        ("latent", ["latent_scatter.png", "manifold.png"]),
    ],
)
def test_pictures(command, names, run, capsys, tmp_path):
    shutil.rmtree(run / "pictures")
    assert main([command, str(run)]) == 0
    printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [run / "pictures" / name for name in names]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in printed)
    assert main([command, str(run), "--out", str(tmp_path / "mine.png"), "--seed", "3"]) == 0
    assert (tmp_path / "mine.png").exists()


def test_generate_needs_no_data_where_the_range_is_known(run, monkeypatch):
    def gone(self):
        raise AssertionError("the data were loaded")

    monkeypatch.setattr("pyro_vae.data.digits.Digits.load", gone)
    assert main(["generate", str(run)]) == 0


def test_everything_is_told_in_relative_paths_and_80_columns(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["train", "digits", *SMALL]) == 0
    run = "runs/0001-digits"
    assert main(["evaluate", run, "--samples", "5", "--quiet"]) == 0
    assert main(["generate", run]) == 0
    said = capsys.readouterr()
    text = said.out + said.err
    assert str(tmp_path) not in text.replace("\n", "")
    assert f"Next: pyro-vae evaluate {run}" in " ".join(text.split())
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())


def test_predicted_sigmas_at_the_floor_are_counted(tmp_path, capsys):
    request = ["data.binarize=none", "model.likelihood={name: gaussian, sigma: predicted}"]
    run = tmp_path / "run"  # the corners of the digits are always empty
    assert main(["train", "digits", *SMALL, *request, "--out", str(run)]) == 0
    assert main(["evaluate", str(run), "--samples", "5", "--quiet"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "stand at their floor of 0.01" in out
    [said] = [
        text
        for text in json.loads((run / "evaluation.json").read_text())["warnings"]
        if "floor of 0.01" in text
    ]
    assert "sigmas predicted for" in said


def test_data_without_a_test_split(tmp_path, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(30, 5)))
    run, own = str(tmp_path / "run"), f"data={{name: arrays, path: {tmp_path / 'x.npy'}}}"
    request = ["train", *SMALL, own, "model.likelihood=gaussian", "train.batch_size=9"]
    assert main([*request, "--out", run]) == 0
    assert main(["latent", run]) == 0
    refused(["evaluate", run], capsys, "no test data", "Choices: train")
    assert main(["evaluate", run, "--split", "train", "--samples", "5", "--quiet"]) == 0
    assert "fitted to these data" in " ".join(capsys.readouterr().out.split())


def test_resume_of_a_finished_run_has_nothing_to_do(run, capsys):
    before = files_of(run)
    assert main(["train", "--out", str(run), "--resume", "--quiet"]) == 0
    assert "nothing left to do" in capsys.readouterr().out
    assert files_of(run) == before


def test_resume_with_more_epochs_equals_a_longer_training(run, tmp_path):
    longer = ["train.epochs=3", "--quiet"]
    assert main(["train", "--out", str(run), "--resume", *longer]) == 0
    fresh = tmp_path / "fresh"
    assert main(["train", "digits", *SMALL, *longer, "--out", str(fresh)]) == 0
    assert (run / "model.safetensors").read_bytes() == (fresh / "model.safetensors").read_bytes()
    assert (run / "spec.yaml").read_bytes() == (fresh / "spec.yaml").read_bytes()
    resumed, straight = rows_of(run), rows_of(fresh)
    for row in resumed + straight:
        del row["seconds"]
    assert resumed == straight


def test_resume_of_a_run_killed_before_its_first_checkpoint_starts_it(trained, tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(trained / "a" / "spec.yaml", run)
    (run / "metrics.jsonl").write_text('{"epoch": 1}\n{"epo')
    assert main(["train", "--out", str(run), "--resume", "--quiet"]) == 0
    assert "starting from the first step" in capsys.readouterr().out
    name = "model.safetensors"
    assert (run / name).read_bytes() == (trained / "a" / name).read_bytes()


def test_a_component_of_ones_own_through_import(tmp_path, capsys):
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
    refused(train, capsys, "no prior is called 'wide'")
    try:
        assert main([*train, *own]) == 0
        assert main(["generate", out, *own]) == 0
        assert main(["list", "priors", *own]) == 0
        assert "N(0, scale^2)" in capsys.readouterr().out
    finally:  # what is registered stays so for the life of the process
        pv.Prior.registry._members.pop("wide")
        sys.modules.pop("wide_prior")
    refused(["evaluate", out], capsys, "no prior is called 'wide'", "--import")


@pytest.mark.parametrize("family", [None, "priors", "datasets", "presets", "estimators"])
def test_list(family, capsys):
    assert main(["list", *([family] if family else [])]) == 0
    out = capsys.readouterr().out
    assert ("pseudo-inputs" in " ".join(out.split())) == (family in (None, "priors", "presets"))
    assert ("num_samples" in out) == (family in (None, "estimators"))


def test_schema_is_a_json_schema(capsys):
    assert main(["schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == {"data", "model", "objective", "train", "evaluate"}
    assert "vamp" in json.dumps(schema)


# One process per exit code, as a shell sees them ------------------------------------------------


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
        f"Choices: {', '.join(pv.Prior.registry)}"
    ]
    assert not (tmp_path / "run").exists()


def test_exit_code_1_of_a_run_that_fails(tmp_path, capsys):
    run = tmp_path / "run"
    assert main(["train", *SMALL, "train.learning_rate=1e30", "--out", str(run)]) == 1
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert "training stopped: " in told
    assert f"{run}/checkpoint holds the state after" in told
    assert f"pyro-vae train --out {run} --resume" in told


def test_an_interrupted_training_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    import inference

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "fit", interrupted)
    out = tmp_path / "run"
    refused(["train", *SMALL, "--out", out], capsys, f"--out {out} --resume", code=1)
