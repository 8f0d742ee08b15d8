"""Bits per dimension by hand, for discrete and for dequantized data."""

import pytest
import torch

from pyro_vae.data.bits import bits_per_dim


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
