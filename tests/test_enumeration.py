"""Discrete sites that are summed over: against closed forms and Pyro's `TraceEnum_ELBO`."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO

import inference
from tests.small_pairs import fit

PARALLEL = {"enumerate": "parallel"}
LOC = torch.tensor([-2.0, 0.0, 2.0])


@pytest.fixture(autouse=True)
def _own_store():
    with pyro.get_param_store().scope():
        yield


@pytest.fixture
def x():
    return 2 * torch.randn(20, generator=torch.Generator().manual_seed(0))


def clusters(x):
    """c ~ Cat(p), z ~ N(m_c, 1), x ~ N(z, 0.5): so x|c ~ N(m_c, sqrt(1.25))."""
    p = pyro.param("p", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    m = pyro.param("m", LOC.clone())
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(p), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(m[c], 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def scale():
    return pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)


def guide_of_z(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x, scale()))


def guide_of_both(x):
    w = pyro.param("w", torch.tensor([0.3, -0.1, 0.2]))
    b = pyro.param("b", torch.tensor([0.1, 0.2, 0.3]))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(logits=x[:, None] * w), infer=PARALLEL)
        loc = pyro.param("a", torch.tensor(0.5)) * x + b[c]
        pyro.sample("z", dist.Normal(loc, scale()))


def log_mixture(x):
    p = torch.tensor([0.2, 0.3, 0.5])
    joint = dist.Normal(LOC, 1.25**0.5).log_prob(x[:, None]) + p.log()
    return joint.logsumexp(1), joint.log_softmax(1)


@pytest.mark.parametrize("guide", [guide_of_z, guide_of_both])
def test_loss_and_gradients_are_those_of_pyro(guide, x):
    torch.manual_seed(0)
    traced = inference.trace(clusters, guide, x)
    parameters = list(traced.parameters.values())
    torch.manual_seed(1)
    found = traced(traced.parameters, x)
    torch.manual_seed(1)
    expected = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(clusters, guide, x) / len(x)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    ours = torch.autograd.grad(found, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for name, a, b in zip(traced.parameters, ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6), name


def test_without_other_latents_the_bound_is_log_p(x):
    """Everything summed out by the model: no guide site, no noise."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])), infer=PARALLEL)
            loc = pyro.param("m", LOC.clone())[c]
            pyro.sample("x", dist.Normal(loc, 1.25**0.5), obs=x)

    traced = inference.trace(model, lambda x: None, x)
    log_p, _ = log_mixture(x)
    assert float(traced(traced.parameters, x).detach()) == pytest.approx(
        -float(log_p.mean()), rel=1e-5
    )


def exact_guide(x):
    """q(c|x) = p(c|x), q(z|c,x) = p(z|c,x): the bound is tight for every draw."""
    _, log_posterior = log_mixture(x)
    pull = pyro.param("pull", torch.tensor(0.8))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(logits=log_posterior), infer=PARALLEL)
        pyro.sample("z", dist.Normal(LOC[c] + pull * (x - LOC[c]), 0.2**0.5))


def test_the_exact_guide_reaches_log_p_whatever_the_noise(x):
    traced = inference.trace(clusters, exact_guide, x)
    log_p, _ = log_mixture(x)
    for seed in range(3):
        torch.manual_seed(seed)
        found = -float(traced(traced.parameters, x).detach())
        assert found == pytest.approx(float(log_p.mean()), abs=1e-5)
    wrong = {**traced.parameters, "pull": torch.tensor(0.6)}  # leaves a gap
    assert -float(traced(wrong, x).detach()) < float(log_p.mean()) - 0.01


def test_two_sites_and_a_value_of_probability_zero(x):
    def model(x):
        shift = pyro.param("shift", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.5, 0.0])), infer=PARALLEL)
            flip = pyro.sample("flip", dist.Bernoulli(0.3), infer=PARALLEL)
            loc = LOC[c] * (1 - 2 * flip) + shift
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            probs = torch.tensor([0.25, 0.75, 0.0])
            pyro.sample("c", dist.Categorical(probs), infer=PARALLEL)

    traced = inference.trace(model, guide, x)
    found, gradients = traced.loss_and_grads(traced.parameters, x)
    expected = 0.0
    for k, q in enumerate([0.25, 0.75]):
        sign = dist.Normal(torch.stack([LOC[k], -LOC[k]]), 1.0).log_prob(x[:, None])
        log_px = (sign + torch.tensor([0.7, 0.3]).log()).logsumexp(1).mean()
        expected += q * (float(log_px) + torch.tensor(0.5 / q).log().item())
    assert float(found) == pytest.approx(-expected, rel=1e-5)
    assert all(bool(torch.isfinite(g).all()) for g in gradients.values())


@pytest.mark.parametrize("guide", [guide_of_z, guide_of_both])
@pytest.mark.parametrize("particles", [1, 3])
def test_engines_agree(guide, particles, x, monkeypatch):
    """The recorded step, run operation by operation, takes the eager way."""
    monkeypatch.setattr("inference.engines.compiled.compile_graph", lambda graph, inputs: graph)
    ends = {}
    for engine in ("eager", "compiled"):
        with pyro.get_param_store().scope():
            objective = inference.ELBO(num_particles=particles, warmup_epochs=2)
            result = fit(
                clusters, guide, x, engine=engine, objective=objective, learning_rate=0.05,
                batch_size=7,
            )  # fmt: skip
            assert result.engine == engine
            ends[engine] = pyro.param("m").detach().clone()
    assert torch.allclose(ends["eager"], ends["compiled"], atol=1e-5)
    assert not torch.allclose(ends["eager"], LOC, atol=1e-2)


def test_a_mixture_is_learned():
    """Three clusters far apart, found by the model's own sum over c."""
    generator = torch.Generator().manual_seed(0)
    which = torch.randint(3, (600,), generator=generator)
    x = torch.tensor([-3.0, 1.0, 4.0])[which] + 0.5 * torch.randn(600, generator=generator)

    def model(x):
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer=PARALLEL)
            pyro.sample("x", dist.Normal(m[c], 0.5), obs=x)

    fit(model, lambda x: None, x, epochs=30, batch_size=100, learning_rate=0.05)
    assert torch.allclose(pyro.param("m").detach(), torch.tensor([-3.0, 1.0, 4.0]), atol=0.15)


# What cannot be enumerated ---------------------------------------------------------------------


def refused(model, guide, x, match, **options):
    with pytest.raises(inference.PairError, match=match):
        inference.trace(model, guide, x, **options)


def test_a_site_in_a_plate_of_its_own_is_refused(x):
    def model(x):
        pyro.param("m", torch.tensor(0.0))
        with pyro.plate("data", len(x), dim=-1), pyro.plate("pixels", 4, dim=-2):
            c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c, 1.0), obs=x.expand(4, -1))

    refused(model, lambda x: None, x, r"site 'c' .* in plates \['data', 'pixels'\]; .* 'data'")


def test_a_global_site_is_refused(x):
    def model(x):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer=PARALLEL)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    refused(model, lambda x: None, x, r"site 'c' .* in plates \[\]")


def test_a_support_without_end_is_refused(x):
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Poisson(2.0), infer=PARALLEL)
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    refused(model, lambda x: None, x, r"site 'c' .* Poisson has no finite support")


def test_a_site_that_the_guide_draws_has_a_score_function(x):
    def guide(x):
        logits = pyro.param("w", torch.zeros(3))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("z", dist.Normal(LOC[c], 1.0))

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3))
            z = pyro.sample("z", dist.Normal(LOC[c], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    with pytest.raises(inference.Untraceable, match=r"site 'c' draws from Categorical, .* score"):
        inference.trace(model, guide, x)
