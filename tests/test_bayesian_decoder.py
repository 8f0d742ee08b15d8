"""A decoder whose weights are latents."""

from __future__ import annotations

import math

import pyro
import pytest
import torch

import inference
import pyro_vae as pv
from pyro_vae.app.pairs import local_pair
from pyro_vae.errors import SpecError


def build():
    torch.manual_seed(0)
    decoder = pv.networks.BayesianMLP(hidden=(3,), initial_scale=0.3)
    encoder = pv.networks.MLP(hidden=(8,))
    vae = pv.VAE(data_shape=(4,), latent_dim=2, encoder=encoder, decoder=decoder)
    return vae.double().eval()


def x_of(rows=6):
    torch.manual_seed(1)
    return (torch.rand(rows, 4) < 0.5).double()


def test_weights_of_several_particles_are_run_at_once():
    vae = build()
    weights = torch.randn(5, 1, vae.decoder.loc.numel(), dtype=torch.float64)
    z = torch.randn(5, 7, 2, dtype=torch.float64)
    together = vae.outputs(z, weights=weights)
    for k in range(5):
        alone = vae.outputs(z[k], weights=weights[k, 0])
        torch.testing.assert_close(together[k], alone)


def test_the_layers_are_those_of_a_perceptron():
    vae = build()
    z = torch.randn(7, 2, dtype=torch.float64)
    flat = torch.randn_like(vae.decoder.loc)
    w1, b1, w2, b2 = flat.split([6, 3, 12, 4])
    by_hand = torch.tanh(z @ w1.reshape(2, 3) + b1) @ w2.reshape(3, 4) + b2
    torch.testing.assert_close(vae.outputs(z, weights=flat), by_hand)


def test_the_bound_counts_the_weights_once():
    """KL of the weights is divided by N, in closed form here: a step's loss holds it."""
    vae, x = build(), x_of()
    loss = {}
    for num_data in (6, 60):
        traced = inference.trace(
            vae.model, vae.guide, x, num_data=num_data, objective=inference.ELBO(kl="analytic")
        )
        torch.manual_seed(0)
        loss[num_data] = float(traced(traced.parameters, x).detach())
    net = vae.decoder
    q = torch.distributions.Normal(net.loc, net.log_scale.exp())
    p = torch.distributions.Normal(torch.zeros_like(net.loc), net.prior_scale)
    kl = float(torch.distributions.kl_divergence(q, p).sum().detach())
    assert loss[6] - loss[60] == pytest.approx(kl / 6 - kl / 60, rel=1e-6)


def test_log_p_is_given_the_weights():
    vae, x = build(), x_of()
    found = inference.log_predictive(
        vae.model,
        vae.guide,
        x,
        draws=3,
        estimator=inference.Importance(num_samples=20_000),
        precision="float64",
        progress=False,
    )
    draws = inference.global_draws(vae.model, vae.guide, x, num_draws=3, seed=0)
    assert draws["decoder_weights"].shape == (3, vae.decoder.loc.numel())
    assert math.isfinite(found.mean)
    # At the means of the weights the decoder is an ordinary one, whose log p(x) a grid tells.
    grid = torch.linspace(-6, 6, 121, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        prior = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
        each = vae.decode(z).log_prob(x[:, None]) + prior
        exact = each.logsumexp(1) + 2 * math.log(float(grid[1] - grid[0]))
    at_means = inference.log_marginal(
        *local_pair(vae),
        x,
        estimator=inference.Importance(num_samples=20_000),
        engine="eager",
        precision="float64",
        progress=False,
    )
    assert ((at_means.value - exact).abs() < 5 * at_means.std_error + 1e-3).all()


def test_only_decoders_have_weights_that_are_latents():
    with pytest.raises(SpecError, match="weights that are latents are for decoders"):
        pv.VAE(data_shape=(4,), encoder="bayesian_mlp")


def test_the_prior_of_output_biases_is_centred_where_the_data_are():
    """And stays there when the weights are saved and loaded."""
    x = torch.zeros(50, 5)
    x[:25, 0] = 1.0
    vae = pv.VAE(data_shape=(5,), latent_dim=2, decoder={"name": "bayesian_mlp", "hidden": [4]})
    assert bool((vae.decoder.prior_loc == 0).all())
    vae.initialize(x)
    bias = vae.decoder.prior_loc[-5:]
    assert float(bias[0]) == pytest.approx(0.0, abs=1e-6)
    assert float(bias[1:].max()) < -3
    torch.testing.assert_close(bias, vae.decoder.loc.detach()[-5:])
    assert bool((vae.decoder.prior_loc[:-5] == 0).all())
    other = pv.VAE.from_spec(vae.spec)
    other.load_state_dict(vae.state_dict())
    with pyro.plate("data", 1), torch.no_grad():
        drawn = torch.stack([other.decoder.sample_prior() for _ in range(400)])
    assert float((drawn.mean(0) - vae.decoder.prior_loc).abs().max()) < 0.25
