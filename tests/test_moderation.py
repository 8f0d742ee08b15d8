"""Variances of few draws, moderated by those of other data."""

import math

import pytest
import torch

from inference.evidence.moderation import FEWEST, inverse_trigamma, moderated


def drawn(sigma2, degrees, seed=0):
    torch.manual_seed(seed)
    chi2 = torch.distributions.Chi2(torch.tensor(float(degrees)).double()).sample(sigma2.shape)
    return sigma2 * chi2 / degrees


@pytest.mark.parametrize("value", [1e-6, 1e-3, 0.1, 1.0, 20.0, 1e5, 1e9])
def test_inverse_trigamma(value):
    x = torch.tensor(inverse_trigamma(value)).double()
    assert float(torch.polygamma(1, x)) == pytest.approx(value, rel=1e-3)


def test_alike_data_share_one_variance():
    found = moderated(drawn(torch.full((2000,), 0.5).double(), 15), 15)
    assert found.degrees > 200
    assert float(found.variance.std()) < 0.03
    assert float(found.variance.mean()) == pytest.approx(0.5, rel=0.03)


def test_the_prior_behind_the_variances_is_found():
    """sigma^2 of a scaled inverse chi-square with 10 degrees: d0 = 10, and less error than raw."""
    torch.manual_seed(1)
    chi2 = torch.distributions.Chi2(torch.tensor(10.0).double()).sample((20_000,))
    sigma2 = 10 * 0.3 / chi2
    raw = drawn(sigma2, 15, seed=2)
    found = moderated(raw, 15)
    assert found.degrees - 15 == pytest.approx(10, rel=0.1)
    # The posterior mean of 1/sigma^2 is 1/s~^2: no other function of s^2 is closer on average.
    error, raw_error = (float((1 / v - 1 / sigma2).square().mean()) for v in (found.variance, raw))
    assert error < 0.6 * raw_error


def test_what_cannot_be_moderated_stays():
    few = torch.linspace(0.1, 1.0, FEWEST - 1).double()
    assert moderated(few, 15) == (few, 15)
    odd = torch.cat([drawn(torch.ones(100).double(), 15), torch.tensor([0.0, math.inf, math.nan])])
    found = moderated(odd, 15).variance
    assert torch.equal(found[100], odd[100])
    assert math.isinf(found[101])
    assert math.isnan(found[102])
    assert float(found[:100].std()) < 0.5 * float(odd[:100].std())
