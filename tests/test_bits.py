"""Bits per dimension by hand, for discrete and for dequantized data."""

import math
from types import SimpleNamespace

import pytest
import torch

import pyro_vae as pv
from pyro_vae.app import evaluate as evaluation
from pyro_vae.data.bits import bits_per_dim
from pyro_vae.data.digits import Digits


def test_bits_per_dimension_by_hand():
    # Two pixels of 4 levels; u uniform. p(x) = 2 x on (0, 1) for each: P(level) is its integral.
    edges = torch.arange(5).double() / 4
    probability = edges[1:] ** 2 - edges[:-1] ** 2
    exact = -float(probability.log2()[[3, 1]].mean())
    found = bits_per_dim(float(probability.log()[[3, 1]].sum()), 2)
    assert found == pytest.approx(exact)
    u = (torch.arange(1000).double() + 0.5) / 1000
    density = [(2 * (level + u) / 4).log().mean() for level in (3, 1)]
    bound = bits_per_dim(float(sum(density)), 2, levels=4)
    by_hand = -sum(float((2 * (level + u) / 4 / 4).log2().mean()) for level in (3, 1)) / 2
    assert bound == pytest.approx(by_hand)
    assert exact < bound < exact + 0.1, "Jensen: noise can only cost"
    assert bits_per_dim(float(sum(density)), 2) < exact, "without the scale, too good to be true"


def test_missing_values_cost_no_bits():
    """log p is that of the known values, so the bits are shared among these."""
    dataset = Digits(binarize="none", train_size=20, test_size=8).load()
    fields = {"likelihood": {"name": "discretized_logistic", "levels": 17}, "missing": True}
    vae = pv.VAE(data_shape=(8, 8), **fields)
    mask = torch.zeros(8, 8, 8, dtype=torch.bool)
    mask[:, :2] = True  # 16 of 64
    estimate = SimpleNamespace(mean=-16 * math.log(17), test_std_error=16 * math.log(2))
    found = evaluation._bits(vae, dataset, (dataset.test, mask), estimate)
    assert found["bits_per_dim"] == pytest.approx(math.log2(17))
    assert found["bits_per_dim_std_error"] == pytest.approx(1.0)
