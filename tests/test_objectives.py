"""Objectives: their values, what they ask of a pair and refuse, and that every engine runs them."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pydantic import ValidationError
from pyro.distributions import constraints
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from pyro.nn import PyroModule, PyroParam
from small_pairs import (
    Tutorial,
    closed_over,
    fit,
    gamma_guide,
    gamma_model,
    global_guide,
    global_model,
    line_data,
    line_guide,
    line_model,
    nested_guide,
    nested_model,
    patterns,
    prescaled,
    subsampled,
    views,
)
from torch import nn

import inference
import pyro_vae as pv
from inference import OBJECTIVES, PairError
from inference.engines import compiled
from inference.isolation import validation
from inference.objectives.base import Objective
from inference.objectives.info_vae import discrepancy
from inference.pair import examine
from inference.particles import record_of
from inference.tracing import evaluate_loss
from pyro_vae.app.experiment import load_experiment

# One of each; those that weigh draws have some.
EVERY = [
    inference.ELBO(),
    inference.ELBO(kl="analytic", num_particles=2, warmup_steps=3),
    inference.IWAE(num_particles=3),
    inference.DReG(num_particles=3),
    inference.STL(num_particles=2),
    inference.Renyi(num_particles=3),
    inference.BetaELBO(weight=2.0),
    inference.FreeBits(nats=0.3, kl="analytic"),
    inference.FreeBits(nats=0.3, per="site", num_particles=2),
    inference.InfoVAE(weight=5.0, num_particles=2),
    inference.TotalCorrelation(num_particles=2),
    inference.ReweightedWakeSleep(num_particles=3),
    inference.Thermodynamic(num_particles=4),
]
LABELS = [f"{o.name}-{i}" for i, o in enumerate(EVERY)]


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def tutorial(**fields):
    torch.manual_seed(0)
    return Tutorial(**fields)


# As values ---------------------------------------------------------------------------------------


def test_each_is_found_by_name_and_says_what_its_optimum_is():
    assert {o.name for o in EVERY} == set(OBJECTIVES)
    for name, cls in OBJECTIVES.items():
        objective = cls()
        assert objective.name == name
        assert len(cls.optimum) > 20
        assert len(cls.__doc__.strip().splitlines()[0]) <= 100
        assert "arXiv" in cls.__doc__ or "Higgins" in cls.__doc__
        assert cls.model_validate_json(objective.model_dump_json()) == objective
        assert hash(objective) == hash(cls())
        assert getattr(inference, cls.__name__) is cls


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        *((name, {"num_particles": 0}) for name in OBJECTIVES),
        *((name, {"particles": 3}) for name in OBJECTIVES),
        ("elbo", {"kl": "exact"}),
        ("elbo", {"warmup_epochs": 1, "warmup_steps": 1}),
        ("renyi", {"num_particles": 1}),
        ("renyi", {"alpha": math.nan}),
        ("renyi", {"alpha": -math.inf}),
        ("reweighted_wake_sleep", {"num_particles": 1}),
        ("thermodynamic", {"partitions": 0}),
        ("thermodynamic", {"first": 1.0}),
        ("thermodynamic", {"first": 0.0}),
        ("beta_elbo", {"weight": 0.0}),
        ("free_bits", {"nats": -1.0}),
        ("free_bits", {"per": "channel"}),
        ("info_vae", {"alpha": 1.5}),
        ("info_vae", {"alpha": 0.0, "weight": 0.5}),
        ("total_correlation", {"weight": math.inf}),
    ],
)
def test_bad_fields_are_refused(name, fields):
    with pytest.raises(ValidationError):
        OBJECTIVES[name](**fields)


def test_a_spec_takes_each_by_name_and_with_fields():
    spec = load_experiment("digits", ["objective=dreg", "objective.num_particles=3"])
    assert spec.objective == inference.DReG(num_particles=3)
    for name, cls in OBJECTIVES.items():
        assert load_experiment("digits", [f"objective={name}"]).objective == cls()


def test_a_new_one_must_write_its_value():
    class Empty(Objective):
        name: str = "empty"

    with pytest.raises(NotImplementedError, match="Empty must write value"):
        fit(line_model, line_guide, line_data(), objective=Empty(), epochs=1)


# In every engine ---------------------------------------------------------------------------------


def trained(objective, engine, **settings):
    vae, x = tutorial(), patterns(30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = fit(
            vae.model, vae.guide, x, validation=x[:8], objective=objective, engine=engine,
            learning_rate=0.01, **{"epochs": 2, "batch_size": 15, **settings},
        )  # fmt: skip
    return vae, result


def close(vae, other):
    for name, value in vae.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("objective", EVERY, ids=LABELS)
def test_eager_equals_recorded(objective, monkeypatch):
    """The recorded step, run operation by operation; machine code of it is compared below."""
    monkeypatch.setattr(compiled, "compile_graph", lambda graph, inputs: graph)
    vae, eager = trained(objective, "eager")
    other, recorded = trained(objective, "compiled")
    assert recorded.engine == "compiled", recorded.engine_reason
    close(vae, other)
    for row, same in zip(eager.history, recorded.history, strict=True):
        assert row["train_bound"] == pytest.approx(same["train_bound"], rel=1e-4)
        assert row["validation_bound"] == pytest.approx(same["validation_bound"], rel=1e-4)
    start = tutorial().state_dict()
    assert not any(torch.equal(vae.state_dict()[n], v) for n, v in start.items())


def compiled_equals_eager(objective):
    vae, _ = trained(objective, "eager")
    other, result = trained(objective, "compiled")
    assert result.engine == "compiled", result.engine_reason
    close(vae, other)


def test_compiled_dreg():
    compiled_equals_eager(inference.DReG(num_particles=3))


@pytest.mark.slow
@pytest.mark.parametrize("objective", EVERY, ids=LABELS)
def test_compiled(objective):
    compiled_equals_eager(objective)


@pytest.mark.parametrize("objective", EVERY[2:], ids=LABELS[2:])
def test_the_validation_bound_is_the_elbo(objective):
    """Weights that do not move: every objective reports one and the same bound."""
    frozen = {"optimizer": "sgd", "learning_rate": 1e-30, "epochs": 1}
    vae, x = tutorial(), patterns(30)
    settings = {"validation": x, "batch_size": 30, **frozen}
    result = fit(vae.model, vae.guide, x, objective=objective, **settings)
    same = inference.ELBO(num_particles=objective.num_particles)
    expected = fit(vae.model, vae.guide, x, objective=same, **settings)
    row, bound = result.history[0], expected.history[0]
    assert row["validation_bound"] == bound["validation_bound"]
    if objective.name not in ("stl", "free_bits"):  # these may be the ELBO, too
        assert row["train_bound"] != pytest.approx(bound["train_bound"], abs=1e-3)


def test_resume_is_exact(tmp_path):
    """Of the objective with most of a state: draws, taps and weights."""
    objective, settings = inference.DReG(num_particles=3), {"batch_size": 7, "seed": 3}

    def run(**more):
        vae = tutorial()
        result = fit(vae.model, vae.guide, patterns(30), objective=objective, **settings, **more)
        return vae, result

    straight, whole = run(epochs=4)
    run(epochs=2, checkpoint=tmp_path)
    resumed, rest = run(epochs=4, checkpoint=tmp_path, resume=True)
    for name, value in straight.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    assert [r["train_bound"] for r in whole.history] == [r["train_bound"] for r in rest.history]
    objective = inference.IWAE(num_particles=3)
    with pytest.raises(inference.CheckpointError, match=r"objective was .*dreg.*, now .*iwae"):
        run(epochs=4, checkpoint=tmp_path, resume=True)


def test_particles_at_once_are_those_one_at_a_time():
    """The same noise in both: gradients of taps find their own draws."""
    vae, x = tutorial(), patterns(5)
    pair = examine(vae.model, vae.guide, (x,), "data")
    noise = torch.randn(4, 5, 2)
    found = {}
    for vectorize in (True, False):
        for objective in EVERY:
            if objective.name == "info_vae":  # draws of the prior, too
                continue
            objective = objective.model_copy(update={"num_particles": 4})
            given = iter([noise] if vectorize else noise)

            def rsample(self, sample_shape=(), given=given):
                return self.loc + self.scale * next(given)

            with pytest.MonkeyPatch.context() as patch, validation(False):
                patch.setattr(dist.Normal, "rsample", rsample)
                loss, _ = evaluate_loss(pair, objective, (x,), 0.7, 5, vectorize=vectorize)
                grads = torch.autograd.grad(loss, list(vae.parameters()))
            found.setdefault(objective, []).append((loss.detach(), grads))
    for objective, ((loss, grads), (other, others)) in found.items():
        torch.testing.assert_close(loss, other, msg=objective.name)
        for grad, same in zip(grads, others, strict=True):
            torch.testing.assert_close(grad, same, rtol=1e-4, atol=1e-6)


# Parameters wherever they are --------------------------------------------------------------------


class Constrained(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(0.7), constraint=constraints.positive)
        self.net = PyroModule[nn.Linear](1, 1)

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            loc = self.net(y[:, None]).squeeze(-1)
            pyro.sample("z", dist.Normal(loc, self.scale))


def plain_module():
    vae = tutorial()
    return vae.model, vae.guide, (patterns(6),)


def two_level_params():
    def model(x, y):
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(0.0, 1.0))
            z = pyro.sample("z", dist.Normal(top, 1.0))
            pyro.sample("y", dist.Normal(slope * x + z, 1.0), obs=y)

    def guide(x, y):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        lean = pyro.param("lean", torch.tensor([0.3, 0.2]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(lean[0] * y, scale))
            pyro.sample("top", dist.Normal(lean[1] * z, scale))

    return model, guide, line_data(6)


HELD = {
    "pyro.module": plain_module,
    "PyroParam": lambda: (line_model, Constrained(), line_data(6)),
    "pyro.param": lambda: (line_model, line_guide, line_data(6)),
    "two levels": two_level_params,
    "nested plates": lambda: (nested_model, nested_guide, (views(6),)),
    "implicit draws": lambda: (gamma_model, gamma_guide, line_data(6)),
    "subsampled": lambda: (*subsampled(3), line_data(6)),
    "prescaled": lambda: (*prescaled(6), line_data(6)),
}


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("name", HELD)
def test_log_q_stopped_is_log_q_without_its_parameters(name, vectorize):
    """Its value; its gradients are those of log q less those at fixed draws: the path alone."""
    model, guide, data = HELD[name]()
    pair = examine(model, guide, data, "data")
    parameters = list(pyro.get_param_store()._params.values())

    def record(scoring):
        torch.manual_seed(1)
        with validation(False):
            return record_of(pair, data, 3, vectorize=vectorize, scoring=scoring)

    def gradients(scores):
        total = sum((s * (1 + s.detach().cos())).sum() for s in scores.values())
        found = torch.autograd.grad(total, parameters, allow_unused=True)
        return [
            torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)
        ]

    stopped, fixed = record("stopped"), record("fixed draws")
    for site, score in stopped.log_q.items():
        torch.testing.assert_close(stopped.log_q_stopped[site], score, rtol=1e-5, atol=1e-5)
        assert stopped.log_q_stopped[site].shape == score.shape
        torch.testing.assert_close(fixed.log_q[site], score)
    assert not any(z.requires_grad for z in fixed.latents.values())
    paths = gradients(stopped.log_q_stopped)
    whole, score = gradients(record("paths").log_q), gradients(fixed.log_q)
    assert any(float(g.abs().max()) > 1e-3 for g in score)
    for path, both, own in zip(paths, whole, score, strict=True):
        torch.testing.assert_close(path, both - own, rtol=1e-3, atol=1e-4)


def test_masked_data_have_no_gradient():
    """A mask takes a datum's terms out of the weights, and so out of every gradient."""
    mask = torch.tensor([True, False, True])
    x, y = line_data(3)

    def masked(function):
        def run(x, y):
            with pyro.poutine.mask(mask=mask):
                function(x, y)

        return run

    for objective in (inference.DReG(num_particles=2), inference.ReweightedWakeSleep()):
        pair = examine(masked(line_model), masked(line_guide), (x, y), "data")
        y = y.detach().clone().requires_grad_()
        loss, _ = evaluate_loss(pair, objective, (x, y), 1.0, 3, vectorize=True)
        (grad,) = torch.autograd.grad(loss, y)
        assert grad[1] == 0
        assert bool((grad[[0, 2]] != 0).all())


def test_a_masked_kl_in_closed_form_is_0():
    mask = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        lean = pyro.param("lean", torch.tensor(0.5))
        with pyro.plate("data", len(x)), pyro.poutine.mask(mask=mask):
            pyro.sample("z", dist.Normal(lean * x, 0.7))

    x = torch.tensor([1.0, 5.0, -2.0])
    pair = examine(model, guide, (x,), "data")
    torch.manual_seed(0)
    record = record_of(pair, (x,), 1)
    found = -inference.ELBO(kl="analytic").loss(record, 1.0, 3).detach()
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(0.5 * x, 0.7), normal(0.0, 1.0))
    terms = normal(record.latents["z"][0].detach(), 1.0).log_prob(x) - kl
    assert float(found) == pytest.approx(float(terms[mask].sum()) / 3, rel=1e-5)


def test_one_joint_weight_without_a_data_plate():
    """`plate=None`: all data are one, and the weights are those of whole draws."""

    def model(x):
        scale = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, scale).expand([len(x)]).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.3))
        pyro.sample("z", dist.Normal(loc, 0.6))

    x = torch.tensor([0.4, 1.0, 0.1])
    for objective in (inference.IWAE(num_particles=4), inference.DReG(num_particles=4)):
        traced = inference.trace(model, guide, x, objective=objective, plate=None)
        torch.manual_seed(5)
        loss = float(traced(traced.parameters, x).detach())
        torch.manual_seed(5)
        z = 0.3 + 0.6 * torch.randn(4)
        log_w = dist.Normal(0, 1).log_prob(z) - dist.Normal(0.3, 0.6).log_prob(z)
        log_w = log_w + dist.Normal(z[:, None], 1.0).log_prob(x).sum(1)
        assert loss == pytest.approx(-float(log_w.logsumexp(0) - math.log(4)) / 3, rel=1e-5)


# What they refuse --------------------------------------------------------------------------------

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
    elif name in ("total_correlation", "info_vae", "free_bits"):
        with pytest.raises(PairError, match="site 'slope'"):
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
    if name in ("elbo", "beta_elbo"):
        fit(coin_model, marked(coin_guide), x, objective=name, epochs=1)
    elif name == "free_bits":
        objective = inference.FreeBits(per="site")
        fit(coin_model, marked(coin_guide), x, objective=objective, epochs=1)
    else:
        with pytest.raises(PairError, match=f"'c' is marked for enumeration .* '{name}' is a func"):
            fit(coin_model, marked(coin_guide), x, objective=name, epochs=1)
    analytic = inference.ELBO(kl="analytic")
    with pytest.raises(PairError, match="'c' is summed over"):
        fit(coin_model, marked(coin_guide), x, objective=analytic, epochs=1)


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


# Objectives of KL terms --------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
def test_the_analytic_kl_is_pyros(particles):
    vae, x = tutorial(), patterns(7)
    objective = inference.ELBO(kl="analytic", num_particles=particles)
    pair = examine(vae.model, vae.guide, (x,), "data")
    elbo = TraceMeanField_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
    torch.manual_seed(1)
    expected = elbo.differentiable_loss(vae.model, vae.guide, x) / 7
    torch.manual_seed(1)
    loss, _ = evaluate_loss(pair, objective, (x,), 1.0, 7, vectorize=particles > 1)
    torch.testing.assert_close(loss.float(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(vae.parameters())),
        torch.autograd.grad(expected, list(vae.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)
    sampled, _ = evaluate_loss(pair, inference.ELBO(), (x,), 1.0, 7, vectorize=False)
    assert abs(float(sampled.detach()) - float(loss.detach())) > 1e-4


@pytest.mark.parametrize("vectorize", [True, False])
def test_an_analytic_hierarchy_has_the_kl_given_each_draw(vectorize):
    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(len(x)), 1.0))
            z2 = pyro.sample("z2", dist.Normal(0.5 * z1, 0.8))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    def guide(x):
        lean = pyro.param("lean", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(lean * x, 0.7))
            pyro.sample("z2", dist.Normal(0.3 * z1 + lean, 0.6))

    x = torch.tensor([0.3, -1.0])
    pair = examine(model, guide, (x,), "data")
    objective = inference.ELBO(kl="analytic", num_particles=3)
    torch.manual_seed(4)
    record = record_of(pair, (x,), 3, vectorize=vectorize)
    found = float(objective.loss(record, 1.0, 2).detach())
    z1, z2 = record.latents["z1"], record.latents["z2"]
    kl = torch.distributions.kl_divergence
    normal = torch.distributions.Normal
    terms = kl(normal(0.4 * x, 0.7), normal(0.0, 1.0)) + kl(
        normal(0.3 * z1 + 0.4, torch.tensor(0.6)), normal(0.5 * z1, torch.tensor(0.8))
    )
    assert found == pytest.approx(
        float((terms - normal(z2, 1.0).log_prob(x)).mean().detach()), rel=1e-5
    )


def test_analytic_kls_that_are_not_known_are_refused_by_name():
    vae = pv.VAE(data_shape=(6,), latent_dim=2, prior={"name": "gaussian_mixture", "components": 3})
    with pytest.raises(PairError, match=r"site 'z': no closed form of KL\(Normal .* kl='sampled'"):
        fit(vae.model, vae.guide, patterns(), objective=inference.ELBO(kl="analytic"), epochs=1)

    def scaled(x, y):
        with pyro.poutine.scale(scale=0.5):
            line_model(x, y)

    for objective in (inference.ELBO(kl="analytic"), "free_bits", *WEIGHING):
        with pytest.raises(PairError, match=r"is scaled by poutine\.scale"):
            fit(scaled, line_guide, line_data(), objective=objective, epochs=1)


def gaussian_record(x, loc, scale, particles, vectorize=True):
    """A vector z of each datum, N(0, 1) under the model."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(loc), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    pair = examine(model, guide, (x,), "data")
    with validation(False):
        return record_of(pair, (x,), particles, vectorize=vectorize)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_free_bits(kl, vectorize):
    """Groups below `nats` count `nats`, of the batch's mean and not of each datum's KL."""
    x = torch.tensor([0.5, -0.2, 1.0])
    loc = torch.tensor([[2.0, 0.0, 0.3], [-2.0, 0.1, 0.0], [0.0, 0.0, 1.1]], requires_grad=True)
    scale = torch.tensor([0.5, 0.99, 0.9])
    record = gaussian_record(x, loc, scale, 2, vectorize)
    q, p = dist.Normal(loc, scale), dist.Normal(0.0, 1.0)
    z = record.latents["z"]
    if kl == "analytic":
        terms = torch.distributions.kl_divergence(q, p).mean(0).double()
    else:
        terms = (q.log_prob(z) - p.log_prob(z)).double().mean((0, 1))
    likelihood = dist.Normal(z.sum(-1), 1.0).log_prob(x).double().mean()
    assert terms[1] < 0.2 < terms[0]
    number = inference.FreeBits(nats=0.2, kl=kl)
    value = -number.loss(record, 0.5, 3)
    torch.testing.assert_close(value, likelihood - 0.5 * terms.clamp(min=0.2).sum())
    (grad,) = torch.autograd.grad(value - likelihood, loc, retain_graph=True)
    assert not bool(grad[:, 1].any())  # below: free
    assert bool(grad[:, 0].any())
    site = inference.FreeBits(nats=20.0, kl=kl, per="site")
    torch.testing.assert_close(-site.loss(record, 1.0, 3), likelihood - 20.0)
    generous, elbo = inference.FreeBits(nats=1e-6, kl=kl, per="site"), inference.ELBO(kl=kl)
    torch.testing.assert_close(generous.loss(record, 1.0, 3), elbo.loss(record, 1.0, 3))


@pytest.mark.parametrize("vectorize", [True, False])
def test_total_correlation_is_that_of_the_aggregate(vectorize):
    """From all data: the exact mixture's, by quadrature, at 5 standard errors."""
    torch.manual_seed(0)
    loc = torch.tensor([[-1.0, -1.2], [0.8, 1.1], [0.1, -0.3]]).double()
    scale = torch.tensor([[0.5, 0.4], [0.3, 0.6], [0.7, 0.5]]).double()
    x = torch.zeros(3).double()
    objective = inference.TotalCorrelation(weight=3.0)
    grid = torch.linspace(-5, 5, 801).double()
    parts = dist.Normal(loc[:, None], scale[:, None])  # of each datum and number
    density = parts.log_prob(grid[:, None]).exp()  # [N, points, 2]
    whole = torch.einsum("na,nb->ab", density[..., 0], density[..., 1]) / 3
    one, two = density.mean(0).unbind(-1)
    cell = (grid[1] - grid[0]) ** 2
    exact = float((whole * (whole / (one[:, None] * two)).log()).sum() * cell)
    assert 0.1 < exact < 1.0
    found = []
    for _ in range(30 if vectorize else 10):
        record = gaussian_record(x, loc, scale, 200 if vectorize else 30, vectorize)
        elbo = inference.ELBO().loss(record, 1.0, 3)
        offset = (2 - 1) * math.log(3)  # the estimate's constant at M = N, L = 2
        found.append(float(objective.loss(record, 1.0, 3) - elbo) / 2 - offset)
    found = torch.tensor(found)
    error = float(found.std() / len(found) ** 0.5)
    assert error < 0.02
    assert abs(float(found.mean()) - exact) < 5 * error
    marginals_alone = exact + math.log(3)  # the constant forgotten
    assert abs(float(found.mean()) - marginals_alone) > 5 * error


def test_total_correlation_takes_independent_numbers_of_one_latent():
    for fields, match in (
        ({"guide": "full_rank"}, "site 'z' draws from MultivariateNormal"),
        ({"guide": "iaf"}, "site 'z' draws from"),
    ):
        vae = pv.VAE(data_shape=(6,), latent_dim=2, **fields)
        with pytest.raises(PairError, match=match):
            fit(vae.model, vae.guide, patterns(), objective="total_correlation", epochs=1)
    model, guide, data = two_level_params()
    for name in ("total_correlation", "info_vae"):
        with pytest.raises(
            PairError, match=f"'{name}' compares draws of one latent .* z, top|top, z"
        ):
            fit(model, guide, data, objective=name, epochs=1, batch_size=6)


def test_the_discrepancy_of_gaussians():
    """Unbiased: its mean is the closed form, of the kernel exp(-|a - b|^2 / L)."""
    torch.manual_seed(0)
    numbers, spread, shift = 2, 0.6, 0.8
    z = shift + spread * torch.randn(4000, 6, numbers).double()
    v = torch.randn(4000, 6, numbers).double()

    def kernel(variance, off):  # E exp(-d^2 / L), d ~ N(off, variance) in each number
        return (numbers / (numbers + 2 * variance)) ** (numbers / 2) * math.exp(
            -numbers * off**2 / (numbers + 2 * variance)
        )

    exact = kernel(2 * spread**2, 0) + kernel(2, 0) - 2 * kernel(1 + spread**2, shift)
    found = torch.stack([discrepancy(z[i : i + 100], v[i : i + 100]) for i in range(0, 4000, 100)])
    error = float(found.std() / len(found) ** 0.5)
    assert error < 0.005
    assert abs(float(found.mean()) - exact) < 5 * error
    assert exact > 50 * error
    same = torch.stack(
        [discrepancy(v[i : i + 50, :3], v[i : i + 50, 3:]) for i in range(0, 4000, 50)]
    )
    assert abs(float(same.mean())) < 5 * float(same.std()) / len(same) ** 0.5
    assert float(discrepancy(z[:, :1], v[:, :1]).sum()) == 0.0


def test_info_vae_is_its_terms():
    x = torch.tensor([0.5, -0.2, 1.0])
    loc, scale = torch.randn(3, 2), torch.rand(3, 2) + 0.5
    record = gaussian_record(x, loc, scale, 2)
    z = record.latents["z"]
    likelihood = dist.Normal(z.sum(-1), 1.0).log_prob(x).double().mean()
    kl = dist.Normal(loc, scale).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
    for alpha, weight in ((1.0, 10.0), (0.0, 3.0), (-1.0, 2.0)):
        torch.manual_seed(7)
        found = -float(inference.InfoVAE(alpha=alpha, weight=weight).loss(record, 1.0, 3))
        torch.manual_seed(7)
        prior = torch.randn(2, 3, 2)
        expected = likelihood - (1 - alpha) * kl.double().sum(-1).mean()
        expected = expected - (alpha + weight - 1) * discrepancy(z, prior)
        assert found == pytest.approx(float(expected), rel=1e-5)


def test_beta_weighs_every_kl_term_and_warms_up():
    x = torch.tensor([0.5, -0.2, 1.0])
    record = gaussian_record(x, torch.randn(3, 2), torch.tensor(0.8), 2)
    objective = inference.BetaELBO(weight=4.0, warmup_steps=4)
    assert [objective.beta(step, 10) for step in (0, 1, 3, 9)] == [1.0, 2.0, 4.0, 4.0]
    likelihood = -float(inference.ELBO().loss(record, 0.0, 3))
    kl = likelihood + float(inference.ELBO().loss(record, 1.0, 3))
    beta = objective.beta(9, 10)
    assert -float(objective.loss(record, beta, 3)) == pytest.approx(likelihood - 4 * kl)
