"""Validation bounds of the compiled engine."""

import pytest
import torch
from torch import nn

import inference
from inference import tiles
from inference.engines import compiled
from tests.small_pairs import Tutorial, fit, patterns


@pytest.fixture
def interpreted(monkeypatch):
    for module in ("compiled", "bounds"):
        monkeypatch.setattr(
            f"inference.engines.{module}.compile_graph", lambda graph, inputs: graph
        )


def train(engine, module=None, seed=0, **settings):
    torch.manual_seed(seed)
    vae = module or Tutorial()
    x = patterns(50)
    return vae, fit(
        vae.model, vae.guide, x, validation=x[:23], engine=engine, batch_size=16, **settings
    )


def bounds(result):
    return [row["validation_bound"] for row in result.history]


@pytest.mark.parametrize("particles", [1, 3])
def test_recorded_bounds_are_the_eager_ones(particles, interpreted, monkeypatch):
    """In tiles of 6 data, the last of 5; with the noise of each pass the same."""
    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 6 * 6)
    monkeypatch.setattr(compiled, "BOUNDS_REPAID_AFTER", 4)
    made = []
    real = compiled.RecordedBound

    def count(*args, **kwargs):
        made.append(args)
        return real(*args, **kwargs)

    monkeypatch.setattr(compiled, "RecordedBound", count)
    objective = inference.ELBO(num_particles=particles)
    _, eager = train("eager", objective=objective, epochs=4)
    assert not made
    _, found = train("compiled", objective=objective, epochs=4)
    assert bounds(found) == pytest.approx(bounds(eager), rel=1e-5)
    assert len(made) == 2  # the tile and the edge, and none again
    assert found.engine == "compiled"


def test_few_bounds_are_eager_ones(interpreted, monkeypatch):
    monkeypatch.setattr(compiled, "RecordedBound", None)  # would raise
    train("compiled", epochs=3)


def test_dropout_is_off_in_bounds(interpreted, monkeypatch):
    monkeypatch.setattr(compiled, "BOUNDS_REPAID_AFTER", 1)

    def module():
        torch.manual_seed(0)
        vae = Tutorial()
        vae.decoder = nn.Sequential(nn.Dropout(0.5), *vae.decoder)
        return vae

    _, eager = train("eager", module())
    _, found = train("compiled", module())
    assert bounds(found) == pytest.approx(bounds(eager), rel=1e-5)


class Tempered(Tutorial):
    """A number of Python's takes part in the decoder."""

    def __init__(self):
        super().__init__()
        self.warmth = 1.0
        plain = self.decoder.forward
        self.decoder.forward = lambda z: plain(z) * self.warmth


def test_what_a_callback_changes_is_noticed(interpreted, monkeypatch):
    monkeypatch.setattr(compiled, "BOUNDS_REPAID_AFTER", 1)
    results = {}
    for engine in ("eager", "compiled"):
        torch.manual_seed(0)
        vae = Tempered()

        def callback(row, vae=vae):
            vae.warmth = 2.0 if row["epoch"] >= 2 else 1.0

        _, results[engine] = train(engine, vae, epochs=4, callback=callback)
    assert bounds(results["compiled"]) == pytest.approx(bounds(results["eager"]), rel=1e-5)


def test_machine_code(monkeypatch):
    monkeypatch.setattr(compiled, "BOUNDS_REPAID_AFTER", 1)
    _, eager = train("eager", epochs=2)
    _, found = train("compiled", epochs=2)
    assert bounds(found) == pytest.approx(bounds(eager), rel=1e-5)
