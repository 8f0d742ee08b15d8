"""Graphs cut by what they depend on, and estimates made with them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
import pyro_vae as pv
from inference import tiles as tiles_module
from inference.errors import CompilationError
from inference.evidence import weighing
from inference.staging import Staged
from tests.exact_models import linear_gaussian
from tests.small_pairs import Tutorial
from tests.tiers import each

INTERPRETED = "inference.staging.compile_graph"


@pytest.fixture
def interpreted(monkeypatch):
    """Recorded graphs are run operation by operation: the same steps, no seconds of compiling."""
    monkeypatch.setattr(INTERPRETED, lambda graph, inputs: graph)


def staged(function, *data):
    kernel = Staged(function, data)
    return kernel, kernel.share(data)


# What depends on what ---------------------------------------------------------------------------


def test_each_part_is_computed_as_often_as_it_must_be():
    """exp of the weight once, the product with x once a datum, noise at each call."""
    weight, calls = torch.randn(3, 3), {"exp": 0, "mm": 0}

    def function(x):
        return (x @ weight.exp() + torch.randn(5, 4, 3),)

    x = torch.randn(4, 3)
    kernel, shared = staged(function, x)
    for stage, part in kernel._parts.items():
        for node in part.graph.nodes:
            for name in calls:
                if f"aten.{name}." in str(node.target):
                    calls[name] += 1
                    assert stage == {"exp": 0, "mm": 1}[name]
    assert calls == {"exp": 1, "mm": 1}
    torch.manual_seed(0)
    first = kernel(shared)[0]
    torch.manual_seed(0)
    assert torch.equal(first, function(x)[0])
    assert not torch.equal(first, kernel(shared)[0])  # fresh noise


def test_other_data_give_other_results():
    kernel, shared = staged(lambda x: (x.sin() + 0 * torch.randn(2, 4), x.cos()), torch.zeros(4))
    other = torch.arange(4.0)
    sine, cosine = kernel(kernel.share((other,)))
    assert torch.equal(sine, other.sin().expand(2, 4))
    assert torch.equal(cosine, other.cos())
    assert torch.equal(kernel(shared)[1], torch.ones(4))


def test_what_is_spread_over_draws_is_not_handed_over():
    """sigma^2 for 1000 draws would be 1000 numbers in memory where one does."""
    _, shared = staged(
        lambda x: (x.expand(1000, 4).square() + torch.randn(1000, 4),), torch.randn(4)
    )
    assert max(part.numel() for part in shared) == 4


def test_noise_made_in_place_and_the_caller_s_random_state():
    def function(x):
        noise = torch.empty(7, 4).normal_()
        noise.mul_(x)
        return (noise,)

    x = torch.rand(4)
    before = torch.get_rng_state()
    kernel, shared = staged(function, x)
    assert torch.equal(torch.get_rng_state(), before)
    draws = torch.stack([kernel(shared)[0] for _ in range(200)])
    assert torch.allclose(draws.std((0, 1)), x, rtol=0.1)


def test_a_function_that_reads_values_is_refused():
    with pytest.raises(inference.Untraceable, match=r"hands values of tensors to Python"):
        Staged(lambda x: (x * float(x.sum()),), (torch.rand(4),))


# Estimates --------------------------------------------------------------------------------------


def vae(prior="standard_normal", guide="mean_field", likelihood="bernoulli", seed=0):
    torch.manual_seed(seed)
    small = pv.networks.MLP(hidden=(16,))
    return pv.VAE(
        data_shape=(6, 6), latent_dim=3, prior=prior, guide=guide, likelihood=likelihood,
        encoder=small, decoder=small,
    )  # fmt: skip


def pixels(num=9, seed=0):
    return (torch.rand(num, 6, 6, generator=torch.Generator().manual_seed(seed)) < 0.3).float()


def values(model, guide, x, engine, samples=60, **options):
    return inference.log_marginal(
        model, guide, x, estimator=inference.Importance(num_samples=samples), engine=engine,
        progress=False, **options,
    )  # fmt: skip


KINDS = [
    kind
    for kind in itertools.product(
        ["standard_normal", "gaussian_mixture", "vamp"],
        ["mean_field", "full_rank", "iaf"],
        ["bernoulli", "gaussian"],
    )
    if kind[:2] != ("vamp", "iaf")  # which the VampPrior refuses
]


@pytest.mark.parametrize(("prior", "guide", "likelihood"), each(3, KINDS, unpack=True))
def test_recorded_tiles_are_the_eager_ones(prior, guide, likelihood, interpreted, monkeypatch):
    """Every k and n, several tiles both ways, with edges."""
    monkeypatch.setitem(tiles_module.TILE_NUMBERS, "cpu", 36 * 25)
    if prior == "vamp":
        prior = pv.priors.VampPrior(components=5)
    small, x = vae(prior, guide, likelihood), pixels()
    eager = values(small.model, small.guide, x, "eager")
    found = values(small.model, small.guide, x, "compiled")
    assert (eager.engine, found.engine) == ("eager", "compiled")
    for name, expected in eager.arrays().items():
        # As float64 sums of the same float32 operations; k-hat magnifies.
        close = 1e-3 if name == "khat" else 1e-5
        assert torch.allclose(found.arrays()[name], expected, rtol=close, atol=close), name
    other = values(small.model, small.guide, x, "compiled", seed=1)
    assert not torch.allclose(other.value, eager.value, atol=1e-3)


def test_the_encoder_runs_once_a_datum_and_the_vamp_prior_once(interpreted, monkeypatch):
    small, x = vae(pv.priors.VampPrior(components=5)), pixels(4)
    monkeypatch.setitem(tiles_module.TILE_NUMBERS, "cpu", 36 * 20)  # 3 tiles a datum
    looks, rows = 0, []
    real = small.guide_module.encoder.body[1]

    def count(module, inputs, output):
        nonlocal looks
        looks += 1

    real.register_forward_hook(count)
    values(small.model, small.guide, x, "compiled")
    recorded = looks
    looks = 0
    values(small.model, small.guide, x, "eager")
    # Handlers run for the recording and the looks before it only, not for 12 tiles.
    assert looks - recorded >= 12
    assert not rows


def test_against_the_closed_form(interpreted):
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(20)
    found = values(pair.model, pair.guide, x, "compiled", samples=2000)
    assert found.engine == "compiled"
    error = (found.value - pair.log_px(x)) / found.std_error
    assert float(error.abs().max()) < 5
    assert float(found.std_error.max()) < 0.2


@pytest.mark.parametrize("family", each(2, ["standard_normal", "vamp"]))
def test_machine_code_gives_the_same_estimate(family):
    small, x = vae(pv.priors.VampPrior(components=5) if family == "vamp" else family), pixels(4)
    eager = values(small.model, small.guide, x, "eager", samples=200)
    found = values(small.model, small.guide, x, "compiled", samples=200)
    again = values(small.model, small.guide, x, "compiled", samples=200)
    assert found.engine == "compiled"
    assert torch.allclose(found.value, eager.value, atol=1e-4)
    assert torch.equal(found.value, again.value)


def test_the_bound_is_recorded_too(interpreted, monkeypatch):
    monkeypatch.setitem(tiles_module.TILE_NUMBERS, "cpu", 36 * 40)
    for guide in ("mean_field", "iaf"):
        small, x = vae(guide=guide), pixels()
        eager = inference.bound(small.model, small.guide, x, num_samples=10, engine="eager")
        found = inference.bound(small.model, small.guide, x, num_samples=10, engine="compiled")
        assert found.kl_kind == eager.kl_kind
        assert found.kl == pytest.approx(eager.kl, rel=1e-5)
        assert torch.allclose(found.per_datum, eager.per_datum, atol=1e-5)
        assert found.elbo_std_error == pytest.approx(eager.elbo_std_error, rel=1e-4)


# Choices and failures ---------------------------------------------------------------------------


def test_auto_compiles_what_repays_it(interpreted, monkeypatch):
    small, x = vae(), pixels()
    assert values(small.model, small.guide, x, "auto").engine == "eager"
    monkeypatch.setitem(weighing.OPERATIONS_TO_REPAY, "cpu", 1e3)
    assert values(small.model, small.guide, x, "auto").engine == "compiled"


def test_the_work_is_that_of_the_products():
    """Decoder 3 -> 16 -> 36: 2 (3 x 16 + 16 x 36) operations a sample; the encoder's share."""
    small, x = vae(), pixels(8)
    with tiles_module.tiled(small.model, small.guide, x, 50, seed=0, plate="data") as laid:
        found = weighing.Weighing(laid, lambda record: (record.log_weight,), "eager")._work()
    decoder, encoder = 2 * (3 * 16 + 16 * 36), 2 * (36 * 16 + 16 * 6)
    assert found == pytest.approx(8 * 50 * (decoder + encoder / 16))


def test_an_unknown_engine_is_named():
    small, x = vae(), pixels(2)
    for ask in (values, lambda *args: inference.bound(*args[:3], engine=args[3])):
        with pytest.raises(inference.RequestError, match=r"engine: 'turbo' is unknown\. Choices"):
            ask(small.model, small.guide, x, "turbo")


def test_what_cannot_be_recorded_is_estimated_eagerly_and_said():
    hand = Tutorial()

    def model(x):
        pyro.module("decoder", hand.decoder)
        with pyro.plate("data", len(x)):
            loc = torch.zeros(len(x), 2)
            z = pyro.sample("latent", dist.Normal(loc, 1.0).to_event(1))
            logits = hand.decoder(z) * (1.0 if float(z.mean()) < 9 else 2.0)
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    x = (torch.rand(5, 6) < 0.5).float()
    expected = values(model, hand.guide, x, "eager")
    with pytest.warns(inference.EngineWarning, match=r"hands values of tensors to Python.*line"):
        found = values(model, hand.guide, x, "compiled")
    assert found.engine == "eager"
    assert torch.equal(found.value, expected.value)


@pytest.mark.parametrize("source", ["numpy", "counter"])
def test_what_changes_beside_tensors_is_noticed(source, interpreted):
    """Recorded, it would be one constant for all draws."""
    hand, calls = Tutorial(), []

    def model(x):
        calls.append(1)
        off = float(np.random.normal()) if source == "numpy" else len(calls) / 10  # noqa: NPY002
        pyro.module("decoder", hand.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = hand.decoder(z) + off
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    x = (torch.rand(5, 6) < 0.5).float()
    for ask in (values, lambda *args: inference.bound(*args[:3], engine=args[3])):
        with pytest.warns(inference.EngineWarning, match="something beside tensors changes"):
            ask(model, hand.guide, x, "compiled")


def test_a_compilation_that_fails_is_said(monkeypatch):
    def fail(graph, inputs):
        raise CompilationError("no compiler here")

    monkeypatch.setattr(INTERPRETED, fail)
    small, x = vae(), pixels(3)
    with pytest.warns(inference.EngineWarning, match="no compiler here"):
        found = values(small.model, small.guide, x, "compiled")
    assert found.engine == "eager"


def test_data_outside_the_support_are_refused_by_the_recorded_tiles_too(interpreted):
    small, x = vae(), pixels()
    x[5] = 3.0
    with pytest.raises(inference.PairError, match=r"site 'x': 1 of 9 .* lie outside"):
        values(small.model, small.guide, x, "compiled")


def test_a_weight_that_is_not_finite_is_blamed_on_datum_and_site(interpreted):
    small, x = vae(likelihood="gaussian"), pixels()
    with torch.no_grad():
        small.decoder.body[-1].bias[3] = math.nan
    with pytest.raises(inference.NonFiniteError) as eager:
        values(small.model, small.guide, x, "eager")
    with pytest.raises(inference.NonFiniteError) as found:
        values(small.model, small.guide, x, "compiled")
    assert str(found.value) == str(eager.value)


@pytest.mark.parametrize("precision", ["bfloat16", "float64"])
def test_precision_of_an_estimate(precision, interpreted):
    small, x = vae(), pixels()
    plain = values(small.model, small.guide, x, "eager", samples=500)
    for engine in ("eager", "compiled"):
        found = values(small.model, small.guide, x, engine, samples=500, precision=precision)
        assert found.precision == precision
        assert found.summary()["precision"] == precision
        assert all(p.dtype is torch.float32 for p in small.parameters())
        if precision == "bfloat16":
            shift = float((found.value - plain.value).mean())
            assert 0 < abs(shift) < 0.05
            assert f"moves the mean of the first 9 data by {shift:+.2g} nats" in str(found)
        else:
            error = (found.std_error.square() + plain.std_error.square()).sqrt()
            assert float(((found.value - plain.value) / error).abs().max()) < 5
            assert "moves the mean" not in str(found)


def test_even_share():
    shares = {(5000, 1337): 1250, (37, 16): 13, (8, 9): 8, (7, 2): 2, (100_000, 5349): 5000}
    for (count, most), share in shares.items():
        assert tiles_module.even_share(count, most) == share
