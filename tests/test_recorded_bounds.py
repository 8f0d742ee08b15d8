"""Validation bounds of the compiled engine."""

import pyro
import pytest
import torch
from torch import nn

import inference
from inference import tiles
from inference.engines import compiled
from tests.small_pairs import (
    Tutorial,
    fit,
    line_data,
    line_guide,
    line_model,
    patterns,
    prescaled,
)


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield


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
    monkeypatch.setattr(compiled, "BATCHES_TO_REPAY", 4)
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
    monkeypatch.setattr(compiled, "BATCHES_TO_REPAY", 1)

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
    monkeypatch.setattr(compiled, "BATCHES_TO_REPAY", 1)
    results = {}
    for engine in ("eager", "compiled"):
        torch.manual_seed(0)
        vae = Tempered()

        def callback(row, vae=vae):
            vae.warmth = 2.0 if row["epoch"] >= 2 else 1.0

        _, results[engine] = train(engine, vae, epochs=4, callback=callback)
    assert bounds(results["compiled"]) == pytest.approx(bounds(results["eager"]), rel=1e-5)


def test_a_plate_of_the_full_size_draws_no_rows(interpreted, monkeypatch):
    """Eager and recorded bounds are of the rows at hand, under the same noise."""
    monkeypatch.setattr(compiled, "BATCHES_TO_REPAY", 1)
    found = {}
    for engine in ("eager", "compiled"):
        pyro.clear_param_store()
        data = line_data()
        held_out = tuple(a[:10] for a in data)
        result = fit(
            *prescaled(40), data, validation=held_out, engine=engine, batch_size=10, epochs=3,
            callback=lambda row: None,
        )  # fmt: skip
        found[engine] = bounds(result)
        assert result.engine_reason == "as asked"
    assert found["compiled"] == pytest.approx(found["eager"], rel=1e-5)


def test_a_bound_is_trusted_only_after_a_comparison(interpreted, monkeypatch):
    """Machine code that is wrong: eager bounds, and a sentence."""
    monkeypatch.setattr(compiled, "BATCHES_TO_REPAY", 1)
    monkeypatch.setattr(
        "inference.engines.bounds.compile_graph",
        lambda graph, inputs: lambda *given: [1.01 * value for value in graph(*given)],
    )
    _, eager = train("eager")
    with pytest.warns(inference.EngineWarning, match="bounds of .* eager ones, since compiled"):
        _, found = train("compiled")
    assert bounds(found) == pytest.approx(bounds(eager), rel=1e-5)


def test_a_small_term_that_a_callback_changes_is_noticed(interpreted, monkeypatch):
    """A factor outside the plate weighs 1/N: it is compared by itself."""
    monkeypatch.setattr(compiled, "BATCHES_TO_REPAY", 1)
    made, held = [], {}
    real = compiled.RecordedBound
    monkeypatch.setattr(
        compiled, "RecordedBound", lambda *a, **k: (made.append(1), real(*a, **k))[1]
    )

    def model(x, y):
        line_model(x, y)
        pyro.factor("ridge", -held["lam"] * torch.ones(()))

    def change(row):
        held["lam"] = 1.0 + 0.1 * row["epoch"]

    held["lam"] = 1.0
    pyro.clear_param_store()
    x, y = line_data(2000)
    data = x.repeat(30), y.repeat(30)
    few = x[:10], y[:10]
    fit(model, line_guide, data, validation=few, engine="compiled", batch_size=60_000,
        callback=change)  # fmt: skip
    assert len(made) == 3


@pytest.mark.slow
def test_machine_code(monkeypatch):
    monkeypatch.setattr(compiled, "BATCHES_TO_REPAY", 1)
    _, eager = train("eager", epochs=2)
    _, found = train("compiled", epochs=2)
    assert bounds(found) == pytest.approx(bounds(eager), rel=1e-5)
