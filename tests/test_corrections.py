"""Corrections of log p^ by the same weights: less bias, and what each of them costs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import inference
from inference.evidence import streaming
from tests.exact_models import linear_gaussian

REPLICATIONS = 20_000


def lognormal(sd, num_samples, count=REPLICATIONS, seed=0) -> Tensor:
    """log w with E[w] = 1, so that log p(x) = 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, num_samples, generator=generator, dtype=torch.float64)
    return sd * noise - sd**2 / 2


def gaussian(stretch, num_samples, num_latents=2, count=REPLICATIONS, seed=0) -> Tensor:
    """log p(z|x)/q(z|x) for a guide with S = stretch V, z ~ q: again log p(x) = 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = count, num_samples, num_latents
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return num_latents / 2 * math.log(stretch) - 0.5 * (stretch - 1) * noise.square().sum(2)


def finished(log_weight: Tensor) -> dict[str, Tensor]:
    """Each row an estimate."""
    state = streaming.init(*log_weight.shape)
    rounding = torch.zeros(len(log_weight), dtype=torch.float64)
    return streaming.finish(streaming.update(state, log_weight, rounding))


def less_biased(better: Tensor, worse: Tensor, plain: Tensor, truth: Tensor | float = 0.0) -> bool:
    """Is |E[better] - truth| < |E[worse] - truth| beyond 5 errors of their difference?

    p^/p(x) - 1 of plain importance has mean 0 and is nearly log p^ - log p(x): without it, biases
    stand out from the noise.
    """
    noise = (plain - truth).exp() - 1
    small, large = (each - truth - noise for each in (better, worse))
    less = (large * large.mean().sign()) - (small * small.mean().sign())
    return float(less.mean()) > 5 * float(less.std()) / math.sqrt(len(less))


WEIGHTS = {
    "lognormal 0.5": lambda K, seed: lognormal(0.5, K, seed=seed),
    "lognormal 1.0": lambda K, seed: lognormal(1.0, K, seed=seed),
    "lognormal 1.5": lambda K, seed: lognormal(1.5, K, seed=seed),
    "guide too wide": lambda K, seed: gaussian(1.6, K, seed=seed),
    "guide too narrow": lambda K, seed: gaussian(0.7, K, seed=seed),
    "guide much too narrow": lambda K, seed: gaussian(0.45, K, seed=seed),
    "ten latents": lambda K, seed: gaussian(0.7, K, 10, seed=seed),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_corrections_have_less_bias(name):
    found = finished(WEIGHTS[name](30, 0))
    assert float(found["value"].mean()) < 0
    plain = found["value"]
    for correction in (found["delta"], found["jackknife"]):
        assert less_biased(correction, plain, plain)
        # Wrong: taken off, where it should be added.
        assert not less_biased(2 * plain - correction, plain, plain)


@pytest.mark.slow
@pytest.mark.parametrize("K", [100, 400])
@pytest.mark.parametrize("name", [n for n in WEIGHTS if n != "lognormal 0.5"])
def test_corrections_have_less_bias_with_more_samples(name, K):
    runs = [finished(WEIGHTS[name](K, seed)) for seed in range(2)]
    found = {key: torch.cat([run[key] for run in runs]) for key in runs[0]}
    assert less_biased(found["delta"], found["value"], found["value"])
    assert less_biased(found["jackknife"], found["value"], found["value"])


def test_corrections_of_an_exact_pair():
    """The same through `log_marginal`: 4,000 data of a linear model, 20 samples each."""
    pair = linear_gaussian(seed=1, stretch=0.7)
    x = pair.sample(4000, seed=2)
    importance = inference.Importance(num_samples=20)
    found = inference.log_marginal(pair.model, pair.guide, x, estimator=importance, progress=False)
    truth = pair.log_px(x)
    assert less_biased(found.delta, found.value, found.value, truth)
    assert less_biased(found.jackknife, found.value, found.value, truth)
    assert found.summary()["log_px_delta"] == pytest.approx(float(found.delta.mean()))
    assert float((found.half - found.value).max()) <= 1e-12  # by Jensen


def test_half_of_the_samples_are_half_as_good():
    """E[half] is that of an estimate with K/2 samples."""
    found, alone = finished(lognormal(1.0, 40)), finished(lognormal(1.0, 20, seed=1))
    difference = float(found["half"].mean() - alone["value"].mean())
    error = math.hypot(float(found["half"].std()), float(alone["value"].std()))
    assert abs(difference) < 5 * error / math.sqrt(REPLICATIONS)
    assert error / math.sqrt(REPLICATIONS) < 0.003
    rise = found["value"] - found["half"]
    assert float(rise.mean()) > 5 * float(rise.std()) / math.sqrt(REPLICATIONS)


@pytest.mark.parametrize(("name", "K"), [("guide much too narrow", 100), ("lognormal 1.5", 100)])
def test_smoothing_buys_a_smaller_error_with_more_bias(name, K):
    """PSIS as published is no cure of the bias, and must not be sold as one.

    Order statistics are replaced by quantiles of a fit that is shrunk to k = 0.5, and capped by the
    largest weight: the sum of a heavy tail falls.
    """
    found = finished(WEIGHTS[name](K, 0)[:8000])
    plain, psis = found["value"], found["psis"]
    squared = plain.square() - psis.square()
    assert float(squared.mean()) > 5 * float(squared.std()) / math.sqrt(len(squared))
    assert less_biased(plain, psis, plain)


def test_what_corrections_say_where_there_is_nothing_to_correct():
    constant = finished(torch.full((2, 200), -3.0, dtype=torch.float64))
    for name in ("half", "delta", "jackknife", "psis"):
        assert constant[name].tolist() == pytest.approx([-3.0, -3.0], abs=1e-12)
    single = finished(torch.full((1, 1), -3.0, dtype=torch.float64))
    assert all(math.isnan(single[name]) for name in ("half", "delta", "jackknife"))
    assert float(single["psis"]) == -3.0
    alone = torch.full((1, 200), -math.inf, dtype=torch.float64)
    alone[0, 7] = 0.0
    assert finished(alone)["jackknife"].tolist() == [math.inf]  # without it there is nothing
    assert finished(alone)["half"].tolist() == [-math.inf]


def test_jackknife_by_hand():
    """K = 3, w = 1, 2, 5: 3 log(8/3) - 2/3 (log 7/2 + log 6/2 + log 3/2)."""
    found = finished(torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64).log() - 300)
    expected = 3 * math.log(8 / 3) - 2 / 3 * (math.log(3.5) + math.log(3) + math.log(1.5)) - 300
    assert float(found["jackknife"]) == pytest.approx(expected, abs=1e-11)
    s2 = 30 / 64 - 1 / 3
    assert float(found["delta"]) == pytest.approx(math.log(8 / 3) - 300 + s2 / 2, abs=1e-11)
    expected = (math.log(1.0) + math.log(3.5)) / 2 - 300
    assert float(found["half"]) == pytest.approx(expected, abs=1e-11)


def test_the_paragraph_says_that_they_are_no_bounds():
    pair = linear_gaussian(seed=1, stretch=1.6)
    importance = inference.Importance(num_samples=200)
    found = inference.log_marginal(
        pair.model, pair.guide, pair.sample(30), estimator=importance, progress=False
    )
    said = str(found)
    assert f"Half of the samples give {float(found.half.mean()):.3f}; the other half adds" in said
    assert (
        f"Corrections, which are no bounds: delta {float(found.delta.mean()):.3f}, jackknife "
        f"{float(found.jackknife.mean()):.3f}, PSIS {float(found.psis.mean()):.3f}." in said
    )
    for name in ("half", "delta", "jackknife", "psis"):
        assert found.arrays()[name].shape == (30,)
        assert f"log_px_{name}" in found.summary()
