"""What an Estimate says, and that making one leaves no traces and depends on no tile."""

from __future__ import annotations

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import inference
from inference import tiles
from inference.evidence.weighted import WeightedEstimate
from tests.exact_models import agrees, linear_gaussian


def log_px(pair, x, K=50, seed=0, **options):
    return inference.log_marginal(
        pair.model,
        pair.guide,
        x,
        estimator=inference.Importance(num_samples=K),
        seed=seed,
        progress=False,
        **options,
    )


def estimate(**fields) -> WeightedEstimate:
    values = torch.tensor([-3.0, -5.0, -4.0], dtype=torch.float64)
    defaults = {
        "value": values,
        "std_error": torch.tensor([0.1, 0.2, 0.2], dtype=torch.float64),
        "ess": torch.tensor([90.0, 20.0, 24.0], dtype=torch.float64),
        "khat": torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64),
        "elbo": values - 1,
        "quantity": "log p(x)",
        "estimator": "importance",
        "num_samples": 100,
        "bias_direction": "low in expectation",
        "khat_threshold": 0.5,
        "tile": (3, 100),
        "seed": 0,
        "seconds": 1.5,
    }
    return WeightedEstimate(**(defaults | fields))


def same(a: WeightedEstimate, b: WeightedEstimate) -> bool:
    """Bit-equal, NaN included."""
    pairs = zip(a.arrays().values(), b.arrays().values(), strict=True)
    return all(torch.equal(p.view(torch.uint8), q.view(torch.uint8)) for p, q in pairs)


# The numbers -------------------------------------------------------------------------------


def test_errors_by_hand():
    found = estimate()
    assert found.num_data == 3
    assert found.mean == pytest.approx(-4)
    assert found.mc_std_error == pytest.approx(math.sqrt(0.01 + 0.04 + 0.04) / 3)
    assert found.bias_estimate == pytest.approx(-0.5 * 0.09 / 3)
    assert found.test_std_error == pytest.approx(1 / math.sqrt(3))
    assert found.elbo_mean == pytest.approx(-5)
    assert found.median_ess == 24


def test_monte_carlo_error_shrinks_with_data_and_bias_does_not():
    pair = linear_gaussian(seed=1, stretch=1.6)
    small, large = (log_px(pair, pair.sample(N, seed=9)) for N in (40, 640))
    assert large.mc_std_error == pytest.approx(small.mc_std_error / 4, rel=0.15)
    assert large.bias_estimate == pytest.approx(small.bias_estimate, rel=0.3)


def test_summary_keys_and_values():
    summary = estimate().summary()
    promised = (
        "quantity estimator num_samples num_data log_px mc_std_error bias_estimate test_std_error "
        "bias_direction khat_bad_share khat_threshold median_ess elbo seconds"
    )
    assert set(promised.split()) <= set(summary)
    assert summary["log_px"] == pytest.approx(-4)
    assert summary["num_data"] == 3
    json.dumps(summary, allow_nan=False)


def test_shares_of_bad_and_unknown_khat():
    khat = torch.tensor([0.1, 0.9, math.nan], dtype=torch.float64)
    found = estimate(khat=khat)
    assert (found.num_khat_bad, found.num_khat_unknown) == (1, 1)
    assert found.khat_bad_share == 0.5  # among those known
    assert found.summary()["khat_unknown"] == 1
    assert math.isnan(estimate(khat=torch.full((3,), math.nan)).khat_bad_share)
    assert estimate(khat=torch.full((3,), math.inf)).khat_bad_share == 1


def test_one_datum():
    pair = linear_gaussian(seed=1, stretch=1.6)
    found = log_px(pair, pair.sample(1), 500)
    assert found.value.shape == (1,)
    assert found.mc_std_error == pytest.approx(float(found.std_error))
    assert math.isnan(found.test_std_error)
    assert "nan" not in str(found)


# The words ---------------------------------------------------------------------------------


def test_paragraph_of_a_good_estimate():
    said = str(estimate())
    assert said.startswith("log p(x) = -4.000 nats per datum (mean of 3), by importance with 100")
    assert "at least" not in said
    assert "unknown" not in said
    assert "low in expectation" in said
    assert "uncertain by 0.58" in said
    assert "\n" not in said


def test_paragraph_with_bad_khat():
    said = str(estimate(khat=torch.tensor([0.1, 0.9, 0.6], dtype=torch.float64)))
    assert "standard error at least 0.1" in said
    assert "For 2 data" in said
    assert "exceeds 0.50" in said


def test_paragraph_with_unknown_khat():
    said = str(estimate(khat=torch.tensor([0.1, 0.2, math.nan], dtype=torch.float64)))
    assert "unknown for 1 data" in said
    assert "No k-hat exceeds" not in said


def test_paragraph_of_one_sample():
    pair = linear_gaussian(seed=1, stretch=1.6)
    found = log_px(pair, pair.sample(20), 1)
    assert bool(found.std_error.isnan().all())
    assert torch.equal(found.value, found.elbo)
    said = str(found)
    assert "One sample tells nothing" in said
    assert "unknown for 20 data" in said
    assert "nan" not in said


def test_paragraph_of_the_exact_case():
    pair = linear_gaussian()
    said = str(log_px(pair, pair.sample(20)))
    assert "standard error 0;" in said
    assert "bias 0 " in said
    assert "at least" not in said
    assert "unknown" not in said


def test_a_bad_guide_says_so():
    pair = linear_gaussian(seed=1, stretch=0.05)
    assert pair.khat() > 0.9
    found = log_px(pair, pair.sample(30), 2000)
    assert found.khat_bad_share > 0.5
    assert "at least" in str(found)


def test_the_progress_bar_goes_to_standard_error(capsys):
    pair = linear_gaussian()
    inference.log_marginal(pair.model, pair.guide, pair.sample(4), estimator="importance")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "log p(x)" in captured.err


# Tiles -------------------------------------------------------------------------------------


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 5 x 16 numbers: 1 datum x 16 samples at D = 5."""
    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 80)


def test_num_samples_is_honoured_exactly(small_tiles):
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(7)
    log_px(pair, x, 37)  # any look at the pair is counted by the first call, too
    pair.calls.clear()
    log_px(pair, x, 37)
    looks = [n for n in pair.calls if n not in (13, 11)]
    assert pair.calls.count(13) - 7 * 2 in (0, 1)  # and one to count operations
    assert pair.calls.count(11) == 7
    assert sum(looks) < 100  # a handful of small looks, not a pass over the data
    assert log_px(pair, x, 37).tile == (1, 13)  # even parts of at most 16


def test_ragged_tiles(monkeypatch):
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(33)
    whole = log_px(pair, x, 307)
    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 10 * 300 * 5)
    rows = log_px(pair, x, 307)
    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 128 * 5)
    columns = log_px(pair, x, 307)
    assert (whole.tile, rows.tile, columns.tile) == ((33, 307), (9, 307), (1, 103))
    truth = pair.log_px(x)
    for found in (whole, rows, columns):
        assert found.value.shape == (33,)
        assert agrees(found.value, truth, found.std_error, ceiling=0.2)
    error = (whole.std_error.square() + rows.std_error.square()).sqrt()
    assert agrees(whole.value, rows.value, error)
    assert not torch.equal(whole.value, rows.value)


def test_same_tiles_give_the_same_bits(small_tiles):
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(9)
    torch.manual_seed(1)
    first = log_px(pair, x, 40)
    torch.manual_seed(2)
    assert same(first, log_px(pair, x, 40))
    assert not same(first, log_px(pair, x, 40, seed=1))


def test_a_row_of_tiles_does_not_depend_on_the_others(small_tiles):
    """What comes after does not change what came before: an interrupted run can go on."""
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(9)
    part, whole = log_px(pair, x[:6], 40), log_px(pair, x, 40)
    assert torch.equal(part.value, whole.value[:6])


def test_order_of_tiles_does_not_matter(small_tiles):
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(5)

    def scores(reverse: bool):
        with tiles.tiled(pair.model, pair.guide, x, 40, seed=0, plate="data") as laid:
            places = [(r, c) for r in laid.rows() for c in laid.columns()]
            order = places[::-1] if reverse else places
            found = {p: laid.score(laid.tile(*p)).log_weight for p in order}
            return [found[p] for p in places]

    forward, backward = scores(False), scores(True)
    assert all(torch.equal(a, b) for a, b in zip(forward, backward, strict=True))
    # No draw is used twice.
    every = torch.cat([f.flatten() for f in forward])
    assert len(every) == len(every.unique()) == 5 * 40


def test_different_seeds_are_independent():
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(500)
    a, b = (log_px(pair, x, 50, seed=s).value - pair.log_px(x) for s in (0, 1))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 5 / math.sqrt(500)


def test_tiles_respect_large_inner_plates():
    """An inner plate's numbers count: a tile is no larger than the budget."""

    def model(x):
        z = None
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("pixels", x.shape[1], dim=-2):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.mean(1), 0.3))

    with tiles.tiled(model, guide, torch.randn(50, 4096), 1000, seed=0, plate="data") as laid:
        assert laid.pair.event_numel == 4096
        assert laid.data_per_tile * laid.samples_per_tile * 4096 <= tiles.TILE_NUMBERS["cpu"]
    with tiles.tiled(model, guide, torch.randn(50, 4096), 1000, seed=0, plate=None) as laid:
        assert laid.data_per_tile == 50
        assert laid.samples_per_tile * 50 * 4096 <= tiles.TILE_NUMBERS["cpu"]


# No traces ---------------------------------------------------------------------------------


class Small(nn.Module):
    """A VAE by hand with a layer whose behaviour depends on the mode."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5))
        self.decoder = nn.Linear(2, 3)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            loc = self.encoder(x)[..., :2]
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def fingerprint(module: nn.Module):
    store = pyro.get_param_store()
    return (
        torch.get_rng_state().tolist(),
        sorted(store.keys()),
        [store[name].tolist() for name in sorted(store.keys())],
        [m.training for m in module.modules()],
        [p.tolist() for p in module.parameters()],
        [p.grad is None for p in module.parameters()],
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.distributions.Distribution._Distribution__validate_args
        if hasattr(torch.distributions.Distribution, "_Distribution__validate_args")
        else torch.distributions.Distribution._validate_args,
        pyro.poutine.util.is_validation_enabled(),
    )


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_is_left_as_found(enabled, dtype):
    pyro.clear_param_store()
    before_dtype = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        torch.manual_seed(3)
        small = Small()
        small.decoder.eval()
        pyro.param("scale", torch.tensor(0.5))
        pyro.param("someone else's", torch.ones(2))
        x = torch.randn(10, 3)
        with pyro.validation_enabled(enabled):
            before = fingerprint(small)
            found = log_px(small, x)
            inference.bound(small.model, small.guide, x)
            inference.active_units(small.model, small.guide, x)
            assert fingerprint(small) == before
            with pytest.raises(inference.PairError):
                log_px(small, x, plate="nowhere")
            assert fingerprint(small) == before
            # In eval mode: dropout would make the encoder's answer random.
            assert same(found, log_px(small, x))
        assert found.value.dtype == torch.float64
    finally:
        torch.set_default_dtype(before_dtype)
        pyro.clear_param_store()


def test_the_caller_s_plain_parameters_are_used():
    pyro.clear_param_store()
    small = Small()
    x = torch.randn(10, 3)
    initial = log_px(small, x)
    pyro.param("scale", torch.tensor(0.1), constraint=dist.constraints.positive)
    assert not same(initial, log_px(small, x))
    pyro.clear_param_store()


def test_a_former_model_under_the_same_names_does_not_matter():
    pyro.clear_param_store()
    torch.manual_seed(0)
    old, new = Small(), Small()
    x = torch.randn(10, 3)
    alone = log_px(new, x)
    old.guide(x)
    old.model(x)  # its parameters sit in the store as "encoder$$$..." now
    assert same(alone, log_px(new, x))
    pyro.clear_param_store()


def test_log_weights_draws_from_the_caller_s_randomness_and_carries_gradients():
    pyro.clear_param_store()
    small = Small().eval()
    pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    x = torch.randn(6, 3)
    torch.manual_seed(0)
    first = inference.log_weights(small.model, small.guide, x, num_particles=3)
    again = inference.log_weights(small.model, small.guide, x, num_particles=3)
    assert not torch.equal(first.log_weight, again.log_weight)
    torch.manual_seed(0)
    assert torch.equal(
        first.log_weight,
        inference.log_weights(small.model, small.guide, x, num_particles=3).log_weight,
    )
    first.log_weight.sum().backward()
    assert all(p.grad is not None for p in small.parameters())
    assert pyro.param("scale").unconstrained().grad is not None
    pyro.clear_param_store()
