"""What each objective refuses, by name, and what it takes: sites, densities, guides."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from small_pairs import (
    closed_over,
    fit,
    global_guide,
    global_model,
    line_data,
    line_model,
    patterns,
)
from torch import nn

import inference
import pyro_vae as pv
from inference import OBJECTIVES, PairError
from inference.engines import compiled


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


WEIGHING = ["iwae", "dreg", "renyi", "reweighted_wake_sleep", "thermodynamic"]
TWICE = ["dreg", "stl"]
FIXED = ["reweighted_wake_sleep", "thermodynamic"]
PATHS = [name for name in OBJECTIVES if name not in ("elbo", *FIXED)]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_latents_outside_the_plate(name):
    settings = {"objective": name, "epochs": 1}
    if name in WEIGHING:
        with pytest.raises(PairError, match=f"site 'slope' stands outside .* objective '{name}'"):
            fit(global_model, global_guide, line_data(), **settings)
    elif name in ("total_correlation", "info_vae"):
        with pytest.raises(PairError, match="site 'slope'"):
            fit(global_model, global_guide, line_data(), **settings)
    elif name == "m2":
        with pytest.raises(PairError, match="notes no 'log_classifier'"):
            fit(global_model, global_guide, line_data(), **settings)
    else:
        fit(global_model, global_guide, line_data(), **settings)


def coin_model(x):
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(0.5 * torch.ones(len(x))))
        pyro.sample("x", dist.Normal(loc[c.long()], 1.0), obs=x)


def coin_guide(x):
    lean = pyro.param("lean", torch.tensor(0.2))
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Bernoulli(logits=lean * x))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_discrete_draws(name, monkeypatch):
    """Fixed draws may be discrete, in the recorded step, too."""
    monkeypatch.setattr(compiled, "compile_graph", lambda graph, inputs: graph)
    x = line_data()[1]
    if name in PATHS:
        with pytest.raises(PairError, match=r"site 'c' draws from Bernoulli.*'reweighted_wake_sl"):
            fit(coin_model, coin_guide, x, objective=name, epochs=1)
        return
    engines = ["eager", "compiled"] if name in FIXED else ["eager"]
    found = []
    for engine in engines:
        with pyro.get_param_store().scope():
            result = fit(coin_model, coin_guide, x, objective=name, engine=engine, epochs=2)
            assert result.engine == engine, result.engine_reason
            found.append(pyro.param("lean").item())
    assert found[0] == pytest.approx(found[-1], abs=1e-6)
    assert found[0] != pytest.approx(0.2, abs=1e-4)


def marked(guide):
    return pyro.infer.config_enumerate(guide, "parallel")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sites_that_the_guide_sums_over(name):
    x = line_data()[1]
    if name in ("elbo", "beta_elbo", "free_bits", "reconstruction", *FIXED):
        fit(coin_model, marked(coin_guide), x, objective=name, epochs=1)
    elif name == "m2":
        with pytest.raises(PairError, match="notes no 'log_classifier'"):
            fit(coin_model, marked(coin_guide), x, objective=name, epochs=1)
    else:
        with pytest.raises(PairError, match=f"'c' is marked for enumeration .* '{name}' is a func"):
            fit(coin_model, marked(coin_guide), x, objective=name, epochs=1)
    analytic = inference.ELBO(kl="analytic")
    fit(coin_model, marked(coin_guide), x, objective=analytic, epochs=1)


@pytest.mark.parametrize("name", FIXED)
def test_marked_sites_are_drawn_where_draws_are_held_fixed(name):
    """With the same noise, a mark changes nothing."""
    x = line_data()[1]
    found = []
    for guide in (coin_guide, marked(coin_guide)):
        with pyro.get_param_store().scope():
            fit(coin_model, guide, x, objective=name, epochs=3)
            found.append(pyro.param("lean").item())
    assert found[0] == found[1] != pytest.approx(0.2, abs=1e-4)


@pytest.mark.parametrize("kind", ["codes", "labels"])
def test_codes_and_labels_wake_and_sleep(kind):
    torch.manual_seed(0)
    batch = (patterns(),)
    if kind == "codes":
        fields = {"prior": {"name": "categorical", "learned": True}, "guide": "categorical"}
    else:  # half of them are missing
        fields = {"label": "latent", "classes": 3}
        y = torch.arange(len(patterns()))
        batch = (*batch, torch.where(y % 2 == 0, y % 3, -1))
    vae = pv.VAE(data_shape=(6,), latent_dim=2, **fields)
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    fit(vae.model, vae.guide, batch, objective="reweighted_wake_sleep", epochs=1)
    same = [name for name, p in vae.named_parameters() if torch.equal(before[name], p)]
    assert not same
    traced = inference.trace(vae.model, vae.guide, *batch, objective="reweighted_wake_sleep")
    traced.check(*batch)


def test_sites_that_the_model_sums_over_leave_the_weights_exact():
    def model(x):
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(z + loc[c.long()], 1.0), obs=x)

    def guide(x):
        lean = pyro.param("lean", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(lean * x, 0.8))

    x = line_data()[1][:4]
    for name in ("iwae", "dreg", "reweighted_wake_sleep"):
        objective = OBJECTIVES[name](num_particles=3)
        traced = inference.trace(model, guide, x, objective=objective)
        torch.manual_seed(2)
        loss = float(traced(traced.parameters, x).detach())
        torch.manual_seed(2)
        z = 0.2 * x + 0.8 * torch.randn(3, 4)
        mixed = torch.stack([dist.Normal(z + m, 1.0).log_prob(x) for m in (-1.0, 1.0)])
        log_w = (mixed + torch.tensor([0.7, 0.3]).log()[:, None, None]).logsumexp(0)
        log_w = log_w + dist.Normal(0, 1).log_prob(z) - dist.Normal(0.2 * x, 0.8).log_prob(z)
        assert loss == pytest.approx(-float((log_w.logsumexp(0) - math.log(3)).mean()), rel=1e-5)


@pytest.mark.parametrize("name", [*TWICE, *FIXED])
def test_densities_that_are_known_at_their_own_draws_only(name):
    vae = pv.VAE(data_shape=(6,), latent_dim=2, guide="planar")
    with pytest.raises(PairError, match=f"objective '{name}' asks .* Train by 'elbo' or 'iwae'"):
        fit(vae.model, vae.guide, patterns(), objective=name, epochs=1)
    fit(vae.model, vae.guide, patterns(), objective="iwae", epochs=1)


@pytest.mark.parametrize("name", TWICE)
def test_a_guide_that_is_noisy_in_itself(name):
    model, _ = closed_over()
    encoder, drop = nn.Linear(6, 4), nn.Dropout(0.3)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, raw = encoder(drop(x)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    with pytest.raises(PairError, match=r"site 'z' of the guide: the same draws .* dropout"):
        fit(model, guide, patterns(), objective=name, epochs=1)
    drop.eval()  # a trace is of the mode at hand
    inference.trace(model, guide, patterns(), objective=name)


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.parametrize("name", TWICE)
def test_parameters_out_of_reach(name):
    def guide(x, y):
        lean = pyro.param("lean", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(_Double.apply(lean) * y, 0.8))

    with pytest.raises(PairError, match=r"site 'z' .* cannot be held still"):
        fit(line_model, guide, line_data(), objective=name, epochs=1)
    fit(line_model, guide, line_data(), objective="iwae", epochs=1)


@pytest.mark.parametrize("name", [*TWICE, *FIXED])
def test_automatic_guides(name):
    """Draws that follow from others are fine; point masses have no score."""

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Normal(z + loc, 1.0), obs=x)

    x, settings = line_data()[1][:10], {"objective": name, "epochs": 2, "batch_size": 10}
    fit(model, AutoNormal(model), x, **settings)
    with pytest.raises(PairError, match="site 'z' is a point mass"):
        fit(model, AutoDelta(model), x, **settings)
    if name == "stl":

        def whole(x):
            z = pyro.sample("z", dist.Gamma(2.0 * torch.ones(len(x)), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        fit(whole, AutoMultivariateNormal(whole), x, plate=None, **settings)
