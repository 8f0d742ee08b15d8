"""Every preset trains and is evaluated, shortened and on small data."""

from __future__ import annotations

import numpy as np
import pytest

from pyro_vae.app.evaluate import evaluate
from pyro_vae.app.experiment import load_experiment, presets
from pyro_vae.app.probe import probe
from pyro_vae.app.train import train

SHORT = ["train.epochs=1", "train.batch_size=50", "data.train_size=100", "data.test_size=20"]
OF_FILES = ("topics", "counts")
OF_POINTS = ("autoencoder_mnist",)  # no density, so no log p(x)


def small(name, folder):
    """The preset with digits in the place of data that are not here, or with an array made here."""
    whole = load_experiment(name)
    data = whole.to_dict()["data"]
    changes = list(SHORT)
    if name in OF_FILES:
        rng = np.random.default_rng(0)
        path = folder / "made.npz"
        rate = rng.gamma(2.0, 1.0, (150, 12))
        np.savez(path, x=rng.poisson(rate), exposure=rng.uniform(0.5, 2.0, 150))
        changes += [f"data.path={path}", "data.test=20"]
    else:
        kept = ("binarize", "dequantize", "labelled", "repeat_labelled", "missing")
        changes += ["data.name=digits", "data.validation=50"]
        changes += [f"data.{key}={data[key]}" for key in kept if data.get(key)]
        if data["name"] == "binarized_mnist":
            changes.append("data.binarize=threshold")
        if data.get("labelled"):
            changes.append("data.labelled=20")
        held = whole.model.prior
        if getattr(held, "components", 0) > 20:
            changes.append("model.prior.components=20")
    for warmup in ("warmup_epochs", "warmup_steps"):
        if getattr(whole.objective, warmup, 0):
            changes.append(f"objective.{warmup}=1")
    if whole.train.patience:
        changes.append("train.patience=1")
    return load_experiment(name, changes)


@pytest.mark.parametrize("name", presets())
def test_a_preset_trains_and_is_evaluated(name, tmp_path):
    spec = small(name, tmp_path)
    run = train(spec, tmp_path / "run", progress=False)
    assert run.finished
    assert (
        train(spec, run.path, resume=True).path == run.path
    )  # what came from the data is no change
    assert (run.pictures / "samples.png").exists()
    if name in OF_POINTS:
        found = probe(run)
        assert [one.num_features for one in found] == [50, 50, 64]
        return
    if name == "m2_mnist":
        assert [one.num_features for one in probe(run, num_train=50)] == [50, 50, 64]
    changes = ["global_draws=2"]
    estimate, summary = evaluate(
        run, estimator="importance", samples=20, changes=changes, progress=False
    )
    assert estimate.num_data == 20
    assert np.isfinite(summary["log_px"])


def test_m2_weighs_its_classifier_as_its_comment_says():
    """Ten times 0.1 N for the mean over all labelled data (arXiv:1406.5298, eq. 9), N = 60,000."""
    spec = load_experiment("m2_mnist")
    labelled = spec.data.labelled * spec.data.repeat_labelled
    assert spec.objective.alpha * labelled == pytest.approx(10 * 0.1 * 60_000)
    share = labelled / (60_000 - spec.data.labelled + labelled)
    assert 18 < share * spec.train.batch_size < 19
