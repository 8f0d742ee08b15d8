"""ExperimentSpec: from YAML and back, with overrides, and against the data."""

import json

import pytest
import torch

import inference
import pyro_vae as pv
from pyro_vae.app.experiment import (
    ExperimentSpec,
    differences,
    load_experiment,
    presets,
    resolve,
)
from pyro_vae.errors import SpecError
from pyro_vae.yaml_files import dump_yaml, parse_yaml


@pytest.mark.parametrize("name", presets())
def test_every_preset_validates_and_says_what_it_is(name):
    spec = load_experiment(name)
    assert ExperimentSpec.from_dict(parse_yaml(dump_yaml(spec.to_dict()))) == spec
    first = presets()[name].read_text().splitlines()[0]
    assert first.startswith("# ")
    assert len(first) > 10


def test_the_default_is_the_digits_preset():
    assert load_experiment() == load_experiment("digits")


def test_yaml_json_and_python_agree():
    spec = ExperimentSpec(
        model=pv.VAESpec(latent_dim=3, prior="vamp"),
        objective=inference.ELBO(warmup_epochs=2),
        train={"optimizer_options": {"betas": [0.9, 0.99], "amsgrad": True}, "schedule": "cosine"},
        evaluate={"estimator": {"name": "importance", "num_samples": 7}},
    )
    assert ExperimentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert ExperimentSpec.from_dict(parse_yaml(dump_yaml(spec.to_dict()))) == spec
    assert hash(spec) == hash(ExperimentSpec.from_dict(spec.to_dict()))
    assert spec.train.options == {"amsgrad": True, "betas": (0.9, 0.99)}
    assert ExperimentSpec.model_json_schema()["properties"].keys() == spec.to_dict().keys()


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.prior=vamp", "model.prior.components=200"],
        ["model.prior.components=200", "model.prior=vamp"],
        ["model.prior={name: vamp, components: 200}"],
    ],
)
def test_overrides_mean_the_same_in_any_order(overrides):
    spec = load_experiment("digits", [*overrides, "train.learning_rate=1e-4", "train.epochs=3"])
    assert spec.model.prior == pv.priors.VampPrior(components=200)
    assert spec.train.learning_rate == 1e-4
    assert spec.train.epochs == 3


def test_an_override_of_a_component_drops_the_fields_of_the_old_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: {prior: {name: gaussian_mixture, components: 7, spread: 2}}")
    assert load_experiment(path, ["model.prior=vamp"]).model.prior == pv.priors.VampPrior()
    assert load_experiment(path, ["model.prior.components=9"]).model.prior.spread == 2


def test_a_field_of_a_default_component_keeps_the_default():
    spec = load_experiment(None, ["evaluate.estimator.num_samples=3"])
    assert spec.evaluate.estimator == inference.Importance(num_samples=3)


def test_every_mistake_is_told_at_once():
    with pytest.raises(SpecError) as caught:
        load_experiment(
            "digitz",
            ["model.prior=vampp", "train.epoch=3", "trian.seed=1", "train.seed=-1", "word", "a=[1"],
        )
    lines = str(caught.value).splitlines()
    for start, hint in {
        "no preset or file is called 'digitz'": "did you mean 'digits'",
        "'word'": "expected key=value",
        "a='[1'": "not readable as YAML",
        "model.prior": "did you mean 'vamp'",
        "train.epoch": "did you mean 'epochs'",
        "trian": "did you mean 'train'",
        "train.seed": "got -1",
    }.items():
        assert any(line.startswith(start) and hint in line for line in lines), (start, lines)
    assert len(lines) == 7


def test_an_override_into_a_plain_value_is_refused(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("train: {epochs: 3}")
    with pytest.raises(SpecError, match=r"train\.epochs: holds 3, which has no field 'x'"):
        load_experiment(path, ["train.epochs.x=1"])


class FakeData:
    """As much of a data set as `resolve` looks at."""

    name, support, labels, levels, shape = "fake", "unit", {}, None, (4, 4)
    dequantized = False
    validation = torch.empty(0, 4, 4)
    train = torch.rand(10, 4, 4)
    train_transform = None
    test = torch.empty(0, 4, 4)
    masks, exposures = {}, {}


def test_resolve_tells_every_way_in_which_spec_and_data_do_not_fit():
    spec = load_experiment(
        "digits",
        [
            "model.data_shape=[8, 8]",
            "model.likelihood=bernoulli",
            "train.batch_size=11",
            "train.epochs=2",
            "train.patience=3",
            "train.device=nowhere",
            "objective.warmup_epochs=3",
        ],
    )
    with pytest.raises(SpecError) as caught:
        resolve(spec, FakeData())
    text = str(caught.value)
    for part in [
        "model.data_shape: (8, 8), but a datum of 'fake' has shape (4, 4)",
        "bernoulli",
        "train.batch_size: 11, but there are only 10",
        "train.patience: 3, but 'fake' has no validation data",
        "objective.warmup_epochs: 3, longer than the training of 2 epochs",
        "train.device: 'nowhere' is not on this machine",
    ]:
        assert part in text


def test_resolve_takes_the_shape_from_the_data():
    spec = load_experiment("digits", ["model.likelihood=gaussian", "train.batch_size=10"])
    assert resolve(spec, FakeData()).model.data_shape == (4, 4)


def test_differences_name_dotted_fields():
    a, b = load_experiment(None, ["train.seed=1"]), load_experiment(None, ["model.prior=vamp"])
    found = differences(a, b)
    assert found["train.seed"] == (1, 0)
    assert found["model.prior.name"] == ("standard_normal", "vamp")
    assert set(found) == {
        "train.seed",
        "model.prior.name",
        "model.prior.components",
        "model.prior.init",
    }


def test_another_component_does_not_keep_the_fields_of_the_former():
    """Else grey data of one's own would silently be binarized as the preset's are."""
    spec = load_experiment("mnist", ["data.path=own.npz", "data.name=arrays"])
    assert spec.data == pv.Data.resolve({"name": "arrays", "path": "own.npz"})
    spec = load_experiment("vamp_mnist", ["model.prior.name=gaussian_mixture"])
    assert spec.model.prior.components == 10
    kept = load_experiment("mnist", ["data.name=mnist", "data.test_size=5"])
    assert (kept.data.binarize, kept.data.test_size) == ("dynamic", 5)


def test_the_preset_digits_is_the_data_set_digits():
    assert load_experiment("digits").data == pv.Data.resolve("digits")
