"""Renyi bounds and CUBO against closed forms, and what they say of themselves."""

from __future__ import annotations

import json
import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from tests.exact_models import agrees, linear_gaussian

ALPHAS = (1.0, 0.9, 0.5, 0.0, -1.0)


def bounds(pair, x, **options):
    options = {"alphas": ALPHAS, "progress": False} | options
    return inference.variational_bounds(pair.model, pair.guide, x, **options)


def population(pair, x, alpha):
    """log p(x) + log E_q[(p(z|x)/q)^(1 - alpha)] / (1 - alpha); log p(x) - KL for alpha = 1."""
    if alpha == 1:
        return pair.log_px(x) - pair.kl()
    return pair.log_px(x) + math.log(pair.moment(1 - alpha)) / (1 - alpha)


PAIRS = {
    "too wide": {"stretch": 1.5},
    "too narrow": {"stretch": 0.75},
    "shifted": {"stretch": 1.2, "delta": 0.4},
}


@pytest.mark.parametrize("name", PAIRS)
def test_unbiased_on_the_scale_of_powers(name):
    """E exp((1 - alpha) (L^ - log p(x))) = E_q[(p(z|x)/q)^(1 - alpha)], in closed form."""
    pair = linear_gaussian(seed=1, L=2, **PAIRS[name])
    x = pair.sample(600, seed=3)
    found = bounds(pair, x, num_samples=500)
    for alpha, value in zip(ALPHAS, found.value, strict=True):
        if alpha == 1:
            continue
        ratio = ((1 - alpha) * (value - pair.log_px(x))).exp()
        error = ratio.std() / math.sqrt(len(x))
        assert agrees(ratio.mean(), pair.moment(1 - alpha), error, ceiling=0.02), alpha
        # Wrong: the power is alpha, not 1 - alpha.
        if alpha not in (0.0, 0.5):
            assert not agrees(ratio.mean(), pair.moment(alpha), error), alpha


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_errors(name):
    pair = linear_gaussian(seed=1, L=2, **PAIRS[name])
    x = pair.sample(400, seed=3)
    found = bounds(pair, x, num_samples=4000)
    for i, alpha in enumerate(ALPHAS):
        truth = population(pair, x, alpha)
        assert agrees(found.mean[i], float(truth.mean()), found.mc_std_error[i], ceiling=0.01)
        z = (found.value[i] - truth) / found.std_error[i]
        assert 0.8 < float(z.std()) < 1.25, alpha
    # In population they fall with alpha, and lie on their sides of log p(x).
    means = [float(population(pair, x, alpha).mean()) for alpha in ALPHAS]
    assert means == sorted(means)
    assert means[2] < float(pair.log_px(x).mean()) < means[-1]


def test_few_draws_make_cubo_too_low():
    """At finite K it is no upper bound, and must not be called one."""
    pair = linear_gaussian(seed=1, L=2, stretch=0.55)
    x = pair.sample(500, seed=3)
    found = bounds(pair, x, alphas=(-1.0, -3.0), num_samples=3)
    truth, cubo = pair.log_px(x), found.value[0]
    assert float((cubo - population(pair, x, -1.0)).mean()) < -0.1
    assert float((cubo < truth).double().mean()) > 0.3
    assert math.isinf(pair.moment(4))  # CUBO_4 is infinite, and its estimate is not
    assert bool(found.value[1].isfinite().all())
    said = str(found)
    assert "no estimate of log p(x)" in said
    assert "too low with 3, and so no bound at all: CUBO_2" in said
    assert "upper" not in said
    assert not isinstance(found, inference.Estimate)


def test_khat_of_powers():
    """w^2 has twice the tail index of w: CUBO_2 of a narrow guide is flagged before importance."""
    pair = linear_gaussian(D=4, L=1, stretch=0.45)
    x = pair.sample(60)
    found = bounds(pair, x, alphas=(0.5, 0.0, -1.0), num_samples=5000)
    half, one, two = found.khat.mean(1).tolist()
    assert half < one < two
    assert one == pytest.approx(pair.khat(), abs=0.25)
    assert two == pytest.approx(2 * one, abs=0.15)
    assert found.num_khat_bad[2] > 30 > found.num_khat_bad[0]
    assert f"CUBO_2: for {found.num_khat_bad[2]} data k-hat of w^2 exceeds" in str(found)


def test_alpha_0_is_importance_and_alpha_1_the_elbo():
    """With the same seed the draws are the same."""
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(30)
    found = bounds(pair, x, num_samples=300, seed=4)
    importance = inference.Importance(num_samples=300)
    other = inference.log_marginal(
        pair.model, pair.guide, x, estimator=importance, seed=4, progress=False
    )
    assert torch.allclose(found.value[3], other.value, atol=1e-10, rtol=0)
    assert torch.allclose(found.std_error[3], other.std_error, atol=1e-10, rtol=0)
    assert torch.allclose(found.value[0], other.elbo, atol=1e-10, rtol=0)
    near = bounds(pair, x, num_samples=300, seed=4, alphas=(1 - 1e-5,))
    assert torch.allclose(near.value[0], found.value[0], atol=1e-3)
    assert torch.allclose(near.std_error[0], found.std_error[0], rtol=1e-2)


def test_pieces_give_what_the_whole_gives(monkeypatch):
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(30)
    monkeypatch.setitem(inference.tiles.TILE_NUMBERS, "cpu", 100 * x.shape[1])
    whole = bounds(pair, x, num_samples=430)
    monkeypatch.setattr("inference.evidence.importance.WEIGHTS_AT_ONCE", 150)
    parts = bounds(pair, x, num_samples=430)
    for name, expected in whole.arrays().items():
        assert torch.allclose(parts.arrays()[name], expected, atol=1e-10, rtol=0, equal_nan=True)
    # Wrong means of parts would be far from these.
    assert float((whole.value[0] - (pair.log_px(x) - pair.kl())).abs().max()) < 0.2


def test_an_exact_guide_and_one_sample():
    pair = linear_gaussian(seed=1)
    x = pair.sample(5)
    found = bounds(pair, x, num_samples=40)
    assert torch.allclose(found.value, pair.log_px(x).expand(5, -1), atol=1e-9)
    assert float(found.std_error.abs().max()) < 1e-7
    single = bounds(pair, x, num_samples=1)
    assert bool(single.std_error.isnan().all())


def test_weights_that_are_zero(monkeypatch):
    """A guide that draws what the prior does not have: ELBO -inf, the others finite."""
    prior = torch.tensor([0.3, 0.7, 0.0], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=prior.log()))
            pyro.sample("x", dist.Normal(z.double(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.full((len(x), 3), 1 / 3)))

    x = torch.linspace(0, 1, 5).double()
    monkeypatch.setattr("inference.evidence.importance.WEIGHTS_AT_ONCE", 50)
    found = inference.variational_bounds(model, guide, x, num_samples=3000, progress=False)
    assert found.value[0].tolist() == [-math.inf] * 5
    assert bool(found.std_error[0].isnan().all())
    likelihood = (
        torch.distributions.Normal(torch.arange(3).double(), 1.0).log_prob(x[:, None]).exp()
    )
    truth = (likelihood @ prior).log()
    assert agrees(found.value[2], truth, found.std_error[2], ceiling=0.05)


def test_a_pair_that_is_no_autoencoder():
    """Counts with a Gamma rate: a positive latent, and the joint bound with plate=None."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(2.5 + x, 2.5))

    x = torch.arange(6.0).double()
    truth = torch.distributions.NegativeBinomial(3.0, probs=torch.tensor(1 / 3)).log_prob(x)
    found = inference.variational_bounds(model, guide, x, num_samples=4000, progress=False)
    below, cubo = found.value[:3] - truth, found.value[3] - truth
    assert bool((below < 5 * found.std_error[:3]).all())
    assert float(cubo.mean()) > 0
    joint = inference.variational_bounds(
        model, guide, x, plate=None, num_samples=4000, progress=False
    )
    assert joint.value.shape == (4, 1)
    error = math.hypot(float(joint.std_error[0]), float(found.std_error[0].square().sum().sqrt()))
    assert agrees(joint.value[0, 0], found.value[0].sum(), error, ceiling=0.1)


def test_what_is_said():
    pair = linear_gaussian(seed=1, stretch=1.6)
    found = bounds(pair, pair.sample(20), num_samples=200)
    summary = found.summary()
    json.dumps(summary, allow_nan=False)
    assert [b["name"] for b in summary["bounds"]] == [
        "ELBO", "Renyi(0.9)", "Renyi(0.5)", "Renyi(0)", "CUBO_2",
    ]  # fmt: skip
    assert [b["side"].split()[0] for b in summary["bounds"]] == ["below"] * 4 + ["above"]
    assert "\n" not in str(found)
    assert f"ELBO {found.mean[0]:.3f} +- " in str(found)
    assert found.arrays()["value_0.5"].shape == (20,)


@pytest.mark.parametrize("alphas", [(), "half", (1.5,), (math.nan,), (True,), (0.5, 0.5), None])
def test_alphas_that_make_no_sense(alphas):
    pair = linear_gaussian(seed=1, stretch=1.6)
    with pytest.raises(inference.RequestError, match="alphas: got"):
        bounds(pair, pair.sample(3), alphas=alphas)
