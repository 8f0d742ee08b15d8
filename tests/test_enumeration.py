"""Discrete sites that are summed over: against closed forms and Pyro's `TraceEnum_ELBO`."""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal

import inference
from inference.isolation import own_store
from inference.pair import look_at
from inference.particles import Scorer, record_of
from inference.suitability import check_objective
from tests.small_pairs import fit
from tests.tiers import each

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


def agrees_with_pyro(model, guide, x, particles=1, vectorize=True, nesting=1):
    """Value and gradients of the traced loss are `TraceEnum_ELBO`'s under the same noise."""
    torch.manual_seed(0)
    objective = inference.ELBO(num_particles=particles)
    traced = inference.trace(model, guide, x, objective=objective)
    torch.manual_seed(1)
    found = traced(traced.parameters, x)
    torch.manual_seed(1)
    theirs = TraceEnum_ELBO(
        num_particles=particles,
        vectorize_particles=vectorize and particles > 1,
        max_plate_nesting=nesting,
    )
    expected = theirs.differentiable_loss(model, guide, x) / len(x)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6, abs=1e-6)
    store = dict(pyro.get_param_store()._params)
    gradients = torch.autograd.grad(expected, list(store.values()), allow_unused=True)
    ours = dict(
        zip(
            traced.parameters,
            torch.autograd.grad(found, list(traced.parameters.values())),
            strict=True,
        )
    )
    for name, gradient in zip(store, gradients, strict=True):
        gradient = torch.zeros_like(store[name]) if gradient is None else gradient
        mine = ours.get(name, torch.zeros_like(gradient))
        assert torch.allclose(mine, gradient, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("guide", [guide_of_z, guide_of_both])
def test_loss_and_gradients_are_those_of_pyro(guide, x):
    agrees_with_pyro(clusters, guide, x)


@pytest.mark.parametrize("guide", [guide_of_z, guide_of_both])
def test_particles_stand_in_a_plate_and_give_what_they_give_in_pyro(guide, x):
    with own_store():
        pair = look_at(clusters, guide, (x[:4],))
        assert not Scorer(pair, (x[:4],)).folded
        assert not Scorer(pair, (x[:2],)).folded  # fewer data than values and particles
    agrees_with_pyro(clusters, guide, x, particles=3)


def test_a_network_that_takes_no_particles_is_run_one_draw_at_a_time(x):
    def model(x):
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(m[c] + z - z.mean(0), 0.5), obs=x)

    with own_store():
        assert Scorer(look_at(model, guide_of_z, (x,)), (x,)).folded
    agrees_with_pyro(model, guide_of_z, x, particles=3, vectorize=False)


# Masks and scales: as in Pyro -------------------------------------------------------------------


def every_other(x):
    return torch.arange(len(x)) % 2 == 0


def categorical_pair(in_model="", in_guide="", on=("c", "x"), factor=None):
    """c -> x and z -> x, with a mask or a scale at the sites `on`, by handler or distribution."""

    def at(how, name, site, fn, x, **rest):
        mask = every_other(x)
        if name in on and how == "distribution":
            fn = fn.mask(mask)
        if name in on and how == "handler":
            with poutine.mask(mask=mask):
                return pyro.sample(site, fn, **rest)
        if name in on and how == "scale":
            with poutine.scale(scale=0.5):
                return pyro.sample(site, fn, **rest)
        return pyro.sample(site, fn, **rest)

    def model(x):
        p = pyro.param("p", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", len(x)):
            c = at(in_model, "c", "c", dist.Categorical(p), x, infer=PARALLEL)
            z = at(in_model, "z", "z", dist.Normal(0.0, 1.0), x)
            at(in_model, "x", "x", dist.Normal(m[c] + z, 0.5), x, obs=x)

    def guide(x):
        w = pyro.param("w", torch.tensor([0.3, -0.1, 0.2]))
        b = pyro.param("b", torch.tensor([0.1, 0.2, 0.3]))
        shift = 0.0
        with pyro.plate("data", len(x)):
            if in_guide is not None:
                fn = dist.Categorical(logits=x[:, None] * w)
                shift = b[at(in_guide, "c", "c", fn, x, infer=PARALLEL)]
            loc = pyro.param("a", torch.tensor(0.5)) * x + shift
            at(in_guide, "z", "z", dist.Normal(loc, scale()), x)

    return model, guide


ON = [("c",), ("x",), ("c", "x"), ("c", "z", "x"), ("c", "z")]


@pytest.mark.parametrize("on", ON)
@pytest.mark.parametrize("how", ["handler", "distribution"])
def test_masks_of_what_the_model_sums_over(how, on, x):
    model, guide = categorical_pair(how, None, on)
    agrees_with_pyro(model, guide, x)


MASKED = itertools.product(
    ["", "handler", "distribution"],
    ["", "handler", "distribution"],
    [("c",), ("c", "x"), ("c", "z", "x")],
)


@pytest.mark.parametrize(("in_model", "in_guide", "on"), each(2, MASKED, unpack=True))
def test_masks_of_what_the_guide_sums_over(in_model, in_guide, on, x):
    model, guide = categorical_pair(in_model, in_guide, on)
    agrees_with_pyro(model, guide, x)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize(
    ("in_model", "in_guide"), [("scale", None), ("scale", "scale"), ("", "scale")]
)
def test_a_common_scale_stands_outside_of_the_sum(in_model, in_guide, particles, x):
    model, guide = categorical_pair(in_model, in_guide, ("c", "x", "z"))
    agrees_with_pyro(model, guide, x, particles)


def test_masked_rows_count_for_nothing(x):
    """(a): they must not add log 3; (b): a masked guide site keeps its probabilities."""

    def model(x):
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", len(x)), poutine.mask(mask=every_other(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer=PARALLEL)
            pyro.sample("x", dist.Normal(m[c], 1.0), obs=x)

    traced = inference.trace(model, lambda x: None, x)
    terms = dist.Normal(LOC, 1.0).log_prob(x[:, None]).exp().mean(1).log()
    found = -float(traced(traced.parameters, x).detach())
    assert found == pytest.approx(float(terms[every_other(x)].sum() / len(x)), rel=1e-5)

    def uniform(x):
        logits = pyro.param("w", torch.zeros(3)).expand(len(x), 3)
        with pyro.plate("data", len(x)), poutine.mask(mask=torch.tensor(False)):
            pyro.sample("c", dist.Categorical(logits=logits).mask(False), infer=PARALLEL)

    def unmasked(x):
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=torch.tensor(False)):
                c = pyro.sample("c", dist.Categorical(torch.ones(3) / 3), infer=PARALLEL)
            pyro.sample("x", dist.Normal(LOC[c], 1.0), obs=x)

    traced = inference.trace(unmasked, uniform, x)
    mean = float(dist.Normal(LOC, 1.0).log_prob(x[:, None]).mean())
    assert -float(traced(traced.parameters, x).detach()) == pytest.approx(mean, rel=1e-5)


def test_semi_supervised(x):
    """Labels where they are known, all values elsewhere, in one batch and masked by row."""
    labels = torch.arange(len(x)) % 3

    def model(x):
        m = pyro.param("m", LOC.clone())
        known = every_other(x)
        with pyro.plate("data", len(x)):
            with poutine.mask(mask=known):
                pyro.sample("label", dist.Categorical(torch.ones(3)), obs=labels[: len(x)])
                pyro.sample("x_known", dist.Normal(m[labels[: len(x)]], 1.0), obs=x)
            with poutine.mask(mask=~known):
                c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
                pyro.sample("x", dist.Normal(m[c], 1.0), obs=x)

    def guide(x):
        w = pyro.param("w", torch.tensor([0.3, -0.1, 0.2]))
        with pyro.plate("data", len(x)), poutine.mask(mask=~every_other(x)):
            pyro.sample("c", dist.Categorical(logits=x[:, None] * w), infer=PARALLEL)

    agrees_with_pyro(model, guide, x)
    agrees_with_pyro(model, lambda x: None, x)


@pytest.mark.parametrize("one", ["c", "x"])
def test_scales_that_differ_within_one_sum_are_refused(one, x):
    model, guide = categorical_pair("scale", None, (one,))
    refused(model, guide, x, r"sites '.' and '.' are summed over together, but scaled by .*0\.5")


def test_a_tensor_for_a_scale_is_refused(x):
    """Whether it is the same for all sites is not known before its values are."""

    def model(x):
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", len(x)), poutine.scale(scale=torch.tensor(0.5)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(m[c], 1.0), obs=x)

    refused(model, lambda x: None, x, r"site 'c' is scaled by a tensor .* scale them by a number")


def test_a_plate_that_subsamples_scales_as_in_pyro(x):
    def model(x):
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", 60, subsample=torch.arange(len(x))), poutine.scale(scale=0.5):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(m[c], 0.5), obs=x)

    traced = inference.trace(model, lambda x: None, x, num_data=60)
    expected = TraceEnum_ELBO(max_plate_nesting=1).loss(model, lambda x: None, x) / 60
    assert float(traced(traced.parameters, x).detach()) == pytest.approx(expected, rel=1e-5)


# More than one site -----------------------------------------------------------------------------


def chain_guide(x):
    """d depends on c; a factor of log q on both; z on d alone."""
    w = pyro.param("w", torch.tensor([0.3, -0.1, 0.2]))
    table = pyro.param("table", torch.tensor([[0.3, 0.7], [0.6, 0.4], [0.5, 0.5]]),
                       constraint=constraints.simplex)  # fmt: skip
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(logits=x[:, None] * w), infer=PARALLEL)
        d = pyro.sample("d", dist.Categorical(table[c]), infer=PARALLEL)
        shift = pyro.param("b", torch.tensor([0.1, 0.4]))[d]
        z = pyro.sample("z", dist.Normal(0.5 * x + shift, scale()))
        pyro.factor("extra", 0.3 * shift * z + w[c], has_rsample=True)


def chain_model(x):
    p = pyro.param("p", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    m = pyro.param("m", LOC.clone())
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(p), infer=PARALLEL)
        d = pyro.sample("d", dist.Categorical(torch.tensor([0.4, 0.6])), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(m[c], 1.0))
        e = pyro.sample("e", dist.Bernoulli(torch.sigmoid(m[c])), infer=PARALLEL)
        f = pyro.sample("f", dist.OneHotCategorical(torch.ones(3)), infer=PARALLEL)
        pyro.sample("x", dist.Normal(z + e - d, 0.5), obs=x)
        pyro.sample("y", dist.Normal((f * LOC).sum(-1) + z, 0.5), obs=x)


@pytest.mark.parametrize("particles", [1, 3])
def test_dependent_sites_in_guide_and_model(particles, x):
    agrees_with_pyro(chain_model, chain_guide, x, particles)


@pytest.mark.parametrize(
    ("model", "guide"), [(clusters, guide_of_both), (chain_model, chain_guide)]
)
def test_a_single_datum(model, guide, x):
    agrees_with_pyro(model, guide, x[:1])


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("summed_by", ["model", "guide"])
@pytest.mark.parametrize("dim", [-1, -2])
def test_plates_within_the_plate(dim, summed_by, particles, x):
    """Masked pixels beside or in front of the data, a latent for each that depends on c."""
    pixels = 2 * torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    mask = torch.arange(60).reshape(3, 20) % 4 > 0
    if dim == -2:
        pixels, mask = pixels.T, mask.T

    def plates(x):
        data = pyro.plate("data", 20, dim=dim)
        return data, pyro.plate("pixels", 3, dim=-3 - dim)

    def model(x):
        m = pyro.param("m", LOC.clone())
        data, inner = plates(x)
        with data:
            infer = {**PARALLEL, "expand": True}
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=infer)
            with inner, poutine.mask(mask=mask):
                z = pyro.sample("z", dist.Normal(m[c], 1.0))
                pyro.sample("x", dist.Normal(z + m[c], 1.0), obs=pixels)

    def guide(x):
        w = pyro.param("w", torch.tensor([0.3, -0.1, 0.2]))
        data, inner = plates(x)
        with data:
            loc = 0.5 * pixels
            if summed_by == "guide":
                logits = pixels.mean(-3 - dim, keepdim=dim == -2)[..., None] * w
                loc = loc + w[pyro.sample("c", dist.Categorical(logits=logits), infer=PARALLEL)]
            with inner, poutine.mask(mask=mask):
                pyro.sample("z", dist.Normal(loc, scale()))

    agrees_with_pyro(model, guide, x, particles, nesting=2)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("summed_by", ["model", "guide"])
def test_latents_outside_the_plate_and_of_several_numbers(summed_by, particles, x):
    def model(x):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3)))
        m = pyro.sample("m", dist.Normal(LOC, 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.OneHotCategorical(p), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal((c * m).sum(-1) + z.prod(-1), 0.5), obs=x)

    def guide(x):
        count = pyro.param("count", torch.ones(3), constraint=constraints.positive)
        w = pyro.param("w", torch.tensor([0.3, -0.1, 0.2]))
        pyro.sample("p", dist.Dirichlet(count))
        pyro.sample("m", dist.Normal(pyro.param("loc", LOC.clone()), 0.1).to_event(1))
        with pyro.plate("data", len(x)):
            loc = torch.stack([0.1 * x, 0.2 * x], -1)
            if summed_by == "guide":
                fn = dist.OneHotCategorical(logits=x[:, None] * w)
                loc = loc + (w * pyro.sample("c", fn, infer=PARALLEL)).sum(-1, keepdim=True)
            pyro.sample("z", dist.Normal(loc, scale()).to_event(1))

    agrees_with_pyro(model, guide, x, particles)


@pytest.mark.parametrize("particles", [1, 3])
def test_an_autoguide_of_what_is_left(particles, x):
    guide = AutoNormal(poutine.block(clusters, hide=["c"]))
    agrees_with_pyro(clusters, guide, x, particles)


def test_observed_sites_are_not_enumerated(x):
    def model(x):
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", len(x)):
            c = pyro.sample(
                "c", dist.Categorical(torch.ones(3)), infer=PARALLEL, obs=torch.arange(len(x)) % 3
            )
            d = pyro.sample("d", dist.Bernoulli(0.3), infer=PARALLEL)
            pyro.sample("x", dist.Normal(m[c] + d, 1.0), obs=x)

    agrees_with_pyro(model, lambda x: None, x)


def test_a_chain_of_sites_summed_by_the_model(x):
    """Hidden states written out by a loop, each with its own datum; two data in one group."""

    def model(x):
        move = pyro.param("move", torch.tensor([[0.9, 0.1], [0.2, 0.8]]),
                          constraint=constraints.simplex)  # fmt: skip
        m = pyro.param("m", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            moves = torch.tensor([0.4, 0.6])
            for t in range(5):
                state = pyro.sample(f"s{t}", dist.Categorical(moves), infer=PARALLEL)
                moves = move[state]
                pyro.sample(f"x{t}", dist.Normal(m[state], 1.0), obs=x + 0.1 * t)

    agrees_with_pyro(model, lambda x: None, x)
    with torch.no_grad():
        record = record_of(look_at(model, lambda x: None, (x,)), (x,), 2)
    assert len(record.observed) == 1
    assert torch.equal(record.log_likelihood, record.log_weight)


def test_independent_sites_make_no_common_table(x):
    """24 Bernoullis: 48 numbers a datum and not 2^24."""
    m, w = torch.linspace(-1, 1, 24), torch.linspace(-2, 2, 24)

    def model(x):
        with pyro.plate("data", len(x)):
            for i in range(24):
                flip = pyro.sample(f"flip{i}", dist.Bernoulli(0.3), infer=PARALLEL)
                pyro.sample(f"x{i}", dist.Normal(m[i] * flip, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            for i in range(24):
                pyro.sample(f"flip{i}", dist.Bernoulli(logits=w[i] * x), infer=PARALLEL)

    def log_weight(guide):
        return record_of(look_at(model, guide, (x,)), (x,), 1).log_weight[0].float()

    values = torch.tensor([0.0, 1.0])
    joint = dist.Normal(m[:, None] * values, 1.0).log_prob(x[:, None, None])
    joint = joint + torch.tensor([0.7, 0.3]).log()
    assert torch.allclose(log_weight(lambda x: None), joint.logsumexp(2).sum(1), rtol=1e-5)
    log_q = torch.log_softmax((w * x[:, None])[..., None] * values, -1)
    bound = (log_q.exp() * (joint - log_q)).sum((1, 2))
    assert torch.allclose(log_weight(guide), bound, rtol=1e-5)


# Warm-up ----------------------------------------------------------------------------------------


def test_the_kl_term_of_a_mixture_prior_is_weighed(x):
    """c -> z, and apart from it d -> x: log p(z) is the prior's, whatever x is summed over."""

    def model(x):
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
            d = pyro.sample("d", dist.Bernoulli(0.3), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(m[c], 1.0))
            pyro.sample("x", dist.Normal(z + d, 0.5), obs=x)

    traced = inference.trace(model, guide_of_z, x)
    losses = {}
    for beta in (0.0, 0.5, 1.0):
        torch.manual_seed(3)
        losses[beta] = float(traced(traced.parameters, x, beta=beta).detach())
    torch.manual_seed(3)
    with torch.no_grad():
        z = dist.Normal(0.5 * x, 0.7).sample()
    given = dist.Normal(z[:, None] + torch.tensor([0.0, 1.0]), 0.5).log_prob(x[:, None])
    data = (given + torch.tensor([0.7, 0.3]).log()).logsumexp(1).mean()
    prior = dist.Normal(LOC, 1.0).log_prob(z[:, None]).exp().mean(1).log().mean()
    kl = dist.Normal(0.5 * x, 0.7).log_prob(z).mean() - prior
    for beta, loss in losses.items():
        assert loss == pytest.approx(float(beta * kl - data), rel=1e-5)
    with own_store():
        pair = look_at(model, guide_of_z, (x,))
        check_objective(pair, inference.ELBO(warmup_epochs=2), (x,), [])
        assert record_of(pair, (x,), 1).entangled == ()


def entangled(x):
    m = pyro.param("m", LOC.clone())
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
        z = pyro.sample("z", dist.Normal(m[c], 1.0))
        pyro.sample("x", dist.Normal(z + m[c], 0.5), obs=x)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_warmup_needs_a_kl_term_of_its_own(engine, x, monkeypatch):
    monkeypatch.setattr("inference.engines.compiled.compile_graph", lambda graph, inputs: graph)
    objective = inference.ELBO(warmup_epochs=2)
    match = r"sites 'z' and 'x' depend on the same enumerated values, .* train without warm-up"
    with pytest.raises(inference.PairError, match=match):
        fit(entangled, guide_of_z, x, engine=engine, objective=objective, batch_size=10, epochs=3)
    with own_store():
        pair = look_at(entangled, guide_of_z, (x,))
        check_objective(pair, inference.ELBO(), (x,), [])
        with pytest.raises(inference.PairError, match=match):
            check_objective(pair, objective, (x,), [])
        check_objective(look_at(entangled, guide_of_both, (x,)), objective, (x,), [])


def test_without_warmup_it_is_trained(x):
    agrees_with_pyro(entangled, guide_of_z, x)
    agrees_with_pyro(entangled, guide_of_z, x, particles=3)


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
@pytest.mark.parametrize("particles", each(2, [3, 1]))
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


@pytest.mark.parametrize("side", ["model", "guide"])
def test_draws_are_no_support(side, x):
    infer = {**PARALLEL, "num_samples": 10}

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=infer)
            pyro.sample("x", dist.Normal(LOC[c], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.ones(3)), infer=infer)

    match = r"site 'c' .* num_samples=10, .* drop num_samples"
    refused(model, guide if side == "guide" else lambda x: None, x, match)
    plain = config_enumerate(poutine.infer_config(guide, lambda site: {}), num_samples=10)
    refused(model, plain, x, match)


def test_markov_chains_are_refused(x):
    def model(x):
        pyro.param("m", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            state = torch.tensor(0)
            for t in pyro.markov(range(3)):
                move = torch.tensor([[0.9, 0.1], [0.2, 0.8]])[state]
                state = pyro.sample(f"s{t}", dist.Categorical(move), infer=PARALLEL)
                pyro.sample(f"x{t}", dist.Normal(1.0 * state, 1.0), obs=x)

    refused(model, lambda x: None, x, r"site 's0' .* pyro.markov, .* a plain 'for'")


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (dist.Categorical(torch.ones(2)), r"site 'd' draws from Categorical .* mark it for enum"),
        (dist.Poisson(2.0), r"site 'd' draws from Poisson .* beside enumerated sites \('c'\)"),
    ],
)
def test_a_score_function_beside_enumerated_sites_is_refused(fn, match, engine, x):
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
            d = pyro.sample("d", fn)
            pyro.sample("x", dist.Normal(LOC[c] + d, 1.0), obs=x)

    def guide(x):
        pyro.param("w", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("d", fn)

    with pytest.raises(inference.PairError, match=match):
        fit(model, guide, x, engine=engine)
    refused(model, guide, x, match)


def test_a_site_outside_the_plate_that_depends_on_values_is_refused(x):
    def model(x):
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(m[c], 1.0), obs=x)
        pyro.factor("total", m[c].sum(-1))

    refused(model, lambda x: None, x, r"site 'total' has batch shape \(3,\) outside plate 'data'")


def test_a_dimension_of_no_plate_is_refused(x):
    """It would be taken for that of a site's values."""

    def model(x):
        m = pyro.param("m", LOC.clone())
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(3)), infer=PARALLEL)
            pyro.sample("x", dist.Normal(m[c], torch.ones(3, 1)), obs=x.expand(3, -1))

    refused(model, lambda x: None, x, r"site 'x' has batch shape \(3, 20\), .* \.to_event")


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
