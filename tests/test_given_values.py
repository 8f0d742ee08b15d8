"""Values that no shape tells: labels out of range, exposures that are no rate's factor, masks."""

import math

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.errors import RequestError


def conditional():
    return pv.VAE(data_shape=(3,), latent_dim=1, label="condition", classes=4)


def test_exposures_are_positive():
    vae = pv.VAE(data_shape=(3,), latent_dim=1, likelihood="poisson", exposure=True)
    x = torch.ones(4, 3)
    vae.initialize(x, torch.ones(4))
    for wrong in (0.0, -1.0, math.nan, math.inf):
        exposure = torch.tensor([1.0, wrong, 2.0, 3.0])
        with pytest.raises(RequestError, match="exposure: 1 of 4 are zero, negative or not finite"):
            vae.initialize(x, exposure)


@pytest.mark.parametrize(
    ("num", "y", "said"),
    [
        (2, 4, "y: 4 is no label; expected integers from 0 to 3"),
        (2, -2, "y: -2 is no label; expected integers from 0 to 3$"),
        (2, -1, r"y: 2 of 2 labels are missing \(-1\)"),
        (2, "3", "y: '3'; expected one label, or a tensor of 2"),
        (2, torch.tensor([1, 2, 3]), r"y: shape \(3,\); expected one label, or a tensor of 2"),
        (2, torch.tensor([1.0, 2.0]), "expected integers"),
        (0, 1, "num: 0; ask for one or more"),
    ],
)
def test_generate_refuses_labels_that_are_none(num, y, said):
    with pytest.raises(RequestError, match=said):
        conditional().generate(num, y=y)


def test_generate_takes_a_label_of_any_integer_type():
    torch.manual_seed(0)
    vae = conditional()
    torch.manual_seed(1)
    plain = vae.generate(5, y=2)
    for y in (np.int64(2), torch.full((5,), 2)):
        torch.manual_seed(1)
        torch.testing.assert_close(vae.generate(5, y=y), plain)


def test_generate_without_labels_takes_none():
    with pytest.raises(RequestError, match="y: this VAE has no labels"):
        pv.VAE(data_shape=(3,), latent_dim=1).generate(2, y=1)


def test_labels_out_of_range_are_refused():
    x, y = torch.zeros(2, 3), torch.tensor([0, 4])
    for call in (conditional().initialize, conditional().reconstruct):
        with pytest.raises(RequestError, match="y: 4 is no label; expected integers from 0 to 3"):
            call(x, y)
    latent = pv.VAE(data_shape=(3,), latent_dim=1, label="latent", classes=4)
    latent.initialize(x, torch.tensor([0, -1]))
    with pytest.raises(RequestError, match="or -1 where a label is missing"):
        latent.initialize(x, torch.tensor([0, -2]))


def test_a_mask_is_of_truth_values():
    vae = pv.VAE(data_shape=(3,), latent_dim=1, missing=True)
    with pytest.raises(RequestError, match=r"mask has type torch.float32; expected torch.bool"):
        vae.reconstruct(torch.zeros(2, 3), torch.ones(2, 3))
