"""Objectives: their values, what they ask of a pair and refuse, and that every engine runs them."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pydantic import ValidationError
from pyro.distributions import constraints
from pyro.nn import PyroModule, PyroParam
from small_pairs import (
    Tutorial,
    fit,
    gamma_guide,
    gamma_model,
    line_data,
    line_guide,
    line_model,
    nested_guide,
    nested_model,
    patterns,
    prescaled,
    subsampled,
    two_level_params,
    views,
)
from tiers import each
from torch import nn

import inference
from inference import OBJECTIVES
from inference.engines import compiled
from inference.isolation import validation
from inference.objectives.base import Objective
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
    # That of labels and that of points stand with those models' tests.
    assert {o.name for o in EVERY} | {"m2", "reconstruction"} == set(OBJECTIVES)
    for name, cls in OBJECTIVES.items():
        objective = cls()
        assert objective.name == name
        assert len(cls.optimum) > 20
        assert len(cls.__doc__.strip().splitlines()[0]) <= 100
        assert any(source in cls.__doc__ for source in ("arXiv", "Higgins", "Hinton"))
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


@pytest.mark.parametrize("objective", each(2, EVERY), ids=LABELS)
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


@pytest.mark.slow
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
