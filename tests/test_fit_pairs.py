"""Pairs that are not ours, through `fit` and then `log_marginal`."""

import functools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDelta, AutoLowRankMultivariateNormal, AutoNormal
from pyro.nn import PyroModule
from small_pairs import (
    LineGuide,
    LineModule,
    Tutorial,
    fit,
    global_elbo,
    global_guide,
    global_model,
    line_data,
    line_guide,
    line_model,
    patterns,
    prescaled,
    subsampled,
)
from torch import nn

import inference
from inference import PairError
from inference.layout import init
from inference.training import State


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def evidence(model, guide, data, num_samples=200, **settings):
    estimator = inference.Importance(num_samples=num_samples)
    return inference.log_marginal(
        model, guide, data, estimator=estimator, progress=False, **settings
    )


def improves(model, guide, data, by, **settings):
    """Train; log p(x) is `by` nats per datum better than before. Returns both estimates."""
    before = evidence(model, guide, data)
    result = fit(model, guide, data, **settings)
    after = evidence(model, guide, data)
    assert after.mean - before.mean > by + 3 * (after.mc_std_error + before.mc_std_error)
    assert result.status == "completed"
    assert result.history[-1]["train_bound"] < after.mean + 0.1
    return before, after


def line_log_p(x, y, slope, noise):
    return dist.Normal(slope * x, (1 + noise**2) ** 0.5).log_prob(y).double()


TRAIN = {"epochs": 60, "learning_rate": 0.03}


# Plain pyro.param ------------------------------------------------------------------------------


def test_a_local_latent_regression_with_plain_params(params):
    x, y = line_data()
    before, after = improves(line_model, line_guide, (x, y), by=0.5, **TRAIN)
    # Every number of it has a closed form, before and after.
    assert torch.allclose(before.value, line_log_p(x, y, 0.0, 1.0), atol=0.5)
    slope, noise = params["slope"].item(), params["noise"].item()
    exact = line_log_p(x, y, slope, noise)
    assert abs(after.mean - exact.mean()) < 5 * after.mc_std_error + 1e-3
    assert after.mc_std_error < 0.01
    best = x.dot(y) / x.dot(x)
    assert exact.mean() > line_log_p(x, y, best, 0.5).mean() - 0.05


@pytest.mark.parametrize("size", [4, 7, 10])
def test_a_pair_that_subsamples_itself(size, params):
    model, guide = subsampled(size)
    x, y = line_data()
    _, after = improves(model, guide, (x, y), by=0.5, **TRAIN)
    exact = line_log_p(x, y, params["slope"].item(), params["noise"].item())
    assert abs(after.mean - exact.mean()) < 5 * after.mc_std_error + 1e-3


def test_a_pair_that_declares_the_full_size(params):
    x, y = line_data()
    model, guide = prescaled(len(x))
    improves(model, guide, (x, y), by=0.5, **TRAIN)
    assert params["slope"].item() == pytest.approx(float(x.dot(y) / x.dot(x)), abs=0.15)


def test_every_kind_of_subsampling_arrives_at_the_same_place(params):
    slopes = []
    for model, guide in ((line_model, line_guide), subsampled(10), prescaled(40)):
        params.clear()
        cosine = inference.Cosine()
        fit(model, guide, line_data(), epochs=80, learning_rate=0.05, schedule=cosine)
        slopes.append(params["slope"].item())
    assert max(slopes) - min(slopes) < 0.06


def test_one_number_per_datum_in_the_guide_needs_all_data_at_once(params):
    """`pyro.param("loc", zeros(len(x)))`: a parameter as long as the data fits no batch."""
    x, y = line_data()

    def guide(x, y):
        loc = pyro.param("loc", torch.zeros(len(x)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 0.5))

    with pytest.raises(PairError, match="batch_size=40"):
        fit(line_model, guide, (x, y))
    assert not params
    fit(line_model, guide, (x, y), batch_size=40, epochs=300, learning_rate=0.03)
    assert params["loc"].shape == (40,)
    noise, slope = params["noise"].item(), params["slope"].item()
    posterior = (y - slope * x) / (1 + noise**2)
    assert torch.corrcoef(torch.stack([params["loc"].detach(), posterior]))[0, 1] > 0.97


# Modules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_norm", [False, True])
def test_a_vae_by_hand_with_pyro_module(batch_norm, params):
    torch.manual_seed(0)
    vae = Tutorial(batch_norm=batch_norm)
    improves(vae.model, vae.guide, patterns(), by=0.3, **{**TRAIN, "batch_size": 16})
    assert not params  # module weights stay with their module


def test_a_pair_of_pyro_modules_with_pyro_params(params):
    torch.manual_seed(0)
    model, guide = LineModule(), LineGuide()
    x, y = line_data()
    _, after = improves(model, guide, (x, y), by=0.5, **TRAIN)
    exact = line_log_p(x, y, model.slope.item(), model.noise.item())
    assert abs(after.mean - exact.mean()) < 5 * after.mc_std_error + 1e-3
    assert model.slope.item() == pytest.approx(2, abs=0.5)
    assert not params


def test_a_model_that_is_an_nn_module(params):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 6)

        def forward(self, x):
            pyro.module("whole model", self)
            with pyro.plate("data", len(x)):
                z = pyro.sample(
                    "z", dist.Normal(torch.zeros(2), 1.0).expand([len(x), 2]).to_event(1)
                )
                pyro.sample("x", dist.Bernoulli(logits=self.body(z)).to_event(1), obs=x)

    class Encoder(PyroModule):
        def __init__(self):
            super().__init__()
            self.body = PyroModule[nn.Linear](6, 4)

        def forward(self, x):
            with pyro.plate("data", len(x)):
                loc, raw = self.body(x).chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    torch.manual_seed(0)
    model, guide = Decoder(), Encoder()
    improves(model, guide, patterns(), by=0.5, **TRAIN)


def test_functions_that_close_over_modules_and_partials(params):
    torch.manual_seed(0)
    decoder, encoder = nn.Linear(2, 6), nn.Linear(6, 4)

    def model(x, *, prior_scale):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), prior_scale).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(net, x):
        pyro.module("encoder", net)
        with pyro.plate("data", len(x)):
            loc, raw = net(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    start = decoder.weight.detach().clone(), encoder.weight.detach().clone()
    pair = functools.partial(model, prior_scale=1.0), functools.partial(guide, encoder)
    improves(*pair, patterns(), by=0.5, **TRAIN)
    assert not torch.equal(decoder.weight, start[0])
    assert not torch.equal(encoder.weight, start[1])


def test_methods_of_an_object_that_is_no_module(params):
    class Study:
        def __init__(self):
            self.vae = Tutorial(batch_norm=True)

        def model(self, x):
            return self.vae.model(x)

        def guide(self, x):
            return self.vae.guide(x)

    torch.manual_seed(0)
    study = Study()
    study.vae.eval()
    improves(study.model, study.guide, patterns(), by=0.5, **{**TRAIN, "batch_size": 16})
    # It was found: training mode (batch statistics) during fit, and the caller's mode after.
    assert study.vae.encoder[1].num_batches_tracked == 60 * 4
    assert not study.vae.encoder[1].training


# Global latents --------------------------------------------------------------------------------


def joint_evidence(x, y, noise):
    """log N(y; 0, x x' + noise^2 I) of the global pair."""
    covariance = torch.outer(x, x) + noise**2 * torch.eye(len(x))
    zero = torch.zeros(len(x)).double()
    return float(dist.MultivariateNormal(zero, covariance.double()).log_prob(y.double()))


@pytest.mark.parametrize(
    ("automatic", "batch_size"),  # 16: the last batch is ragged
    [(AutoNormal, 16), (AutoNormal, 40), (AutoLowRankMultivariateNormal, 16), (None, 16)],
)
def test_a_global_latent_regression(automatic, batch_size, params):
    x, y = line_data()
    guide = automatic(global_model) if automatic else global_guide
    settings = {"epochs": 10 * batch_size, "schedule": inference.Cosine()}
    settings["learning_rate"] = 0.05
    fit(global_model, guide, (x, y), batch_size=batch_size, **settings)
    after = evidence(global_model, guide, (x, y), num_samples=2000, plate=None)
    exact = joint_evidence(x, y, params["noise"].item())
    assert float(after.value) == pytest.approx(exact, abs=0.1)
    assert params["noise"].item() == pytest.approx(float((y - 2 * x).std()), rel=0.15)


def test_the_loss_of_a_global_pair_is_its_elbo_per_datum(params):
    """Against Pyro's `Trace_ELBO` on all data, and against the closed form."""
    x, y = line_data()
    params["loc"] = torch.tensor(1.5)
    params.setdefault("scale", torch.tensor(0.2), constraint=constraints.positive)
    params.setdefault("noise", torch.tensor(0.9), constraint=constraints.positive)
    frozen = {"optimizer": "sgd", "learning_rate": 1e-30, "epochs": 1}
    result = fit(global_model, global_guide, (x, y), batch_size=40, seed=3, **frozen)
    torch.manual_seed(3)
    theirs = -Trace_ELBO().loss(global_model, global_guide, x, y) / 40
    assert result.history[0]["train_bound"] == pytest.approx(theirs, rel=1e-5)

    # Minibatches, and a ragged one: the average over many steps is the full ELBO / N.
    particles = inference.ELBO(num_particles=500)
    frozen["epochs"] = 40
    rows = fit(global_model, global_guide, (x, y), batch_size=16, objective=particles, **frozen)
    bounds = torch.tensor([row["train_bound"] for row in rows.history])
    exact = global_elbo(x, y, torch.tensor(1.5), torch.tensor(0.2), torch.tensor(0.9)) / 40
    error = float(bounds.std()) / 40**0.5
    assert error < 0.005
    assert abs(float(bounds.mean()) - exact) < 5 * error
    # Scaling the global KL like a datum's would be far off.
    kl = torch.distributions.kl_divergence(dist.Normal(1.5, 0.2), dist.Normal(0.0, 1.0))
    assert float(kl) * (1 / 16 - 1 / 40) > 10 * error


def test_a_point_guide_trains(params):
    x, y = line_data()
    guide = AutoDelta(global_model)
    fit(global_model, guide, (x, y), epochs=150, learning_rate=0.03, schedule=inference.Cosine())
    noise = params["noise"].item()
    mode = float(x.dot(y) / (x.dot(x) + noise**2))
    assert guide.median()["slope"].item() == pytest.approx(mode, abs=0.05)


# Gradients of self-subsampling pairs -----------------------------------------------------------


def gradients(model, guide, data, steps, batch_size, params):
    """Mean gradient and its standard error over `steps` steps that leave the weights alone."""
    start = {"slope": 1.0, "gain": 0.3, "lean": 0.2}
    collected = {name: [] for name in (*start, "noise", "scale")}

    class Watch(inference.SingleOptimizer):
        def __call__(self, tensors, *args, **kwargs):
            for p in tensors:
                collected[params.param_name(p)].append(p.grad.clone())
                p.grad = None

    params.clear()
    for name, value in start.items():
        params[name] = torch.tensor(value)
    for name in ("noise", "scale"):
        params.setdefault(name, torch.tensor(0.7), constraint=constraints.positive)
    training = init(
        model, guide, data, objective=inference.ELBO(num_particles=10),
        optimizer=Watch("sgd"), batch_size=batch_size, device=torch.device("cpu"),
    )  # fmt: skip
    torch.manual_seed(0)
    for epoch in range(steps // training.steps_per_epoch):
        state, order = State(), training.order(epoch)
        while state.batch < training.steps_per_epoch:
            training.step(state, order)
    return {
        name: (float(torch.stack(g).mean()), float(torch.stack(g).std()) / len(g) ** 0.5)
        for name, g in collected.items()
    }


def agree(first, second):
    """All gradients within 5 standard errors, with errors small enough to mean something."""
    close = []
    for name, (mean, error) in first.items():
        other, other_error = second[name]
        combined = (error**2 + other_error**2) ** 0.5
        assert combined < 0.1 * max(abs(mean), abs(other), 0.5), name
        close.append(abs(mean - other) < 5 * combined)
    return all(close)


def test_subsampling_pairs_have_the_gradient_of_all_data_in_expectation(params):
    data = line_data()
    whole = gradients(line_model, line_guide, data, 100, 40, params)
    assert agree(whole, gradients(*subsampled(8), data, 400, 40, params))
    assert agree(whole, gradients(*prescaled(40), data, 400, 8, params))
    assert agree(whole, gradients(line_model, line_guide, data, 400, 8, params))
    assert not agree(whole, gradients(*subsampled(8, twice=True), data, 400, 40, params))


# Refusals --------------------------------------------------------------------------------------


def test_a_plate_of_fixed_size_says_so(params):
    x, y = line_data()

    def fixed(function):
        def run(x, y):
            with pyro.plate("data", 40):
                function(x, y)

        return run

    def body_p(x, y):
        slope = pyro.param("slope", torch.tensor(0.0))
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(slope * x + z, 1.0), obs=y)

    def body_q(x, y):
        pyro.sample("z", dist.Normal(0.5 * y, 1.0))

    with pytest.raises(PairError, match="set batch_size=40"):
        fit(fixed(body_p), fixed(body_q), (x, y))
    assert not params
    fit(fixed(body_p), fixed(body_q), (x, y), batch_size=40)
    assert params["slope"].item() != 0


def test_a_plate_that_declares_another_number_of_data(params):
    with pytest.raises(PairError, match="declares 50 data, but train holds 40"):
        fit(*prescaled(50), line_data())
    assert not params


def test_a_pair_without_parameters(params):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    with pytest.raises(PairError, match="no parameters: nothing to train"):
        fit(model, guide, torch.zeros(20))
