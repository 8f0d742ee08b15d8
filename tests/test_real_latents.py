"""Every guide and prior of real latents in training: particles, batches of one, graphs, a bound."""

import math

import pyro
import pytest
import torch
from pyro import poutine

import inference
import pyro_vae as pv
from pyro_vae.data.digits import Digits

SMALL = {"hidden": 16}
GUIDES = {
    "mean_field": {},
    "full_rank": {},
    "low_rank": {"rank": 2},
    "mixture": {},
    "planar": {},
    "radial": {},
    "sylvester": {"depth": 2, "reflections": 2},
    "coupling": SMALL,
    "coupling, spline": {**SMALL, "steps": "spline", "depth": 2},
    "iaf": {"hidden": [16], "context": 8},
    "spline": {"hidden": [16], "context": 8, "bins": 4},
    "semi_amortized": {},
    "auxiliary": {"auxiliary_dim": 2, "context": 8, "hidden": 16},
}
PRIORS = {
    "gaussian": {},
    "gaussian, full": {"covariance": "full"},
    "gaussian_mixture": {"components": 5},
    "laplace": {},
    "horseshoe": {},
    "flow": SMALL,
    "flow, spline": {**SMALL, "steps": "spline", "depth": 2},
    "flow, autoregressive": {**SMALL, "kind": "autoregressive", "depth": 2},
    "vamp": {"components": 8},
    "exemplar": {"components": 64},
}
PAIRS = [("standard_normal", guide) for guide in GUIDES]
PAIRS += [(prior, "mean_field") for prior in PRIORS]
PAIRS += [("vamp", guide) for guide in ("low_rank", "mixture", "coupling")]


def case(prior, guide):
    """Second forms of a component, and second guides of a VampPrior, take their turn less often."""
    again = "," in prior + guide or (prior == "vamp" and guide != "mean_field")
    marks = [pytest.mark.slow] if again else []
    return pytest.param(prior, guide, id=f"{prior} {guide}", marks=marks)


EACH = pytest.mark.parametrize(("prior", "guide"), [case(*pair) for pair in PAIRS])


@pytest.fixture(scope="module")
def x():
    return Digits().load().train[:64]


def component(name, fields):
    return {"name": name.split(",")[0], **fields}


def build(prior, guide, x):
    torch.manual_seed(1)
    vae = pv.VAE(
        data_shape=tuple(x.shape[1:]),
        latent_dim=3,
        prior=component(prior, PRIORS.get(prior, {})),
        guide=component(guide, GUIDES[guide]),
        encoder={"name": "mlp", "hidden": [24]},
        decoder={"name": "mlp", "hidden": [24]},
    )
    return vae.initialize(x)


def bounds(vae, x):
    """The bound of each datum under fixed noise, 32 draws each, nats."""
    torch.manual_seed(7)
    vae.eval()
    with torch.no_grad():
        return inference.log_weights(vae.model, vae.guide, x, num_particles=32).log_weight.mean(0)


def rise(vae, x, steps=30, rate=0.01):
    """How far the mean bound rises in that many steps, and its standard error."""
    before = bounds(vae, x)
    settings = {"epochs": steps, "batch_size": len(x), "learning_rate": rate}
    inference.fit(vae.model, vae.guide, x, seed=0, engine="eager", progress=False, **settings)
    change = bounds(vae, x) - before
    return float(change.mean()), float(change.std() / math.sqrt(len(x)))


def test_every_component_is_looked_at():
    def real(registry):
        return {name for name, one in registry.items() if one.support == "real"}

    levels = {"bottom_up", "top_down", "ladder", "hierarchical"}  # test_levels.py
    others = {"product_of_experts", "point", "conditional"}  # test_missing.py, test_labels.py
    looked_at = {name.split(",")[0] for name in (*GUIDES, *PRIORS)} | {"standard_normal"}
    assert looked_at | levels | others == real(pv.Guide.registry) | real(pv.Prior.registry)


@EACH
def test_the_bound_rises_in_30_steps(prior, guide, x, own_store):
    vae = build(prior, guide, x)
    weights = {name: p.detach().clone() for name, p in vae.named_parameters()}
    mean, error = rise(vae, x)
    assert mean > 3 * error
    assert mean > 0.5
    moved = {name for name, p in vae.named_parameters() if not torch.equal(p, weights[name])}
    assert moved == set(weights)


def test_a_bound_that_learns_nothing_does_not_rise(x, own_store):
    vae = build("standard_normal", "mean_field", x)
    mean, error = rise(vae, x, rate=1e-12)
    assert not mean > 3 * error


@EACH
def test_the_graph_computes_what_the_handlers_do(prior, guide, x, own_store):
    vae = build(prior, guide, x)
    for p in vae.parameters():
        p.data.add_(0.02 * torch.randn_like(p))  # away from a start at the identity
    objective = inference.ELBO(num_particles=3)
    traced = inference.trace(vae.model, vae.guide, x[:8], objective=objective)
    traced.check(x[8:16])  # other rows, against the handlers: losses and gradients
    assert {name.split("$$$")[1] for name in traced.parameters} == {
        name.split(".", 1)[1] for name, _ in vae.named_parameters()
    }
    loss, gradients = traced.loss_and_grads(traced.parameters, x[:8])
    assert math.isfinite(float(loss))
    assert all(torch.isfinite(g).all() for g in gradients.values())


@EACH
@torch.no_grad()
def test_particles_are_scored_as_they_are_one_at_a_time(prior, guide, x, own_store):
    """Three particles of four data at once; then each datum with each particle, by itself."""
    vae = build(prior, guide, x).double()
    vae.train()
    x = x[:4].double()
    with pyro.plate("particles", 3, dim=-2):
        drawn = poutine.trace(vae.guide).get_trace(x)
        scored = poutine.trace(poutine.replay(vae.model, trace=drawn)).get_trace(x)
    for trace in (drawn, scored):
        trace.compute_log_prob()
    sites = [name for name in ("z", "a") if name in drawn.nodes]
    assert scored.nodes["z"]["log_prob"].shape == (3, 4)
    for k, n in ((0, 0), (2, 3)):
        values = {name: drawn.nodes[name]["value"][k, n : n + 1] for name in sites}
        model = poutine.condition(vae.model, data=values)
        alone = poutine.trace(model).get_trace(x[n : n + 1])
        alone.compute_log_prob()
        for name in (*sites, "x"):
            torch.testing.assert_close(
                alone.nodes[name]["log_prob"][0], scored.nodes[name]["log_prob"][k, n]
            )
        if pv.Guide.registry[guide.split(",")[0]].density == "own samples":
            continue  # held against one datum's own flow in the tests of guides
        program = poutine.condition(vae.guide, data=values)
        alone = poutine.trace(program).get_trace(x[n : n + 1])
        alone.compute_log_prob()
        for name in sites:
            torch.testing.assert_close(
                alone.nodes[name]["log_prob"][0], drawn.nodes[name]["log_prob"][k, n]
            )


@EACH
def test_a_batch_of_one(prior, guide, x, own_store):
    vae = build(prior, guide, x)
    settings = {"epochs": 1, "batch_size": 1, "seed": 0, "engine": "eager", "progress": False}
    result = inference.fit(vae.model, vae.guide, x[:2], **settings)
    assert result.status == "completed"
    with torch.no_grad():
        q = vae.encode(x[:1])
        assert (q.batch_shape, q.event_shape) == ((1,), (3,))
        assert vae.latent_mean(x[:1]).shape == (1, 3)
        assert vae.reconstruct(x[:1]).shape == x[:1].shape
        assert vae.generate(2).shape == x[:2].shape
    found = inference.log_marginal(
        vae.model, vae.guide, x[:1], estimator=inference.Importance(num_samples=50), seed=0
    )
    assert torch.isfinite(found.value).all()
    assert torch.isfinite(found.std_error).all()


@pytest.mark.parametrize("name", ["guide", "prior"])
def test_specs_come_back(name):
    table, family = (GUIDES, pv.Guide) if name == "guide" else (PRIORS, pv.Prior)
    for key, fields in table.items():
        spec = pv.VAESpec(**{name: component(key, fields)})
        assert pv.VAESpec.from_dict(spec.to_dict()) == spec
        assert isinstance(getattr(spec, name), family)
