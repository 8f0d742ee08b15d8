"""What a linear classifier finds in latents that were not told it."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.app.experiment import load_experiment
from pyro_vae.app.probe import fitted, principal, probe, untold
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


def test_components_are_those_of_all_data():
    """Few data are seen along the directions in which all of them vary, not those few."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 0.1, 0.1, 0.1], dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    z = torch.randn(500, 5, generator=generator, dtype=torch.float64)
    z = scales * torch.linalg.qr(z - z.mean(0))[0] * 500**0.5  # exactly uncorrelated
    x = 7 + z @ turn.T
    few, other = principal(x, x[:3], x[3:9], count=2)
    found = torch.cat([few, other]).abs()
    expected = z[:9, [1, 0]].abs()  # the largest last; signs are free
    torch.testing.assert_close(found, expected)
    # The wrong twin: three data span two directions of their own.
    (own,) = principal(x[:3], x[3:9], count=2)
    assert float((own.abs() - expected[3:]).abs().max()) > 1


def test_a_probe_tells_what_is_linear():
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(400) % 2
    noise = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    told = torch.cat([noise, (y[:, None] - 0.5) * 6 + noise[:, :1]], 1)
    assert fitted("told", told[:200], told[200:], y[:200], y[200:]).accuracy > 0.97
    assert fitted("untold", noise[:200], noise[200:], y[:200], y[200:]).accuracy < 0.65
