"""`pyro-vae diagnose`: what it writes, prints and refuses; guides freed around their encoder."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from cli_runs import files_of, refused, trained_runs

import inference
import pyro_vae as pv
from inference.diagnostics.local_guide import without_parameters
from pyro_vae.app import diagnose
from pyro_vae.app.cli import main
from pyro_vae.app.files import read_tensors
from pyro_vae.app.local import local_guide
from pyro_vae.app.pictures.gaps import draw_gap_comparison, draw_gaps
from pyro_vae.app.pictures.reference import draw_reference
from pyro_vae.errors import RequestError

QUICK = ["--quiet", "--num-data", "12"]
PARTS = ("gaps", "unit_kl", "surgery", "calibration", "reference")


@pytest.fixture
def run(tmp_path):
    return Path(shutil.copytree(trained_runs() / "a", tmp_path / "run"))


def diagnosed(run, *arguments):
    before = files_of(run)
    assert main(["diagnose", str(run), *QUICK, *arguments]) == 0
    changed = {
        p.relative_to(run).as_posix() for p, b in files_of(run).items() if before.get(p) != b
    }
    return json.loads((run / "diagnosis.json").read_text()), changed


@pytest.mark.usefixtures("short_diagnosis")
def test_files_tables_and_pictures(run, capsys):
    written, changed = diagnosed(run, "--estimator", "quadrature")
    pictures = {f"pictures/{name}.png" for name in diagnose.PICTURES}
    assert changed == {"diagnosis.json", "diagnosis.safetensors", *pictures}
    assert written["missing"] == {}
    assert all(name in written for name in PARTS)
    assert written["split"] == "test"
    assert written["num_data"] == written["gaps"]["num_data"] == 12
    terms = {name: term["mean"] for name, term in written["gaps"]["terms"].items()}
    gap = terms["log_px"] - terms["reconstruction"] + terms["kl.z"]
    assert gap == pytest.approx(terms["inference_gap"], abs=1e-9)
    assert gap == pytest.approx(terms["approximation_gap"] + terms["amortization_gap"], abs=1e-9)
    arrays, marks = read_tensors(run / "diagnosis.safetensors", "")
    assert {name.split(".")[0] for name in arrays} == set(PARTS)
    assert float(arrays["gaps.inference_gap"].mean()) == pytest.approx(gap)
    assert marks["weights_fingerprint"] == written["weights_fingerprint"]
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "where log p(x) goes",
        "KL per latent unit",
        "ELBO surgery",
        "Calibration",
        "R-hat",
    ):
        assert part in said
    assert "Written:" in said
    again, changed = diagnosed(run, "--estimator", "quadrature")
    assert not changed & pictures
    once_more, _ = read_tensors(run / "diagnosis.safetensors", "")
    assert all(torch.equal(arrays[name], once_more[name]) for name in arrays)
    other, _ = diagnosed(run, "--estimator", "importance", "--seed", "3", "--split", "validation")
    assert other["seed"] == other["gaps"]["seed"] == 3
    assert other["split"] == "validation"
    assert other["gaps"]["estimate"]["estimator"] == "importance"
    assert other["data_fingerprint"] != again["data_fingerprint"]


@pytest.mark.usefixtures("short_diagnosis")
def test_a_part_that_does_not_apply_is_named(run, monkeypatch, capsys):
    def refuse(*_, **__):
        raise inference.PairError("the density is not known there")

    monkeypatch.setattr(inference, "surgery", refuse)
    monkeypatch.setattr(inference, "unit_kl", refuse)
    (run / "pictures").mkdir(exist_ok=True)
    (run / "pictures" / "unit_kl.png").write_bytes(b"of another diagnosis")
    written, _ = diagnosed(run, "--estimator", "quadrature")
    assert written["missing"]["surgery"] == "the density is not known there"
    assert "surgery" not in written
    assert not (run / "pictures" / "unit_kl.png").exists()
    said = " ".join(capsys.readouterr().out.split())
    assert "ELBO surgery: what the KL is made of: not known. the density is not known there" in said


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--estimator", "aiss"], "did you mean 'ais'?"),
        (["--estimator", "sandwich"], "--estimator: 'sandwich' bounds log p(x) of simulated data"),
        (["--estimator", "enumerate"], "site 'z'"),
        (["--split", "tests"], "evaluate.split"),
        (["--num-data", "0"], "evaluate.num_data"),
        (["--num-data", "1"], "--num-data: 1"),
        (["--num-data", "999999"], "evaluate.num_data: 999999"),
        (["--seed", "-1"], "evaluate.seed"),
        (["--device", "tpu"], "--device: 'tpu' is not on this machine"),
        (["--samples", "3"], "unrecognized arguments: --samples"),
    ],
)
def test_requests_that_are_wrong(run, capsys, arguments, part):
    before = files_of(run)
    refused(["diagnose", run, "--quiet", *arguments], capsys, part)
    assert files_of(run) == before


def test_a_folder_that_is_no_run(tmp_path, capsys):
    refused(["diagnose", tmp_path / "nowhere"], capsys, "no such run folder")


# Guides freed around their encoder -------------------------------------------------------------


def build(guide, latent_dim=3, **options):
    torch.manual_seed(0)
    small = {"name": "mlp", "hidden": (16,)}
    spec = {"data_shape": (8, 8), "latent_dim": latent_dim, "encoder": small, "decoder": small}
    return pv.VAE(**spec, guide=guide, **options)


def bits(num):
    return (torch.rand(num, 8, 8) > 0.5).float()


GUIDES = {
    "mean_field": {},
    "full_rank": {},
    "iaf": {"guide": pv.guides.IAF(hidden=(8,), context=4)},
    "vamp": {"guide": "mean_field", "prior": pv.priors.VampPrior(components=3)},
}


@pytest.mark.parametrize("name", GUIDES)
def test_a_freed_guide_begins_where_the_encoder_is(name):
    vae = build(**{"guide": name, **GUIDES[name]})
    x = bits(6)
    vae.initialize(x)
    local = local_guide(vae)
    pair = without_parameters(vae.model, 1), local.guide(1)
    start = local.start(x)
    plain = inference.bound(vae.model, vae.guide, x)
    freely = inference.bound(*pair, (x, *start))
    assert torch.allclose(plain.per_datum, freely.per_datum, atol=1e-4)
    moved = [part.clone() for part in start]
    moved[0][2] += 0.3
    there = inference.bound(*pair, (x, *moved))
    changed = (there.per_datum - plain.per_datum).abs() > 1e-3
    assert changed.nonzero().flatten().tolist() == [2]
    assert torch.equal(local.start(x)[0], start[0])  # the encoder is as it was


@pytest.mark.usefixtures("short_diagnosis")
def test_gaps_of_a_flow():
    vae, x = build(**GUIDES["iaf"]), bits(6)
    settings = {"estimator": "importance", "num_samples": 20, "progress": False}
    with pytest.raises(inference.PairError, match="transforms that depend on the data"):
        inference.gaps(vae.model, vae.guide, x, **settings)
    found = inference.gaps(vae.model, vae.guide, x, local=local_guide(vae), **settings)
    assert found.amortization.mean > 0


def test_a_guide_without_an_encoder():
    vae = build("mean_field")
    vae.guide_module.encoder = None
    with pytest.raises(RequestError, match="guide 'mean_field': has no module called 'encoder'"):
        local_guide(vae)


# Pictures ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("short_diagnosis")
@pytest.mark.parametrize("latent_dim", [1, 3])
def test_pictures_of_one_and_several_latents(latent_dim, tmp_path):
    from matplotlib.image import imread

    vae, x = build("mean_field", latent_dim), bits(6)
    found = inference.gaps(
        vae.model, vae.guide, x, estimator="importance", num_samples=20, progress=False
    )
    flagged = torch.arange(6) < 2
    found = replace(found, log_px=replace(found.log_px, flagged=flagged))
    posterior = inference.reference(vae.model, vae.guide, x[:2], progress=False)
    for path in (
        draw_gaps(found, tmp_path / "gaps.png"),
        draw_gap_comparison({"one": found, "two": found}, tmp_path / "comparison.png"),
        draw_reference(posterior, tmp_path / "reference.png"),
    ):
        with path.open("rb") as file:
            image = imread(file)
        assert image[..., :3].std() > 0.005
