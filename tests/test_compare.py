"""Comparisons: paired differences, and what must keep one from being called settled."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import pyro_vae as pv
from pyro_vae.app.compare import Difference, Model, compare, report
from pyro_vae.app.experiment import load_experiment
from pyro_vae.app.run import Run

WAY = "importance, K=5000"


def model(name, value, *, bad=0.0, unknown=0.0, gap=3.0, std_error=0.01, ways=(WAY,)):
    """A model with the first `bad` and then `unknown` share of its data not vouched for."""
    value = torch.as_tensor(value, dtype=torch.double)
    place = torch.arange(value.shape[1]).expand(value.shape) / value.shape[1]
    return Model(
        name=name,
        runs=(None,) * len(value),
        value=value,
        std_error=torch.full_like(value, std_error),
        elbo=value - gap,
        flagged=place < bad,
        unknown=(place >= bad) & (place < bad + unknown),
        flag="k-hat is too large",
        estimators=ways,
    )


def shifted(name, shift, num=1000, **fields):
    noise = torch.randn(num, generator=torch.Generator().manual_seed(len(name)))
    spread = torch.linspace(-100, -60, num)
    return model(name, [(spread + shift + 0.5 * noise).tolist()], **fields)


def test_a_difference_and_its_errors():
    a = model("a", [[1.0, 2.0, 3.0], [1.0, 2.0, 6.0]])
    b = model("b", [[0.0, 1.0, 2.0]])
    both = Difference(a, b)
    assert both.mean == pytest.approx((1 + 1 + 2.5) / 3)
    assert both.std_error == pytest.approx(np.std([1, 1, 2.5], ddof=1) / math.sqrt(3), rel=1e-6)
    assert a.seed_std == pytest.approx(np.std([2, 3], ddof=1), rel=1e-6)
    assert math.isnan(b.seed_std)
    assert math.isnan(both.seed_std_error)
    assert "higher, more than 2 paired standard errors; for these trained weights" in both.words
    assert "within 2 paired standard errors" in Difference(b, b).words
    assert "not to be trusted" not in both.words + Difference(b, b).words


def test_unlike_estimators_settle_nothing():
    few = shifted("few", 0.0, ways=("importance, K=2",))
    words = Difference(few, shifted("many", 5.0)).words
    assert "nats lower, but nothing is settled. They were estimated differently" in words
    assert "'few' by importance, K=2; 'many' by importance, K=5000" in words
    assert "evaluate both alike" in words
    mixed = shifted("mixed", 0.0, ways=(WAY, "importance, K=2"))
    assert "nothing is settled" in Difference(mixed, shifted("many", 5.0)).words
    alike = shifted("alike", 9.0, ways=("importance, K=2", WAY))
    assert "settled. Not all seeds were estimated alike" in Difference(mixed, alike).words


@pytest.mark.parametrize("shift", [5.0, 50.0])
def test_a_difference_below_what_bad_khat_may_hide_is_not_settled(shift):
    # Estimates that rose far above their ELBO may have far to go.
    poor = shifted("poor", 0.0, bad=0.87, gap=shift)
    words = Difference(poor, shifted("good", shift)).words
    assert (
        "nothing is settled. The estimates of 'poor' are not to be trusted: k-hat is too large for "
        "87.0% of the data; the difference may be that of the guides, not of the models; evaluate "
        "with --estimator auto."
    ) in words
    assert "paired standard errors" not in words
    assert "'good' are not" not in words


def test_few_bad_khat_leave_a_large_difference_settled():
    rare = shifted("rare", 0.0, bad=0.01)
    words = Difference(rare, shifted("good", 5.0)).words
    assert "nats lower, more than 2 paired standard errors" in words
    assert "k-hat is too large for 1.0% of the data, which would have to be off by " in words
    near = Difference(rare, shifted("good", 0.2)).words
    assert "nothing is settled" in near
    assert "not to be trusted" in near


def test_unknown_khat_is_told():
    few = shifted("few", 0.0, unknown=1.0, gap=0.1)
    words = Difference(few, shifted("good", 5.0)).words
    assert "k-hat is unknown, for want of samples, for 100% of the data" in words
    assert "nothing is settled" in words
    assert math.isnan(few.flagged_share)
    both = shifted("both", 0.0, bad=0.25, unknown=0.5)
    assert both.flagged_share == pytest.approx(0.5)  # of those that are known
    assert both.unknown_share == pytest.approx(0.5)


def test_one_sample_settles_nothing():
    one = shifted("one", 0.0, unknown=1.0, gap=0.0, std_error=math.nan)
    words = Difference(one, shifted("other", 50.0)).words
    assert "nothing is settled. One sample tells nothing about its own bias" in words


def test_no_difference_shown_needs_trust_too():
    good, same = shifted("good", 0.0), shifted("same", 0.0)
    assert Difference(good, same).words.endswith("no difference shown.")
    poor = shifted("poor", 0.0, bad=0.5)
    assert "no difference shown. The estimates of 'poor' are not" in Difference(poor, good).words


@pytest.fixture
def evaluated(tmp_path):
    """Two runs with made-up evaluations; the second has a poor guide and fewer samples."""
    folders = []
    for name, latent_dim, khat, count in (("a", 2, 0.3, 5000), ("b", 3, 0.9, 2)):
        request = ["model.data_shape=[4, 4]", f"model.latent_dim={latent_dim}"]
        run = Run.create(tmp_path / name, load_experiment("digits", request))
        run.write_weights(pv.VAE.from_spec(run.spec.model))
        value = torch.linspace(-3, -2, 10).double() - latent_dim
        khat = torch.full_like(value, khat)
        khat[:3] = math.nan
        arrays = {"value": value, "std_error": 0.01 + 0 * value, "elbo": value - 1, "khat": khat}
        summary = {
            "quantity": "log p(x)",
            "estimator": "importance",
            "num_samples": count,
            "num_data": 10,
            "split": "test",
            "data_fingerprint": "f",
            "weights_fingerprint": run.weights_fingerprint(),
            "log_px": float(value.mean()),
            "khat_threshold": 0.7,
        }
        run.write_evaluation(arrays, summary)
        folders.append(run.path)
    return folders


def test_the_report_says_how_runs_were_estimated(evaluated, capsys):
    first, second = models = compare(evaluated)
    assert (first.flagged_share, second.flagged_share) == (0.0, 1.0)
    assert second.unknown_share == pytest.approx(0.3)
    report(models)
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    out = " ".join(" ".join(lines).split())
    assert "latent_dim=2 importance, K=5000 0% 30.0%" in out
    assert "latent_dim=3 importance, K=2 100% 30.0%" in out
    assert "nothing is settled" in out


def test_a_copy_is_no_other_seed(evaluated, tmp_path):
    copy = shutil.copytree(evaluated[0], tmp_path / "copy")
    with pytest.raises(pv.errors.RunError, match=r"copy: holds the same weights as .*a, which"):
        compare([*evaluated, copy])


def test_an_evaluation_without_khat_is_refused(evaluated):
    path = evaluated[0] / "evaluation.safetensors"
    arrays = load_file(path)
    del arrays["khat"]
    marks = json.loads((evaluated[0] / "evaluation.json").read_text())
    save_file(arrays, path, {k: str(v) for k, v in marks.items()})
    with pytest.raises(pv.errors.RunError, match="damaged"):
        compare(evaluated)


def test_bounds_on_simulated_data_are_refused(evaluated):
    """As earlier versions wrote them in the place of the evaluation."""
    for folder in evaluated:
        run = Run.open(folder)
        arrays, summary = run.evaluation()
        told = {"quantity": "log p(x) of data simulated from the model"}
        run.write_evaluation(arrays, summary | told)
    with pytest.raises(pv.errors.RunError, match="data simulated from its own model"):
        compare(evaluated)


def test_probabilities_are_not_compared_with_densities(tmp_path):
    from cli_runs import trained_runs

    from pyro_vae.errors import RunError

    trained = trained_runs()
    other = shutil.copytree(trained / "b", tmp_path / "gauss")
    spec = (other / "spec.yaml").read_text()
    before, name, after = spec.partition("name: bernoulli")
    assert name
    (other / "spec.yaml").write_text(f"{before}name: gaussian{after}")
    with pytest.raises(RunError, match=r"densities, that of .* gives probabilities"):
        compare([trained / "a", other])
