"""What a linear classifier finds in latents that were not told it."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.app.experiment import load_experiment
from pyro_vae.app.probe import probe, untold
from pyro_vae.app.train import train
from pyro_vae.errors import RequestError

SMALL = ["train.epochs=1", "data.train_size=120", "data.test_size=40", "model.latent_dim=2"]


def run_of(folder, *changes):
    return train(load_experiment("digits", [*SMALL, *changes]), folder / "run", progress=False)


def test_latents_of_a_latent_label_are_those_without_it(tmp_path, monkeypatch):
    """Features of training data must not hold what the classifier is to find."""
    run = run_of(tmp_path, "model.label=latent", "objective.name=m2")
    vae, told = run.vae(), run.spec.data.prepared()
    assert bool((told.labels["train"] >= 0).all())
    x, y = untold(told, "train", vae)
    assert bool((y == -1).all())
    assert torch.equal(vae.latent_mean(x, y), vae.latent_mean(x))
    seen, right = [], type(vae).latent_mean

    def noted(vae, *values):
        seen.append(values[1])
        return right(vae, *values)

    monkeypatch.setattr(type(vae), "latent_mean", noted)
    found = probe(run)
    assert len(found) == 3
    assert seen
    assert all(bool((y == -1).all()) for y in seen)


def test_an_encoder_that_is_told_the_label_is_not_probed(tmp_path):
    run = run_of(tmp_path, "model.label=condition")
    with pytest.raises(RequestError, match="label is 'condition', so its encoder is handed"):
        probe(run)
