"""Bessel functions against scipy's."""

import math

import numpy as np
import pytest
import torch

from pyro_vae.bessel import log_mgf, mean_height
from tests.grids import DOUBLE


@pytest.mark.parametrize("dim", [2, 3, 4, 10, 50, 61, 62, 63, 200, 1000])
def test_bessel_functions(dim):
    """Against scipy, on both sides of where one series takes over from the other."""
    special = pytest.importorskip("scipy.special")
    kappa = torch.tensor([1e-3, 0.1, 1, 5, 20, 29.99, 30.01, 35, 1e2, 1e3, 1e4, 1e5], **DOUBLE)
    kappa.requires_grad_()
    v, k = dim / 2 - 1, kappa.detach().numpy()
    scaled = special.ive(v, k)
    found = log_mgf(dim, kappa)
    truth = torch.from_numpy(np.log(np.maximum(scaled, 1e-300)) + k - v * np.log(k / 2))
    known = torch.from_numpy(scaled > 1e-290)  # scipy's underflow
    assert int(known.sum()) >= 2
    torch.testing.assert_close(
        found[known], truth[known] + math.lgamma(v + 1), rtol=1e-11, atol=1e-11
    )
    (slope,) = torch.autograd.grad(found.sum(), kappa)
    torch.testing.assert_close(slope, mean_height(dim, kappa), rtol=0, atol=1e-9)
    at_zero = torch.zeros((), **DOUBLE, requires_grad=True)
    value = log_mgf(dim, at_zero)
    assert float(value.detach()) == pytest.approx(0, abs=1e-12)
    assert float(torch.autograd.grad(value, at_zero)[0]) == 0
