"""The VAE: every combination builds and trains under Pyro, and obeys Pyro's own tools."""

import copy
import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO

import pyro_vae as pv
from pyro_vae.errors import RequestError, SpecError
from pyro_vae.yaml_files import dump_yaml

PRIORS = ["standard_normal", {"name": "gaussian_mixture", "components": 3}, {"name": "vamp"}]
GUIDES = ["mean_field", "full_rank", {"name": "iaf", "hidden": [6], "context": 3}]
LIKELIHOODS = [
    "bernoulli",
    *({"name": "gaussian", "sigma": s} for s in ("fixed", "learned", "per_pixel", "predicted")),
]
NETWORKS = [
    {"name": "mlp", "hidden": [5]},
    {"name": "gated_mlp", "hidden": [5]},
    "linear",
    {"name": "conv", "channels": [2, 3], "hidden": 4},
]
SHAPE = (5, 4)


def label(value):
    return value if isinstance(value, str) else value.get("sigma", value["name"])


def build(shape=SHAPE, latent_dim=2, **fields):
    if fields.get("prior") in ("vamp", {"name": "vamp"}):
        fields["prior"] = {"name": "vamp", "components": 4}
    for role in ("encoder", "decoder"):
        fields.setdefault(role, NETWORKS[0])
    return pv.VAE(data_shape=shape, latent_dim=latent_dim, **fields)


def data(num, shape=SHAPE):
    return torch.rand(num, *shape).round()


def allowed(prior, guide):
    return not (label(prior) == "vamp" and label(guide) == "iaf")


PAIRS = [pair for pair in itertools.product(PRIORS, GUIDES) if allowed(*pair)]
COMBINATIONS = [
    (*pair, network, likelihood)
    for pair, network, likelihood in itertools.product(PAIRS, NETWORKS, LIKELIHOODS)
]
PAIR = pytest.mark.parametrize(
    ("prior", "guide"), PAIRS, ids=["-".join(map(label, pair)) for pair in PAIRS]
)


@pytest.mark.parametrize(
    ("prior", "guide", "network", "likelihood"),
    COMBINATIONS,
    ids=["-".join(map(label, one)) for one in COMBINATIONS],
)
def test_every_combination(prior, guide, network, likelihood, own_store):
    vae = build(prior=prior, guide=guide, likelihood=likelihood, encoder=network, decoder=network)
    x = data(6)
    assert vae.initialize(x) is vae
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    for rows in (6, 6, 1):  # also a batch of one
        assert math.isfinite(svi.step(x[:rows]))
    unmoved = {name for name, p in vae.named_parameters() if torch.equal(p, before[name])}
    # A pixel that is constant in the data stands at its floor; a saturated rectifier has no slope.
    if label(network) != "conv":
        assert not unmoved
    assert {name.split("$$$")[0] for name in own_store} <= {
        "prior",
        "decoder",
        "likelihood",
        "guide",
    }
    assert len(own_store) == len(before)

    with torch.no_grad():
        for rows in (4, 1):
            q = vae.encode(x[:rows])
            assert (q.batch_shape, q.event_shape) == ((rows,), (2,))
            z = q.sample()
            p = vae.decode(z)
            assert (p.batch_shape, p.event_shape) == ((rows,), SHAPE)
            assert p.log_prob(x[:rows]).shape == (rows,)
            assert vae.decode(z.expand(3, rows, 2)).log_prob(x[:rows]).shape == (3, rows)
            assert vae.decode(z[0]).batch_shape == ()
            assert vae.latent_mean(x[:rows]).shape == (rows, 2)
            for mean in (True, False):
                assert vae.reconstruct(x[:rows], mean=mean).shape == (rows, *SHAPE)
                assert vae.generate(rows, mean=mean).shape == (rows, *SHAPE)
    assert vae.generate().shape == (1, *SHAPE)
    assert not vae.generate().requires_grad
    if likelihood == "bernoulli":
        assert set(vae.generate(3, mean=False).unique().tolist()) <= {0.0, 1.0}
        assert ((vae.generate(3) > 0) & (vae.generate(3) < 1)).all()


@pytest.mark.parametrize("shape", [(7,), (3, 4), (3, 7, 4), (2, 3, 4, 4)])
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=label)
def test_data_of_any_shape(shape, likelihood, own_store):
    networks = ["mlp"] if len(shape) == 1 else ["mlp", NETWORKS[3]]
    for network in networks:
        own_store.clear()  # else the second model is handed the first one's weights
        vae = build(shape, likelihood=likelihood, encoder=network, decoder=network)
        x = data(3, shape)
        vae.initialize(x)
        svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
        assert math.isfinite(svi.step(x))
        assert vae.reconstruct(x).shape == x.shape


# Specs --------------------------------------------------------------------------------------


def test_the_spec_comes_back(tmp_path):
    spec = pv.VAESpec(data_shape=SHAPE, latent_dim=3, prior="vamp", likelihood="gaussian")
    path = tmp_path / "spec.yaml"
    path.write_text(dump_yaml(spec.to_dict()))
    for given in (spec, spec.to_dict(), path, str(path)):
        vae = pv.VAE.from_spec(given)
        assert vae.spec == spec
        assert hash(vae.spec) == hash(spec)
    assert pv.VAE(data_shape=SHAPE, latent_dim=3, prior="vamp", likelihood="gaussian").spec == spec

    class Own(pv.VAE):
        pass

    assert type(Own.from_spec(spec)) is Own


def test_what_cannot_be_built_is_said(tmp_path):
    with pytest.raises(SpecError, match=r"^data_shape: missing"):
        pv.VAE(latent_dim=3)
    with pytest.raises(SpecError, match=r"^data_shape: missing"):
        pv.VAE.from_spec(pv.VAESpec())
    with pytest.raises(SpecError, match="no such file"):
        pv.VAE.from_spec(tmp_path / "none.yaml")
    with pytest.raises(SpecError, match="expected a mapping"):
        pv.VAE.from_spec(None)
    with pytest.raises(SpecError, match=r"^prior: no prior is called 'vmap'"):
        pv.VAE(data_shape=(4,), prior="vmap")


def test_vamp_refuses_a_guide_without_density():
    with pytest.raises(SpecError) as caught:
        pv.VAESpec(prior="vamp", guide="iaf")
    [line] = str(caught.value).splitlines()
    assert "prior 'vamp' evaluates q(z|u) at any z" in line
    assert "guide 'iaf' offers that density only one dimension at a time" in line
    assert line.endswith(
        "guides that fit: coupling, full_rank, low_rank, mean_field, mixture, product_of_experts"
    )


def test_supports_must_agree():
    held = dict(pv.Guide.registry), dict(pv.Prior.registry)
    try:

        class OnTorus(pv.Guide, name="test_on_torus"):
            support = "torus"

        with pytest.raises(SpecError) as caught:
            pv.VAESpec(guide="test_on_torus")
        [line] = str(caught.value).splitlines()
        assert "prior 'standard_normal' has real latents" in line
        assert "guide 'test_on_torus' torus ones" in line
        real = {
            n: g for n, g in pv.Guide.registry.items() if (g.support, g.levels) == ("real", "one")
        }
        assert line.endswith(f"guides that fit: {', '.join(real)}")
        scored = ", ".join(n for n, g in real.items() if g.density == "anywhere")
        with pytest.raises(SpecError, match=rf"guides that fit: {scored}$"):
            pv.VAESpec(guide=OnTorus(), prior="vamp")

        class TorusPrior(pv.Prior, name="test_torus_prior"):
            support = "torus"

        with pytest.raises(SpecError, match=r"guides that fit: test_on_torus$"):
            pv.VAESpec(prior="test_torus_prior")
        assert pv.VAESpec(prior="test_torus_prior", guide="test_on_torus").guide == OnTorus()
    finally:
        for family, members in zip((pv.Guide, pv.Prior), held, strict=True):
            family.registry._members.clear()
            family.registry._members.update(members)


def test_wrong_data_is_said(own_store):
    vae = build()
    for call in (vae.encode, vae.model, vae.guide, vae.reconstruct, vae.initialize):
        for shape in [(6, 4, 5), (6, 20), (5, 4), ()]:
            with pytest.raises(RequestError, match=r"expected \[batch, 5, 4\]"):
                call(torch.zeros(shape))
    with pytest.raises(RequestError, match="needs x"):
        vae.guide()


# Weights -------------------------------------------------------------------------------------


def test_no_weight_is_stored_twice():
    vae = build(prior="vamp")
    state = vae.state_dict()
    assert set(state) == {name for name, _ in vae.named_parameters()}
    assert {name.split(".")[0] for name in state} == {"prior", "guide_module", "decoder"}
    assert [name for name in state if name.startswith("prior")] == ["prior.pseudo_inputs"]
    assert len({p.data_ptr() for p in state.values()}) == len(state)
    assert vae.num_weights == sum(p.numel() for p in state.values())
    assert vae.prior.guide is vae.guide_module


@PAIR
def test_copies_and_reloads(prior, guide):
    vae = build(prior=prior, guide=guide)
    twin = copy.deepcopy(vae)
    assert twin.spec == vae.spec
    if label(prior) == "vamp":
        assert twin.prior.guide is twin.guide_module
        assert twin.prior.guide is not vae.guide_module
    ours = {p.data_ptr() for p in vae.parameters()}
    assert not ours & {p.data_ptr() for p in twin.parameters()}
    z = torch.randn(5, 2)
    before = vae.prior.distribution().log_prob(z)
    with torch.no_grad():
        for p in twin.parameters():
            p.add_(0.5)
    torch.testing.assert_close(vae.prior.distribution().log_prob(z), before, rtol=0, atol=0)
    if label(prior) != "standard_normal":
        assert not torch.allclose(twin.prior.distribution().log_prob(z), before)
    fresh = pv.VAE.from_spec(vae.spec)
    fresh.load_state_dict(vae.state_dict())
    torch.testing.assert_close(fresh.prior.distribution().log_prob(z), before, rtol=0, atol=0)
    x = data(3)
    torch.testing.assert_close(fresh.decode(z).mean, vae.decode(z).mean, rtol=0, atol=0)
    torch.manual_seed(1)
    draw = vae.encode(x).sample()
    torch.manual_seed(1)
    torch.testing.assert_close(fresh.encode(x).sample(), draw, rtol=0, atol=0)


@PAIR
@pytest.mark.parametrize("likelihood", LIKELIHOODS, ids=label)
def test_float64_throughout(prior, guide, likelihood, own_store):
    vae = build(prior=prior, guide=guide, likelihood=likelihood).double()
    x = data(6).double()
    vae.initialize(x)
    guide_trace = poutine.trace(vae.guide).get_trace(x)
    trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(x)
    for one in (guide_trace, trace):
        one.compute_log_prob()
        for name in {"z", "x"} & set(one.nodes):
            assert one.nodes[name]["log_prob"].dtype == torch.float64
            assert one.nodes[name]["log_prob"].shape == (6,)
    assert vae.generate(2).dtype == torch.float64


def test_building_draws_but_scoring_and_decoding_do_not():
    vae = build(prior="vamp", guide="full_rank")
    z, x = torch.randn(3, 2), data(3)
    before = torch.get_rng_state()
    vae.decode(z).log_prob(x)
    vae.encode(x).log_prob(z)
    vae.prior.distribution().log_prob(z)
    vae.latent_mean(x)
    assert torch.equal(torch.get_rng_state(), before)
    # One seed, one start.
    starts = []
    for _ in range(2):
        torch.manual_seed(5)
        starts.append(build(guide=GUIDES[2], decoder=NETWORKS[3]).state_dict())
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


# Pyro's own tools ------------------------------------------------------------------------------


@PAIR
def test_the_trace_is_the_equation(prior, guide, own_store):
    vae = build(prior=prior, guide=guide)
    x = data(6)
    guide_trace = poutine.trace(vae.guide).get_trace(x)
    trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(x)
    trace.compute_log_prob()
    guide_trace.compute_log_prob()
    assert trace.stochastic_nodes == ["data", "z"] or trace.stochastic_nodes == ["z"]
    assert trace.observation_nodes == ["x"]
    z = guide_trace.nodes["z"]["value"]
    torch.testing.assert_close(trace.nodes["z"]["log_prob"], vae.prior.distribution().log_prob(z))
    torch.testing.assert_close(trace.nodes["x"]["log_prob"], vae.decode(z).log_prob(x))
    assert guide_trace.nodes["z"]["log_prob"].shape == (6,)
    total = trace.log_prob_sum() - guide_trace.log_prob_sum()
    torch.manual_seed(1)
    loss = Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
    torch.manual_seed(1)
    guide_trace = poutine.trace(vae.guide).get_trace(x)
    trace = poutine.trace(poutine.replay(vae.model, trace=guide_trace)).get_trace(x)
    total = trace.log_prob_sum() - guide_trace.log_prob_sum()
    torch.testing.assert_close(loss, -total, rtol=1e-5, atol=1e-4)


@PAIR
@pytest.mark.parametrize("network", NETWORKS, ids=label)
def test_vectorized_particles(prior, guide, network, own_store):
    vae = build(prior=prior, guide=guide, encoder=network, decoder=network)
    x = data(6)
    elbo = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), elbo)
    for rows in (6, 1):
        assert math.isfinite(svi.step(x[:rows]))

    # Particles at once are scored as they are one by one.
    def at_once(program):
        def wide(x):
            with pyro.plate("particles", 3, dim=-2):
                return program(x)

        return wide

    guide_trace = poutine.trace(at_once(vae.guide)).get_trace(x)
    replayed = poutine.replay(at_once(vae.model), trace=guide_trace)
    trace = poutine.trace(replayed).get_trace(x)
    for one in (guide_trace, trace):
        one.compute_log_prob()
    z = guide_trace.nodes["z"]["value"]
    assert z.shape == (3, 6, 2)
    for k in range(3):
        alone = poutine.condition(vae.model, data={"z": z[k]})
        trace_k = poutine.trace(alone).get_trace(x)
        trace_k.compute_log_prob()
        for site in ("z", "x"):
            torch.testing.assert_close(
                trace.nodes[site]["log_prob"][k], trace_k.nodes[site]["log_prob"]
            )
        log_q = vae.encode(x).log_prob(z[k].clone())
        torch.testing.assert_close(
            guide_trace.nodes["z"]["log_prob"][k], log_q, atol=1e-4, rtol=1e-4
        )


@PAIR
def test_mean_field_elbo(prior, guide, own_store):
    vae = build(prior=prior, guide=guide)
    x = data(6)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), TraceMeanField_ELBO())
    assert math.isfinite(svi.step(x))
    if (label(prior), label(guide)) == ("standard_normal", "mean_field"):
        # The analytic KL is the mean of its one-sample form.
        q = vae.encode(x)
        draws = q.sample((20_000,))
        terms = q.log_prob(draws) - vae.prior.distribution().log_prob(draws)
        exact = torch.distributions.kl_divergence(q, vae.prior.distribution().expand([6]))
        error = terms.std(0) / math.sqrt(20_000)
        assert ((terms.mean(0) - exact).abs() < 5 * error).all()
        assert error.max() < 0.05


def test_predictive(own_store):
    vae = build(prior="vamp")
    x = data(6)
    prior = Predictive(vae.model, num_samples=5)()
    assert prior["x"].shape == (5, 1, *SHAPE)
    assert prior["z"].shape == (5, 1, 2)
    fresh = Predictive(poutine.uncondition(vae.model), num_samples=5)(x)
    assert fresh["x"].shape == (5, 6, *SHAPE)
    posterior = Predictive(
        poutine.uncondition(vae.model), guide=vae.guide, num_samples=5, return_sites=("z", "x")
    )(x)
    assert posterior["z"].shape == (5, 6, 2)
    assert posterior["x"].shape == (5, 6, *SHAPE)
    seen = Predictive(vae.model, guide=vae.guide, num_samples=5, return_sites=("z", "x"))(x)
    assert torch.equal(seen["x"], x.expand(5, *x.shape))
    vectorized = Predictive(vae.model, num_samples=5, parallel=True)(x)
    assert vectorized["z"].shape == (5, 6, 2)


def test_condition_and_uncondition(own_store):
    vae = build()
    x, z = data(6), torch.randn(6, 2)
    by_hand = vae.prior.distribution().log_prob(z) + vae.decode(z).log_prob(x)
    given = poutine.condition(vae.model, data={"z": z})
    trace = poutine.trace(given).get_trace(x)
    trace.compute_log_prob()
    assert trace.nodes["z"]["is_observed"]
    torch.testing.assert_close(trace.nodes["z"]["log_prob"] + trace.nodes["x"]["log_prob"], by_hand)
    also_x = poutine.condition(vae.model, data={"z": z[:1], "x": x[:1]})
    torch.testing.assert_close(poutine.trace(also_x).get_trace().log_prob_sum(), by_hand[0])
    free = poutine.trace(poutine.uncondition(vae.model)).get_trace(x)
    assert not free.nodes["x"]["is_observed"]
    assert free.nodes["x"]["value"].shape == x.shape
    assert not torch.equal(free.nodes["x"]["value"], x)


@PAIR
def test_render_model(prior, guide, own_store):
    pytest.importorskip("graphviz")
    vae = build(prior=prior, guide=guide)
    graph = pyro.render_model(
        vae.model, model_args=(data(3),), render_params=True, render_distributions=True
    )
    source = str(graph)
    for word in ("z -> x", "cluster_data", "x [label=x fillcolor=gray"):
        assert word in source
    assert "z" in str(pyro.render_model(vae.guide, model_args=(data(3),)))


# One prior object is sampled and scored --------------------------------------------------------


def weights_of(draw, score, num=200_000):
    """g(z)/p(z) for z drawn by `draw` and scored by `score`, g = N(m, s^2) well inside p.

    If both are the same p, the mean is 1.
    """
    with torch.no_grad():
        z = draw(num)
        centre, width = z.mean(0), 0.6 * z.std(0)
        g = dist.Normal(centre, width).to_event(1)
        return (g.log_prob(z) - score(z)).exp().double()


@pytest.mark.parametrize("prior", PRIORS, ids=label)
@pytest.mark.parametrize("guide", ["mean_field", "full_rank"])
def test_sample_and_log_prob_of_a_prior_agree(prior, guide):
    vae = build(prior=prior, guide=guide)
    with torch.no_grad():
        for p in vae.parameters():
            p.mul_(0.5)  # one broad hill: the narrow g then has weights of small variance
    p = vae.prior.distribution()

    def draw(num):
        return p.expand([num]).sample()

    def check(score):
        w = weights_of(draw, score)
        error = w.std() / math.sqrt(len(w))
        assert error < 0.01
        assert abs(w.mean() - 1) < 5 * error

    check(p.log_prob)
    wrong = {
        "a forgotten constant": lambda z: p.log_prob(z) + math.log(2 * math.pi),
        "a scale 10% off": lambda z: p.log_prob(z / 1.1) - z.shape[-1] * math.log(1.1),
        "a shift": lambda z: p.log_prob(z - 0.2 * z.std(0)),
    }
    for score in wrong.values():
        with pytest.raises(AssertionError):
            check(score)


def test_the_model_draws_its_latents_from_the_prior(own_store):
    vae = build(prior=PRIORS[1])
    with torch.no_grad():
        vae.prior.loc.copy_(torch.tensor([[3.0, 0.0], [3.0, 1.0], [3.0, 2.0]]))
    z = Predictive(vae.model, num_samples=400)()["z"].reshape(-1, 2)
    error = z.std(0) / 20
    assert error.max() < 0.08
    assert ((z.mean(0) - torch.tensor([3.0, 1.0])).abs() < 5 * error).all()


def test_the_prior_mixture_respects_its_smallest_scale():
    vae = build(prior={"name": "gaussian_mixture", "components": 2, "min_scale": 0.25})
    vae.prior.log_scale.data.fill_(-100.0)
    scale = vae.prior.distribution().components.base_dist.scale
    torch.testing.assert_close(scale, torch.full((2, 2), 0.25))
    flat = build(prior={"name": "gaussian_mixture", "spread": 0.0})
    assert not flat.prior.loc.any()


def test_latent_mean_of_a_guide_that_does_not_know_it():
    vae = build(guide=GUIDES[2])
    x = data(4)
    many = vae.latent_mean(x, num_samples=20_000)
    draws = vae.encode(x).sample((20_000,))
    error = draws.std(0) * math.sqrt(2 / 20_000)
    assert ((many - draws.mean(0)).abs() < 5 * error).all()
    assert error.max() < 0.2
