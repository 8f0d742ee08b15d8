"""The auxiliary guide: weights over z and a are weights of p(x)."""

import math

import pyro
import pytest
import torch
from pyro import poutine

import inference
import pyro_vae as pv


def build(**fields):
    guide = {"name": "auxiliary", "auxiliary_dim": 2, "context": 4, "hidden": 8}
    fields = {"data_shape": (4,), "latent_dim": 1, **fields}
    networks = {role: {"name": "mlp", "hidden": [6]} for role in ("encoder", "decoder")}
    vae = pv.VAE(guide=guide, **networks, **fields).double()
    with torch.no_grad():
        for p in vae.decoder.parameters():
            p.add_(0.5 * torch.randn_like(p))
        for p in vae.guide_module.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return vae


def pictures():
    return torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.double)] * 4)


@torch.no_grad()
def exact_evidence(vae, x):
    """log p(x) by a grid over the one latent."""
    side = torch.linspace(-9, 9, 4001, dtype=torch.double).unsqueeze(-1)
    log_p = vae.prior.distribution().log_prob(side).unsqueeze(-1)
    log_joint = vae.decode(side.unsqueeze(1)).log_prob(x) + log_p
    return log_joint.logsumexp(0) + math.log(18 / 4000)


def check_weights(vae, x, log_w):
    """Weights `[K, N]`: their mean over p(x) is 1 within 5 standard errors, of at most 0.02."""
    ratio = (log_w - exact_evidence(vae, x)).exp()
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert error.max() < 0.02
    assert ((ratio.mean(0) - 1).abs() < 5 * error).all()


def test_weights_are_those_of_the_evidence(own_store):
    vae, x = build(), pictures()[[0, 3, 10]]
    with torch.no_grad():
        record = inference.log_weights(vae.model, vae.guide, x, num_particles=40_000)
    assert set(record.latents) == {"z", "a"}
    assert not record.auxiliary
    check_weights(vae, x, record.log_weight)
    # The wrong twin: q(a|x) q(z|a,x) for q(z|x), without r(a|x,z); and a forgotten q(a|x).
    for twin in (record.log_weight - record.log_p["a"], record.log_weight + record.log_q["a"]):
        with pytest.raises(AssertionError):
            check_weights(vae, x, twin)


@torch.no_grad()
def test_the_model_keeps_its_data(own_store):
    """sum_x p(x, z, a) over z and a: the widened model has the probabilities of the plain one."""
    vae, x = build(), pictures()
    total = exact_evidence(vae, x).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-6)
    # r(a|x,z) integrates to one, so that p(x, z, a) has the marginal p(x, z).
    side = torch.linspace(-12, 12, 241, dtype=torch.double)
    a = torch.cartesian_prod(side, side)
    z = torch.randn(3, 1, dtype=torch.double)
    given = poutine.condition(
        vae.model, data={"z": z.expand(len(a), 3, 1), "a": a.unsqueeze(1).expand(-1, 3, -1)}
    )
    with pyro.plate("grid", len(a), dim=-2):
        trace = poutine.trace(given).get_trace(x[:3])
    trace.compute_log_prob()
    mass = trace.nodes["a"]["log_prob"].exp().sum(0) * 0.1**2
    torch.testing.assert_close(mass, torch.ones(3).double(), rtol=1e-6, atol=1e-6)
    joint = trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"]
    plain = vae.prior.distribution().log_prob(z) + vae.decode(z).log_prob(x[:3])
    torch.testing.assert_close(joint[0], plain)


def test_draws_without_a_density():
    vae, x = build(latent_dim=3), pictures()[:5]
    q = vae.encode(x)
    assert (q.batch_shape, q.event_shape) == ((5,), (3,))
    torch.manual_seed(1)
    z = q.expand([20_000, 5]).sample()
    assert z.shape == (20_000, 5, 3)
    with pyro.get_param_store().scope(), pyro.plate("draws", 20_000, dim=-2), torch.no_grad():
        from_guide = poutine.trace(vae.guide).get_trace(x).nodes["z"]["value"]
    error = (z.var(0) / 20_000 + from_guide.var(0) / 20_000).sqrt()
    assert ((z.mean(0) - from_guide.mean(0)).abs() < 5 * error).all()
    assert vae.latent_mean(x).shape == (5, 3)
    assert vae.reconstruct(x).shape == (5, 4)
    assert vae.generate(3).shape == (3, 4)
    with pytest.raises(NotImplementedError, match="an integral over a"):
        q.log_prob(z[0])


def test_estimators_take_both_latents(own_store):
    vae, x = build(), pictures()[[1, 7]]
    exact = exact_evidence(vae, x)
    for estimator in (
        inference.Importance(num_samples=4000),
        inference.AIS(num_temperatures=60, num_chains=64),
    ):
        found = inference.log_marginal(vae.model, vae.guide, x, estimator=estimator, seed=0)
        assert found.std_error.max() < 0.1
        assert ((found.value - exact).abs() < 5 * found.std_error).all()


def test_every_weight_learns(own_store):
    vae, x = build(), pictures()
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    inference.fit(vae.model, vae.guide, x, epochs=4, batch_size=8, seed=0, engine="eager")
    assert not {name for name, p in vae.named_parameters() if torch.equal(p, before[name])}
