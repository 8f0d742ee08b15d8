"""trace: a pair as a pure function of tensors, equal to the handlers' own evaluation."""

import contextlib
import itertools
import random
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from small_pairs import (
    PAIRS,
    Tutorial,
    fit,
    line_data,
    line_guide,
    line_model,
    patterns,
    plate_of,
)
from tiers import each
from torch import nn

import inference
import pyro_vae as pv
from inference import ELBO, PairError, RequestError, Untraceable, trace
from inference.engines.scaled import PerDatum
from inference.isolation import derived_seed, modes, modules_of, validation
from inference.pair import GivenSubsample, as_arguments, examine
from inference.particles import Scorer
from inference.tracing import evaluate_loss, trace_loss


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def look(model, guide, data, plate="data"):
    """The pair as `fit` sees it: looked at in eval mode, then in train mode."""
    modules = modules_of(model, guide)
    with modes(modules, training=False):
        pair = examine(model, guide, data, plate)
    for module in modules:
        module.train()
    return pair


def rows_of(pair, data, num, *, last=False):
    if pair.whole:
        return data
    return tuple(a[-num:] if last else a[:num] for a in data)


def eager(pair, objective, batch, beta, num_data, parameters, *, vectorize, seed):
    """Loss and gradients through the handlers, and those of Pyro's own estimator."""
    torch.manual_seed(seed)
    beta = torch.tensor(beta, dtype=torch.float64)
    with validation(False):
        loss, _ = evaluate_loss(pair, objective, batch, beta, num_data, vectorize=vectorize)
    return loss.detach(), torch.autograd.grad(loss, list(parameters.values()))


def pyros(pair, objective, batch, beta, num_data, parameters, *, vectorize, seed):
    """Loss and gradients of `Trace_ELBO` with the sites scaled."""
    torch.manual_seed(seed)
    handler = PerDatum(pair, num_data)
    handler.beta = beta
    elbo = objective.pyro_loss(vectorize=vectorize, max_plate_nesting=pair.max_plate_nesting)
    # As in `fit`: a plate of the full size draws no rows of its own.
    rows = GivenSubsample(pair.plate, torch.arange(len(batch[0])))
    given = rows if pair.subsampling == "prescaled" else contextlib.nullcontext()
    with validation(False), given:
        loss = elbo.differentiable_loss(handler(pair.model), handler(pair.guide), *batch)
    return loss.detach(), torch.autograd.grad(loss, list(parameters.values()))


def agree(pair, data, particles, *, vectorize, rows=6):
    """The traced function against both, on data, noise, beta and weights it was not traced with."""
    num_data = len(data[0])
    objective = ELBO(num_particles=particles)
    traced = trace_loss(pair, objective, rows_of(pair, data, rows), num_data, vectorize=vectorize)
    batch = rows_of(pair, data, rows, last=True)
    with torch.no_grad():
        for p in traced.parameters.values():
            p.add_(0.05)
    for seed, beta in ((1, 1.0), (2, 0.3)):
        given = (pair, objective, batch, beta, num_data, traced.parameters)
        loss, gradients = eager(*given, vectorize=vectorize, seed=seed)
        torch.manual_seed(seed)
        found, by_name = traced.loss_and_grads(traced.parameters, *batch, beta=beta)
        assert torch.equal(found, loss)
        for (name, gradient), expected in zip(by_name.items(), gradients, strict=True):
            assert torch.equal(gradient, expected), name
        theirs, their_gradients = pyros(*given, vectorize=vectorize, seed=seed)
        assert float(found) == pytest.approx(float(theirs), rel=1e-6, abs=1e-6)
        for (name, gradient), expected in zip(by_name.items(), their_gradients, strict=True):
            size = float(expected.abs().max()) + 1e-3
            assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-4 * size), name
    return traced, batch


# Every combination -----------------------------------------------------------------------------

OPTIONS = {
    "gaussian_mixture": [{"components": 3}],
    "vamp": [{"components": 4}],
    "iaf": [{"hidden": [6], "context": 3}],
    "gaussian": [{"sigma": s} for s in ("fixed", "learned", "per_pixel", "predicted")],
    "mixed": [],  # data of one axis: test_matrix.py has it
}


def members(family):
    """Every registered component with small options, those of tests excepted."""
    for name in family.registry:
        if not name.startswith("test_"):
            for options in OPTIONS.get(name, [{}]):
                yield {"name": name, **options}


def fits(prior, guide, likelihood):
    try:
        pv.VAESpec(prior=prior, guide=guide, likelihood=likelihood)
    except pv.errors.SpecError:
        return False
    return True


def every_part():
    """Each prior and each guide with the first that fits it, likelihoods in turn.

    test_matrix.py has all of their combinations; categorical codes are summed over, by Pyro's
    `TraceEnum_ELBO`: test_enumeration.py.
    """
    priors, guides = (list(members(family)) for family in (pv.Prior, pv.Guide))
    both = [pair for pair in itertools.product(priors, guides) if fits(*pair, {"name": "gaussian"})]
    fitting = [pair for pair in both if pair[0]["name"] != "categorical"]
    firsts = [next((p for p in fitting if part in p), None) for part in (*priors, *guides)]
    likelihoods = list(members(pv.Likelihood))
    pairs = [pair for i, pair in enumerate(firsts) if pair and pair not in firsts[:i]]
    for turn in range(max(len(pairs), len(likelihoods))):
        yield *pairs[turn % len(pairs)], likelihoods[turn % len(likelihoods)]


COMBINATIONS = list(every_part())


def label(combination):
    return "-".join(part.get("sigma", part["name"]) for part in combination)


def build(prior, guide, likelihood, shape=(4, 3)):
    torch.manual_seed(0)
    mlp = {"name": "mlp", "hidden": [5]}
    return pv.VAE(
        data_shape=shape, latent_dim=2, prior=prior, guide=guide, likelihood=likelihood,
        encoder=mlp, decoder=mlp,
    )  # fmt: skip


def pixels(num=20, shape=(4, 3)):
    return torch.rand(num, *shape, generator=torch.Generator().manual_seed(0)).round()


def test_all_families_take_part():
    """New components join by themselves; none is lost."""
    names = {label([part]) for one in COMBINATIONS for part in one}
    assert names >= {"standard_normal", "gaussian_mixture", "vamp", "mean_field", "full_rank"}
    assert names >= {"iaf", "bernoulli", "fixed", "learned", "per_pixel", "predicted"}
    elsewhere = {"categorical", "product_of_experts", "bottom_up", "top_down", "ladder"}
    assert {part["name"] for part in members(pv.Guide)} <= names | elsewhere


@pytest.mark.parametrize("combination", each(2, COMBINATIONS), ids=label)
def test_every_vae_traced_is_the_vae(combination, own_store):
    vae = build(*combination)
    x = pixels()
    vae.initialize(x)
    pair = look(vae.model, vae.guide, (x,))
    traced, _ = agree(pair, (x,), 1, vectorize=False)
    assert len(traced.parameters) == len(list(vae.parameters()))


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("combination", each(2, COMBINATIONS[::3]), ids=label)
def test_vaes_with_several_particles(combination, vectorize, own_store):
    vae = build(*combination)
    x = pixels()
    vae.initialize(x)
    agree(look(vae.model, vae.guide, (x,)), (x,), 3, vectorize=vectorize)


def in_a_plate(pair, data):
    """Are several particles run at once? As `fit` decides it."""
    with contextlib.suppress(PairError):
        return not Scorer(pair, data).folded
    return False


@pytest.mark.parametrize("particles", each(2, [3, 1]))
@pytest.mark.parametrize("name", PAIRS)
def test_every_other_pair_traced_is_the_pair(name, particles, params):
    torch.manual_seed(0)
    (model, guide), data = PAIRS[name]()
    data = as_arguments(data)
    pair = look(model, guide, data, plate_of(name))
    agree(pair, data, particles, vectorize=particles > 1 and in_a_plate(pair, data))


def test_particles_one_by_one(params):
    (model, guide), data = PAIRS["plain params"]()
    agree(look(model, guide, data), data, 3, vectorize=False)


@pytest.mark.parametrize("wrong", ["noise", "beta", "num_data"])
def test_the_comparison_can_fail(wrong, params):
    """Frozen noise, a KL term of another weight, a global latent of another weight."""
    data = line_data()
    pair = look(*PAIRS["global"]()[0], data)
    traced = trace_loss(pair, ELBO(), data, 40, vectorize=False)
    used = {"beta": 1.0, "num_data": 40, "seed": 1}
    used[wrong if wrong != "noise" else "seed"] = {"beta": 0.5, "num_data": 20, "noise": 2}[wrong]
    given = (pair, ELBO(), data, used["beta"], used["num_data"], traced.parameters)
    torch.manual_seed(1)
    found, _ = traced.loss_and_grads(traced.parameters, *data)
    for other in (eager, pyros):
        loss, _ = other(*given, vectorize=False, seed=used["seed"])
        assert float(found) != pytest.approx(float(loss), rel=1e-6)


# inference.trace ---------------------------------------------------------------------------------


def tutorial(seed=0, **fields):
    torch.manual_seed(seed)
    return Tutorial(**fields)


def test_a_traced_loss_is_differentiable():
    vae, x = tutorial(), patterns()
    traced = trace(vae.model, vae.guide, x, num_data=640)
    assert traced.parameters.keys() == {
        f"{part}$$${name}"
        for part in ("encoder", "decoder")
        for name, _ in getattr(vae, part).named_parameters()
    }
    torch.manual_seed(3)
    loss, gradients = traced.loss_and_grads(traced.parameters, x)
    torch.manual_seed(3)
    again = traced(traced.parameters, x)
    assert torch.equal(again, loss)
    (2 * again).backward()
    for name, p in traced.parameters.items():
        assert torch.allclose(p.grad, 2 * gradients[name]), name
    # Other values than the live ones: a pure function.
    others = {n: p.detach() * 0.9 for n, p in traced.parameters.items()}
    torch.manual_seed(3)
    assert float(traced(others, x)) != float(loss)
    live = list(traced.parameters.values())
    first = torch.autograd.grad(traced(traced.parameters, x), live, create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        sum(g.sum() for g in first).backward()


def test_the_parameters_are_the_live_ones(params):
    vae, x = tutorial(), patterns()
    traced = trace(vae.model, vae.guide, x)
    live = {id(p) for p in vae.parameters()}
    assert {id(p) for p in traced.parameters.values()} == live
    assert not params  # a module keeps its own
    params["slope"] = torch.tensor(0.5)
    slope = params._params["slope"]
    plain = trace(line_model, line_guide, *line_data())
    assert plain.parameters["slope"] is slope
    assert plain.parameters.keys() == params.keys() == {"slope", "noise", "gain", "lean", "scale"}
    for name, p in plain.parameters.items():
        assert params._params[name] is p
    assert params["noise"].item() == pytest.approx(1)
    assert params._constraints["noise"] is constraints.positive


@pytest.mark.parametrize(
    "batch", [patterns(63), patterns()[:, :5], patterns().double(), patterns().long()]
)
def test_another_shape_is_refused(batch):
    vae = tutorial()
    traced = trace(vae.model, vae.guide, patterns())
    with pytest.raises(RequestError, match=r"batch: got .*traced for float32 \[64, 6\]"):
        traced(traced.parameters, batch)
    with pytest.raises(RequestError, match="trace it once more"):
        traced.loss_and_grads(traced.parameters, batch, batch)


def test_beta_is_an_input(monkeypatch, params):
    """One recording serves a warm-up: the loss is linear in beta, and its slope is the KL term."""
    x, y = line_data()
    traced = trace(line_model, line_guide, x, y)
    monkeypatch.setattr(inference.capture, "make_fx", None)  # nothing is recorded again
    losses = []
    for beta in (0.0, 0.5, torch.tensor(1.0)):
        torch.manual_seed(0)
        losses.append(traced(traced.parameters, x, y, beta=beta).item())
    assert losses[1] == pytest.approx((losses[0] + losses[2]) / 2)
    with torch.no_grad():
        traced.parameters["gain"].fill_(0.3)
    torch.manual_seed(0)
    with_kl = traced(traced.parameters, x, y, beta=1.0).item()
    torch.manual_seed(0)
    without = traced(traced.parameters, x, y, beta=0.0).item()
    torch.manual_seed(0)
    z = 0.3 * y + torch.randn(40)
    kl = (dist.Normal(0.3 * y, 1.0).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)).mean()
    assert with_kl - without == pytest.approx(float(kl), rel=1e-5)


def test_noise_is_fresh_at_each_call_and_that_of_the_seed():
    vae, x = tutorial(), patterns()
    traced = trace(vae.model, vae.guide, x)
    torch.manual_seed(5)
    first, second = (traced(traced.parameters, x).item() for _ in range(2))
    assert first != second
    torch.manual_seed(5)
    assert [traced(traced.parameters, x).item() for _ in range(2)] == [first, second]


def test_a_loop_of_ones_own_is_fit():
    """Adam on the traced loss, with the batches and the noise of `fit`: the same weights."""
    x, seed, size = patterns(), 4, 16
    vae, own = tutorial(), tutorial()
    settings = {"epochs": 3, "batch_size": size, "learning_rate": 0.01}
    result = fit(vae.model, vae.guide, x, seed=seed, engine="eager", **settings)
    traced = trace(own.model, own.guide, x[:size], num_data=len(x))
    optimizer = torch.optim.Adam(traced.parameters.values(), lr=0.01)
    bounds = []
    torch.manual_seed(seed)
    for epoch in range(3):
        generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
        for rows in torch.randperm(len(x), generator=generator).split(size):
            optimizer.zero_grad()
            loss = traced(traced.parameters, x[rows])
            loss.backward()
            optimizer.step()
            bounds.append(-float(loss.detach()))
    for (name, p), q in zip(vae.named_parameters(), own.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5), name
    assert not torch.allclose(vae.decoder[0].weight, tutorial().decoder[0].weight, atol=1e-2)
    assert result.history[-1]["train_bound"] == pytest.approx(sum(bounds[-4:]) / 4, rel=1e-5)


def test_modules_are_traced_in_the_mode_they_are_in(params):
    (model, guide), x = PAIRS["closures"]()
    (decoder,) = [m for m in modules_of(model, guide) if isinstance(m, nn.Sequential)]
    noise = {}
    for training in (True, False):
        decoder.train(training)
        traced = trace(model, guide, x)
        assert decoder.training == training
        names = {str(node.target) for node in traced.graph.graph.nodes}
        noise[training] = len({n for n in names if "dropout" in n or "bernoulli" in n})
    assert noise[True] > noise[False] == 0


def test_a_traced_pair_is_checked_against_the_handlers_on_demand(params):
    """A number that the pair reads is part of the record; `check` tells when it was changed."""
    held = {"temperature": 1.0, "shift": torch.tensor(0.0)}

    def model(x, y):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(held["shift"], held["temperature"]))
            pyro.sample("y", dist.Normal(slope * x + z, 1.0), obs=y)

    data = line_data()
    traced = trace(model, line_guide, *data)
    before = traced(traced.parameters, *data).item()
    traced.check(*data)
    held["shift"].add_(1.0)  # in place: by reference
    traced.check(*data)
    assert traced(traced.parameters, *data).item() != before
    held["temperature"] = 2.0
    with pytest.raises(Untraceable, match="its traced log-density of site 'z' of the model is not"):
        traced.check(*data)
    held["temperature"] = 1.0
    traced.check(*data)
    held["shift"] = torch.tensor(3.0)
    with pytest.raises(Untraceable):
        traced.check(*data)


@pytest.mark.slow
def test_torch_compile_takes_the_graph():
    vae, x = tutorial(), patterns()
    traced = trace(vae.model, vae.guide, x)
    options = {"fallback_random": True}
    compiled = torch.compile(traced.graph, fullgraph=True, options=options)
    inputs = [*(p.detach() for p in traced.parameters.values()), x, torch.tensor(1.0).double()]
    torch.manual_seed(0)
    expected = traced.graph(*inputs)
    torch.manual_seed(0)
    with pyro.validation_enabled():  # which torch.compile switches off for good
        found = compiled(*inputs)
    for a, b in zip(expected, found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_tracing_leaves_no_traces(params):
    vae, stale, x = tutorial(batch_norm=True), tutorial(seed=9, batch_norm=True), patterns()
    pyro.module("decoder", stale.decoder)
    before = dict(params._params)
    state = {n: v.clone() for n, v in vae.state_dict().items()}
    vae.eval()
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    expected = np.random.RandomState(1).random(), random.Random(1).random()
    kept = torch.get_rng_state()
    trace(vae.model, vae.guide, x)
    vae.train()
    with pytest.raises(Untraceable, match="in place"):
        trace(vae.model, vae.guide, x)
    assert torch.equal(torch.get_rng_state(), kept)
    assert (np.random.random(), random.random()) == expected  # noqa: NPY002
    assert all(torch.equal(v, state[n]) for n, v in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())
    assert vae.training
    assert dict(params._params) == before


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"plate": "rows"}, PairError, "no site stands in a plate called 'rows'"),
        ({"objective": "iwea"}, RequestError, "objective: 'iwea' is unknown"),
    ],
)
def test_bad_requests(settings, error, message, params):
    with pytest.raises(error, match=message):
        trace(line_model, line_guide, *line_data(), **settings)
    assert not params


def test_a_pair_whose_parameters_are_all_frozen():
    vae = tutorial()
    vae.requires_grad_(False)
    vae.eval()
    with pytest.raises(Untraceable, match="no parameter that requires a gradient"):
        trace(vae.model, vae.guide, patterns())


def test_float64(params):
    x, y = (a.double() for a in line_data())
    torch.set_default_dtype(torch.float64)
    try:
        pair = look(line_model, line_guide, (x, y))
        traced, _ = agree(pair, (x, y), 1, vectorize=False)
        assert {p.dtype for p in traced.parameters.values()} == {torch.float64}
    finally:
        torch.set_default_dtype(torch.float32)


# What cannot be traced ---------------------------------------------------------------------------


class Odd(Tutorial):
    """Does something in its model that is no tensor operation."""

    way, calls = "", 0

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("count", torch.zeros(()))
        self.gain = nn.Parameter(torch.zeros(()))

    def model(self, x):
        pyro.module("odd", self)
        with pyro.plate("data", len(x)):
            loc = torch.zeros(len(x), 2)
            z = pyro.sample("latent", dist.Normal(loc, 1.0).to_event(1))
            logits = self.change(self.decoder(z), x) + self.gain
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def change(self, logits, x):
        way = self.way
        if way == "item":
            return logits * (1 + x.mean().item())
        if way == "float":
            return logits * float(x.mean())
        if way == "if":
            return logits * 2 if logits.mean() > 0 else logits
        if way == "mask":
            return logits + x[x > 0.5].mean()
        if way == "where":
            return logits + 0.1 * len(torch.nonzero(x))
        if way == "numpy":
            return logits + x.numpy().mean()
        if way == "asarray":
            return logits + float(np.asarray(x).mean())
        if way == "tolist":
            return logits + sum(x[:, 0].tolist())
        if way == "literal":
            return logits + torch.tensor([x.mean()] * 6)
        if way == "numpy noise":
            return logits + np.random.normal()  # noqa: NPY002
        if way == "python noise":
            return logits + random.random()
        if way == "counter":
            self.calls += 1
            return logits + self.calls
        if way == "batch norm":
            return self.norm(logits)
        if way == "functional norm":
            mean, var = self.norm.running_mean, self.norm.running_var
            return torch.nn.functional.batch_norm(logits, mean, var, training=True)
        if way == "buffer":
            self.count += 1
            return logits + self.count
        if way == "parameter":
            return logits + self.gain.item() + 1
        if way == "detached":
            return logits + float(self.gain.detach().numpy()) + 1
        return logits


def odd(way):
    torch.manual_seed(0)
    vae = Odd()
    vae.way = way
    return vae


def bernoulli_latents():
    """Latents whose gradient is a score function."""

    def model(x):
        logit = pyro.param("logit", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            which = pyro.sample("which", dist.Bernoulli(logits=logit))
            pyro.sample("x", dist.Normal(which, 1.0), obs=x)

    def guide(x):
        lean = pyro.param("lean", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("which", dist.Bernoulli(logits=lean * x))

    return model, guide


def von_mises_latents():
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            angle = pyro.sample("angle", dist.VonMises(loc, 2.0))
            pyro.sample("x", dist.Normal(angle.cos(), 1.0), obs=x)

    def guide(x):
        lean = pyro.param("lean", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("angle", dist.VonMises(lean * x, 1.0))

    return model, guide


# way: what the sentence says. Those that are found by their operation name the line, too.
BY_OPERATION = {
    "item": "'item'",
    "float": "'item'",
    "if": "hands values of tensors to Python",
    "mask": "'index'",
    "where": "'nonzero'",
    "numpy": "'numpy'",
    "asarray": "'__array__'",
    "tolist": "'tolist'",
    "batch norm": r"changes a tensor of shape \(\) in place",
    "functional norm": r"changes a tensor of shape \(6,\) in place",
    "buffer": r"changes a tensor of shape \(\) in place",
    "parameter": "'item'",
    "detached": "'numpy'",
}
BY_VALUE = ["literal", "numpy noise", "python noise", "counter"]
BY_SITE = {
    "site 'which' draws from Bernoulli.*score function": bernoulli_latents,
    "hands values of tensors to Python .*, at line": von_mises_latents,
}


@pytest.mark.parametrize("way", BY_OPERATION)
def test_operations_that_leave_tensors_are_named_with_their_line(way):
    vae, x = odd(way), patterns()
    state = {n: v.clone() for n, v in vae.state_dict().items()}
    with pytest.raises(Untraceable, match=BY_OPERATION[way]) as told:
        trace(vae.model, vae.guide, x)
    message = str(told.value)
    assert "\n" not in message
    assert message.endswith("of test_tracing.py")
    line = int(message.partition("at line ")[2].split()[0])
    source = Path(__file__).read_text().splitlines()
    start = next(i for i, text in enumerate(source) if f'way == "{way}"' in text)
    assert 0 < line - 1 - start < 4, source[line - 1]
    if way not in ("functional norm", "buffer"):  # which do so in eval mode, too: at each look
        assert all(torch.equal(v, state[n]) for n, v in vae.state_dict().items())


@pytest.mark.parametrize("way", BY_VALUE)
def test_what_changes_beside_tensors_is_found_by_its_effect(way):
    vae = odd(way)
    with pytest.raises(Untraceable, match=r"its traced .* is not the eager one"):
        trace(vae.model, vae.guide, patterns())


@pytest.mark.parametrize("message", BY_SITE)
def test_score_functions_name_the_site(message, params):
    with pytest.raises(Untraceable, match=message):
        trace(*BY_SITE[message](), line_data()[0])


@pytest.mark.parametrize("way", ["out", "foreach"])
def test_writing_through_out_or_a_list_is_found(way, params):
    held = torch.zeros(40)

    def model(x, y):
        slope = pyro.param("slope", torch.tensor(0.0))
        if way == "out":
            torch.add(held, 0.01, out=held)
        else:
            torch._foreach_add_([held], 0.01)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(slope * x + z + held[: len(x)], 1.0), obs=y)

    with pytest.raises(Untraceable, match=r"changes a tensor of shape \(40,\) in place"):
        trace(model, line_guide, *line_data())


@pytest.mark.parametrize("has_rsample", [True, False, None])
def test_a_factor_of_the_guide_must_say_that_it_is_reparametrized(has_rsample, params):
    """Pyro takes it for a score function otherwise: the gradients differ."""

    def guide(x, y):
        gain = pyro.param("gain", torch.tensor(0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(gain * y, 1.0))
            pyro.factor("f", 0.1 * z, has_rsample=has_rsample)

    data = line_data()
    if has_rsample:
        agree(look(line_model, guide, data), data, 1, vectorize=False)
        return
    with pytest.raises(Untraceable, match=r"factor 'f' of the guide .*: say has_rsample=True"):
        trace(line_model, guide, *data)


def test_many_particles_that_cannot_be_run_at_once_are_refused():
    vae, x = tutorial(), patterns()
    pair = look(vae.model, vae.guide, (x,))
    with pytest.raises(Untraceable, match=r"9 particles .*take \[particles, batch, ...\]"):
        trace_loss(pair, ELBO(num_particles=9), (x,), 64, vectorize=False)
    trace_loss(pair, ELBO(num_particles=9), (x,), 64, vectorize=True)


def test_several_particles_of_a_pair_that_runs_whole(params):
    """One that cannot take a dimension of particles is traced one by one, as `fit` trains it."""

    def model(x):
        loc = pyro.param("loc", torch.tensor(0.1))
        with pyro.plate("data", 40):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.view(40) + loc, 1.0), obs=x)

    def guide(x):
        lean = pyro.param("lean", torch.tensor(0.1))
        with pyro.plate("data", 40):
            pyro.sample("z", dist.Normal(lean * x, 1.0))

    x = line_data()[0]
    traced = trace(model, guide, x, objective=ELBO(num_particles=3))
    assert traced.parameters.keys() == {"loc", "lean"}


def test_a_frozen_pair_beside_anothers_parameter(params):
    params["other"] = torch.tensor(1.0)
    vae = tutorial()
    vae.requires_grad_(False)
    vae.eval()  # Pyro warns of frozen weights in train mode
    with pytest.raises(Untraceable, match="no parameter that requires a gradient"):
        trace(vae.model, vae.guide, patterns())


def test_a_weight_of_two_names_is_one_parameter():
    vae, x = tutorial(), patterns()

    def model(x):
        pyro.module("again", vae.decoder)
        vae.model(x)

    traced = trace(model, vae.guide, x)
    assert len({id(p) for p in traced.parameters.values()}) == len(traced.parameters) == 8
    assert {name.partition("$")[0] for name in traced.parameters} == {"again", "encoder"}


def test_a_small_term_outside_the_plate_is_compared_by_itself(params):
    """It weighs 1/N in the loss; the sentence names its site."""
    held = {"lam": 1.0}

    def model(x, y):
        line_model(x, y)
        pyro.factor("ridge", -held["lam"] * (1 + pyro.param("slope") ** 2))

    data = line_data()
    traced = trace(model, line_guide, *data, num_data=10**9)
    traced.check(*data)
    held["lam"] = 1.01
    with pytest.raises(Untraceable, match="traced log-density of site 'ridge' of the model is not"):
        traced.check(*data)


def test_checking_leaves_frozen_weights_frozen(params):
    model, guide = PAIRS["pyro modules"]()[0]
    data = line_data()
    traced = trace(model, guide, *data)
    guide.linear.requires_grad_(False)
    with contextlib.suppress(Untraceable):
        traced.check(*data)
    assert not guide.linear.weight.requires_grad
    assert guide.scale_unconstrained.requires_grad


def test_what_can_be_traced_is():
    """The ways above are refused for what they do, not for the class that does it."""
    vae = odd("")
    trace(vae.model, vae.guide, patterns())
    vae = odd("batch norm").eval()
    trace(vae.model, vae.guide, patterns())


def test_what_was_not_recorded_is_refused(params):
    """Gradients of data and beta, other parameters: each in one sentence."""
    x, y = line_data()
    traced = trace(line_model, line_guide, x, y)
    for batch, beta in (
        ((x.clone().requires_grad_(), y), 1.0),
        ((x, y), torch.tensor(1.0, requires_grad=True)),
    ):
        with pytest.raises(RequestError, match=r"requires a gradient, but .* parameters alone"):
            traced(traced.parameters, *batch, beta=beta)
    first = next(iter(traced.parameters))
    for given in (list(traced.parameters.values()), x, {first: traced.parameters[first]}):
        with pytest.raises(RequestError, match=f"parameters: expected a mapping with {first}"):
            traced(given, x, y)
    with pytest.raises(RequestError, match="batch: got nothing, but"):
        traced(traced.parameters)
    assert repr(traced) == (
        f"Traced({len(traced.parameters)} parameters, for batches of float32 [40], float32 [40])"
    )


def test_a_replaced_parameter_is_named_by_check(params):
    vae, x = Tutorial(), patterns()
    traced = trace(vae.model, vae.guide, x)
    traced.check(x)
    layer = next(m for m in vae.decoder.modules() if isinstance(m, nn.Linear))
    layer.weight = nn.Parameter(layer.weight.detach() + 0.1)
    with pytest.raises(Untraceable, match=r"'decoder.*weight' is another tensor than when"):
        traced.check(x)
