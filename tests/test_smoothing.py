"""Pareto k-hat against ArviZ, against exact tail indices, and at its edges."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from inference.evidence import streaming
from inference.evidence.smoothing import (
    MIN_TAIL,
    is_tied,
    khat_threshold,
    pareto_khat,
    tail_length,
)
from tests.exact_models import linear_gaussian

NAN, INF = math.nan, math.inf


@pytest.fixture(scope="module")
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces its successor at import
        import arviz

        return arviz


def draws(name: str, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    random = np.random.default_rng(seed)
    return torch.from_numpy(
        {
            "normal": lambda: random.normal(size=shape),
            "far from zero": lambda: -750 + 2 * random.normal(size=shape),
            "pareto 0.3": lambda: 0.3 * random.exponential(size=shape),
            "pareto 0.9": lambda: 0.9 * random.exponential(size=shape),
            "pareto 2.0": lambda: 2.0 * random.exponential(size=shape),
            "bounded": lambda: np.log(random.uniform(size=shape)),
            "very wide": lambda: 30 * random.normal(size=shape),
            "ties": lambda: np.round(random.normal(size=shape), 1),
        }[name]()
    )


@pytest.mark.parametrize("num_samples", [25, 100, 1000, 5000])
@pytest.mark.parametrize(
    "name",
    ["normal", "far from zero", "pareto 0.3", "pareto 0.9", "pareto 2.0", "bounded", "very wide"],
)
def test_equals_arviz(arviz, name, num_samples):
    """Both fit the draws above the same cutoff with the same rule, so 1e-6 is rounding alone."""
    log_weights = draws(name, (4, num_samples))
    _, expected = arviz.psislw(log_weights.numpy())
    found = pareto_khat(log_weights)
    assert torch.allclose(found, torch.from_numpy(expected), atol=1e-6, rtol=1e-6)
    # Wrong: the largest weight left out moves it.
    without = pareto_khat(log_weights.sort(1).values[:, :-1])
    assert not torch.allclose(without, torch.from_numpy(expected), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("num_samples", [25, 1000, 5000])
@pytest.mark.parametrize("name", ["normal", "pareto 0.3", "pareto 0.9", "bounded", "ties"])
def test_smoothed_means_equal_those_of_arviz(arviz, name, num_samples):
    log_weights = draws(name, (4, num_samples))
    smoothed, _ = arviz.psislw(log_weights.numpy(), normalize=False)
    expected = torch.from_numpy(smoothed).logsumexp(1) - math.log(num_samples)
    state = streaming.init(4, num_samples)
    for piece in log_weights.split(700, 1):
        state = streaming.update(state, piece, torch.zeros(4, dtype=torch.float64))
    found = streaming.finish(state)
    assert torch.allclose(found["psis"], expected, atol=1e-8, rtol=0)
    assert not torch.allclose(found["value"], expected, atol=1e-8, rtol=0)


def test_khat_is_of_each_datum_and_never_of_a_batch():
    """One bad datum among good ones whose log p(x) is larger."""
    threshold = khat_threshold(1000)
    bad, good = draws("pareto 2.0", (1, 1000)) - 700, draws("bounded", (50, 1000))
    every = torch.cat([good, bad])
    assert (pareto_khat(every) > threshold).tolist() == [False] * 50 + [True]
    assert float(pareto_khat(every.reshape(1, -1))) < threshold  # wrong: nothing is seen


def test_ties_at_the_cutoff_are_left_out_as_in_arviz(arviz):
    log_weights = draws("ties", (6, 1000))
    _, expected = arviz.psislw(log_weights.numpy())
    assert torch.allclose(pareto_khat(log_weights), torch.from_numpy(expected), atol=1e-6)


def test_shift_and_order_do_not_matter():
    log_weights = draws("pareto 0.9", (3, 500))
    shuffled = log_weights[:, torch.randperm(500, generator=torch.Generator().manual_seed(0))]
    expected = pareto_khat(log_weights)
    assert torch.allclose(pareto_khat(shuffled - 1e4), expected, atol=1e-8)
    assert torch.allclose(pareto_khat(log_weights[1:2])[0], expected[1], atol=1e-12)


@pytest.mark.parametrize("index", [0.3, 0.6, 0.9])
def test_finds_the_index_of_exact_pareto_tails(index):
    """Weights u^-k have index k. PSIS shrinks to 0.5 with the weight of ten draws."""
    log_weights = draws("pareto 0.3", (200, 5000)) * (index / 0.3)
    found = pareto_khat(log_weights)
    m = tail_length(5000)
    assert float(found.mean()) == pytest.approx((m * index + 5) / (m + 10), abs=0.03)
    # The fit's asymptotic sd is (1 + k) / sqrt(M).
    assert float(found.std()) == pytest.approx((1 + index) / math.sqrt(m), rel=0.25)


@pytest.mark.parametrize(
    ("stretch", "low", "high"), [(0.7, 0.15, 0.5), (0.4, 0.4, 0.75), (0.1, 0.7, 1.1)]
)
def test_orders_gaussian_pairs_as_their_exact_index(stretch, low, high):
    """Gaussian tails reach their index slowly: K = 5000 sees it within 0.25 only, in order."""
    pair = linear_gaussian(D=4, L=1, stretch=stretch)
    assert pair.khat() == pytest.approx(1 - stretch)
    torch.manual_seed(0)
    z = torch.randn(100, 5000, dtype=torch.float64)  # of the guide, in its own units
    log_weights = (
        0.5 * (1 - stretch) * z.square()
    )  # log p/q for S = stretch * V, but for a constant
    found = pareto_khat(log_weights)
    assert low < float(found.mean()) < high
    assert float(found.mean()) == pytest.approx(pair.khat(), abs=0.25)


def test_bounded_weights_have_no_tail():
    """Exact k = 0 with bounded weights: the estimate is negative or near 0."""
    torch.manual_seed(0)
    log_weights = -0.5 * 0.6 * torch.randn(50, 2000).double().square()  # S = 1.6 V
    assert float(pareto_khat(log_weights).max()) < 0.2


# Edges -------------------------------------------------------------------------------------


def khat(*rows, **options) -> list[float]:
    return pareto_khat(torch.tensor(rows, dtype=torch.float64), **options).tolist()


def test_constant_weights():
    for num_samples in (2, 20, 1000):
        assert khat([3.7] * num_samples) == [-INF]


def test_spread_within_rounding_is_constant():
    torch.manual_seed(0)
    log_weights = -80 + 1e-6 * torch.randn(2, 200).double()
    assert bool(torch.isfinite(pareto_khat(log_weights)).all())
    resolution = torch.tensor([1e-4, 1e-9]).double()
    first, second = pareto_khat(log_weights, resolution=resolution).tolist()
    assert first == -INF
    assert math.isfinite(second)


@pytest.mark.parametrize("num_samples", [1, 2, 5, 20])
def test_too_few_samples_are_unknown(num_samples):
    (found,) = pareto_khat(draws("normal", (1, num_samples))).tolist()
    assert math.isnan(found)


def test_the_smallest_number_that_has_a_tail():
    assert tail_length(20) == 4
    assert tail_length(21) == 5
    assert math.isfinite(float(pareto_khat(draws("normal", (1, 21)))))


def test_ties_of_all_the_largest_are_unknown():
    row = [0.0] * 60 + list(np.linspace(-5, -1, 40))
    assert math.isnan(khat(row)[0])


def test_zero_weights():
    """log w = -inf is a draw where the model's density is zero."""
    some = draws("normal", (1, 400))
    some[:, ::2] = -INF
    assert math.isfinite(float(pareto_khat(some)))
    nearly_all = torch.full((1, 400), -INF).double()
    nearly_all[0, :3] = torch.tensor([0.1, 0.2, 0.3])
    assert math.isnan(float(pareto_khat(nearly_all)))
    assert math.isnan(float(pareto_khat(torch.full((1, 400), -INF))))


def test_one_dominating_weight():
    log_weights = draws("normal", (2, 1000))
    log_weights[0, 17] += 50
    log_weights[1, 17] += 5000  # all others vanish beside it
    found = pareto_khat(log_weights)
    assert float(found[0]) > 1
    assert float(found[1]) == INF


def test_rows_do_not_disturb_each_other():
    rows = draws("normal", (600, 300))
    rows[5] = 2.0
    rows[6] = -INF
    rows[7, 0] = 1e4
    together = pareto_khat(rows)
    for i in (0, 5, 6, 7, 8, 300, 599):
        alone = pareto_khat(rows[i : i + 1])[0]
        assert torch.allclose(together[i], alone, atol=1e-10, equal_nan=True)


def tied(row, rounding=0.0) -> bool:
    tail = torch.tensor([row], dtype=torch.float64).sort(1).values
    return bool(is_tied(tail, torch.tensor([rounding])))


def test_a_tail_of_ties():
    spread = list(np.linspace(0, 5, 101))
    assert not tied(spread)
    assert tied([0.0] * 101)
    assert tied([0.0, 1.0, 2.0] * 34)
    assert tied(spread[:51] + spread[1:51])
    assert not tied(spread[:51] + spread[1:50] + [5.0])  # one less than half are alike
    assert not tied([0.0] * MIN_TAIL)  # the cutoff, and too few
    assert not tied([])
    # Weights of 0 are no ties; those of the others are.
    assert not tied([-INF] * 60 + spread[:40])
    assert not tied([-INF] * 60 + [1.0] * (MIN_TAIL - 1))
    assert tied([-INF] * 60 + [1.0] * 20 + [2.0] * 20)


def test_a_continuous_tail_that_rounding_made_of_steps_is_not_tied():
    steps = [1e-5 * (i // 4) for i in range(101)]
    assert tied(steps)
    assert not tied(steps, rounding=6.4e-4)
    levels = [0.1 * (i // 4) for i in range(101)]
    assert tied(levels, rounding=6.4e-4)


@pytest.mark.parametrize(
    ("num_samples", "threshold"), [(1, 0.0), (10, 0.0), (100, 0.5), (1000, 2 / 3), (10_000, 0.7)]
)
def test_threshold(num_samples, threshold):
    """min(1 - 1/log10 K, 0.7)."""
    assert khat_threshold(num_samples) == pytest.approx(threshold)
