"""The linear classifier on features, and what it stands beside."""

from __future__ import annotations

import torch

from pyro_vae.app.probe import fitted, principal


def test_components_are_those_of_all_data():
    """Few data are seen along the directions in which all of them vary, not those few."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([3.0, 2.0, 0.1, 0.1, 0.1], dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator, dtype=torch.float64))
    z = torch.randn(500, 5, generator=generator, dtype=torch.float64)
    z = scales * torch.linalg.qr(z - z.mean(0))[0] * 500**0.5  # exactly uncorrelated
    x = 7 + z @ turn.T
    few, other = principal(x, x[:3], x[3:9], count=2)
    found = torch.cat([few, other]).abs()
    expected = z[:9, [1, 0]].abs()  # the largest last; signs are free
    torch.testing.assert_close(found, expected)
    # The wrong twin: three data span two directions of their own.
    (own,) = principal(x[:3], x[3:9], count=2)
    assert float((own.abs() - expected[3:]).abs().max()) > 1


def test_a_probe_tells_what_is_linear():
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(400) % 2
    noise = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    told = torch.cat([noise, (y[:, None] - 0.5) * 6 + noise[:, :1]], 1)
    assert fitted("told", told[:200], told[200:], y[:200], y[200:]).accuracy > 0.97
    assert fitted("untold", noise[:200], noise[200:], y[:200], y[200:]).accuracy < 0.65
