"""Hierarchies: their density is the product of their levels', their log p(x) that of a grid."""

from __future__ import annotations

import math

import pytest
import torch

import inference
import pyro_vae as pv
from pyro_vae.errors import SpecError

NET = pv.networks.MLP(hidden=(8,))
PRIOR = {"name": "hierarchical", "network": NET.to_dict()}
GRID = torch.linspace(-7, 7, 281, dtype=torch.float64)


def build(guide, levels=(1, 1), prior=PRIOR, data=(5,), **fields):
    torch.manual_seed(3)
    guide = {"name": guide} if guide == "ladder" else {"name": guide, "network": NET.to_dict()}
    vae = pv.VAE(
        data_shape=data,
        latent_dim=levels,
        prior=prior,
        guide=guide,
        encoder=NET,
        decoder=NET,
        **fields,
    )
    vae.guide_module.encoder.shrink_outputs(0.2)  # near the prior: weights without a heavy tail
    for net in vae.prior.below:  # levels that depend on each other
        net.shrink_outputs(5)
    return vae.double().eval()


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("guide", ["bottom_up", "top_down", "ladder"])
def test_log_px_is_that_of_a_grid(guide, skip):
    vae = build(guide, prior={**PRIOR, "skip": skip})
    torch.manual_seed(0)
    x = (torch.rand(5, 5) < 0.5).double()
    with torch.no_grad():
        z = torch.cartesian_prod(GRID, GRID)
        each = vae.decode(z).log_prob(x[:, None]) + vae.prior.distribution().log_prob(z)
        exact = torch.logsumexp(each, 1) + 2 * math.log(float(GRID[1] - GRID[0]))
        total = vae.prior.distribution().log_prob(z).logsumexp(0) + 2 * math.log(
            float(GRID[1] - GRID[0])
        )
    assert float(total) == pytest.approx(0.0, abs=1e-3)
    for estimator in (
        inference.Importance(num_samples=20_000),
        inference.AIS(num_temperatures=40, num_chains=64),
    ):
        found = inference.log_marginal(
            vae.model,
            vae.guide,
            x,
            estimator=estimator,
            engine="eager",
            precision="float64",
            progress=False,
        )
        assert ((found.value - exact).abs() < 5 * found.std_error + 2e-3).all()


@pytest.mark.parametrize("guide", ["bottom_up", "top_down", "ladder"])
def test_one_vector_holds_all_levels(guide):
    vae = build(guide, levels=(3, 2, 2))
    x = (torch.rand(4, 5) < 0.5).double()
    q = vae.encode(x)
    z = q.sample((6,))
    assert z.shape == (6, 4, 7)
    assert q.log_prob(z).shape == (6, 4)
    record = inference.log_weights(vae.model, vae.guide, x, num_particles=6)
    drawn = torch.cat([record.latents[name] for name in ("z1", "z2", "z3")], -1)
    torch.testing.assert_close(q.log_prob(drawn), sum(record.log_q.values()))
    of_prior = sum(record.log_p[name] for name in ("z1", "z2", "z3"))
    torch.testing.assert_close(vae.prior.distribution().log_prob(drawn), of_prior)
    assert vae.draw_prior(9)[0].shape == (9, 7)
    assert vae.latent_mean(x).shape == (4, 7)


def test_a_ladder_multiplies_what_x_says_with_what_the_prior_says():
    vae = build("ladder")
    x = torch.rand(1, 5).double()
    with torch.no_grad():
        features = vae.guide_module.encode(x)
        above = torch.tensor([[0.7]], dtype=torch.float64)
        merged = vae.guide_module.merged(0, features[0], above)
        loc, raw = vae.guide_module.down[0](features[0]).chunk(2, -1)
        own = torch.distributions.Normal(loc, raw.exp())
        prior = vae.prior.given_above(0, above)
        grid = GRID[:, None, None]
        product = (own.log_prob(grid) + prior.log_prob(grid)).squeeze()
        product = product - product.logsumexp(0) - math.log(float(GRID[1] - GRID[0]))
        torch.testing.assert_close(merged.log_prob(grid).squeeze(), product, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("label", ["condition", "cluster"])
def test_a_top_given_its_label_makes_the_hierarchy_so(label):
    """log p(x|y), or that of a mixture of hierarchies, against a grid."""
    prior = {**PRIOR, "top": {"name": "conditional", "spread": 1.5}}
    vae = build("top_down", prior=prior, label=label, classes=2)
    torch.manual_seed(0)
    x, y = (torch.rand(4, 5) < 0.5).double(), torch.tensor([0, 1, 1, 0])
    cell = 2 * math.log(float(GRID[1] - GRID[0]))
    told = label == "condition"
    with torch.no_grad():
        z = torch.cartesian_prod(GRID, GRID)
        joint = []
        for c in (0, 1):
            each = torch.full((len(z),), c)
            p = vae.decode(z, each if told else None).log_prob(x[:, None])
            joint.append(torch.logsumexp(p + vae.log_prior(z, each), 1) + cell)
        joint = torch.stack(joint, 1)  # log p(x|y)
        one = vae.log_prior(z[:3], y[:3])
        torch.testing.assert_close(one[1], vae.log_prior(z[1], y[1]))
    assert (joint[:, 0] - joint[:, 1]).abs().min() > 1e-3
    exact = joint.gather(1, y[:, None]).squeeze(1) if told else joint.logsumexp(1) - math.log(2)
    found = inference.log_marginal(
        vae.model,
        vae.guide,
        (x, y) if told else x,
        estimator=inference.Importance(num_samples=20_000),
        engine="eager",
        precision="float64",
        progress=False,
    )
    assert ((found.value - exact).abs() < 5 * found.std_error + 2e-3).all()
    assert vae.generate(6).shape == (6, 5)


def test_what_the_top_may_be():
    build("ladder", prior={**PRIOR, "top": {"name": "vamp", "components": 4}})
    with pytest.raises(SpecError, match="guides that fit: ladder, top_down"):
        build("bottom_up", prior={**PRIOR, "top": "vamp"})
    with pytest.raises(SpecError, match="one level of real latents"):
        build("ladder", prior={**PRIOR, "top": "hierarchical"})
    with pytest.raises(SpecError, match="asks for many"):
        pv.VAESpec(latent_dim=(3, 2))
    with pytest.raises(SpecError, match="asks for one"):
        pv.VAESpec(prior="hierarchical", guide="ladder")
    with pytest.raises(SpecError, match="one for each of two or more levels"):
        pv.VAESpec(latent_dim=(3,))
