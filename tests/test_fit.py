"""fit: the engine, what it reports, what it refuses, and that it leaves no traces."""

import itertools
import json
import random
import subprocess
import sys
import time
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO
from small_pairs import (
    Tutorial,
    fit,
    line_data,
    line_guide,
    line_model,
    patterns,
    prescaled,
    subsampled,
)
from torch import nn

import inference
import pyro_vae as pv
from inference import ELBO, NonFiniteError, PairError, RequestError, SingleOptimizer
from inference.isolation import derived_seed, modules_of
from inference.layout import init
from inference.progress import Progress
from inference.requests import device_of, usable_device

FROZEN = {"optimizer": "sgd", "learning_rate": 1e-30}  # updates that change no float


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def put_exact(params, slope=1.5, noise=0.8):
    """The line pair with the exact posterior as guide: every draw gives log p(y|x) itself."""
    gain = 1 / (1 + noise**2)
    for name, value in (("slope", slope), ("gain", gain), ("lean", -slope * gain)):
        params[name] = torch.tensor(value)
    for name, value in (("noise", noise), ("scale", noise * gain**0.5)):
        params.setdefault(name, torch.tensor(value), constraint=constraints.positive)
    x, y = line_data()
    return dist.Normal(slope * x, (1 + noise**2) ** 0.5).log_prob(y)


def tutorial(seed=0, **fields):
    torch.manual_seed(seed)
    return Tutorial(**fields)


def same(module, other):
    return all(torch.equal(v, other.state_dict()[n]) for n, v in module.state_dict().items())


# The engine is Pyro's ------------------------------------------------------------------------


@pytest.mark.parametrize("particles", [1, 3])
def test_fit_equals_a_loop_of_plain_pyro(particles):
    """Same seed, same batches: the weights of `pyro.infer.SVI` on sites scaled by 1/batch."""
    x, seed, epochs, size = patterns(50), 5, 4, 16  # the last batch holds 2
    vae = tutorial()
    objective = ELBO(num_particles=particles)
    result = fit(
        vae.model, vae.guide, x, epochs=epochs, batch_size=size, seed=seed, clip_norm=0.3,
        objective=objective, learning_rate=0.01,
    )  # fmt: skip

    other, losses = tutorial(), []
    optimizer = SingleOptimizer("adam", 0.01, clip_norm=0.3)

    def scaled(function):
        def run(batch):
            with pyro.poutine.scale(scale=1 / len(batch)):
                return function(batch)

        return run

    loss = Trace_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
    svi = SVI(scaled(other.model), scaled(other.guide), optimizer, loss)
    torch.manual_seed(seed)
    for epoch in range(epochs):
        generator = torch.Generator().manual_seed(derived_seed("order", seed, epoch))
        for rows in torch.randperm(len(x), generator=generator).split(size):
            losses.append((len(rows), svi.step(x[rows])))
    assert same(vae, other)
    assert not same(vae, tutorial())
    last = losses[-4:]
    weighted = -sum(n * value for n, value in last) / len(x)
    assert result.history[-1]["train_bound"] == pytest.approx(weighted, rel=1e-6)
    assert weighted != pytest.approx(-sum(v for _, v in last) / 4, rel=1e-6)  # ragged


def test_batches_are_a_permutation_new_each_epoch_and_known_from_the_seed():
    vae, x = tutorial(), torch.arange(50.0)[:, None].expand(50, 6) / 50
    seen = []

    def watch(batch):
        seen.extend((batch[:, 0] * 50).round().int().tolist())
        return (batch > 0.5).float()

    settings = {"epochs": 2, "batch_size": 16, "batch_transform": watch, **FROZEN}
    fit(vae.model, vae.guide, x, seed=1, **settings)
    first, second = seen[-100:-50], seen[-50:]
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    fit(vae.model, vae.guide, x, seed=1, **settings)
    assert seen[-100:] == first + second
    fit(vae.model, vae.guide, x, seed=2, **settings)
    assert seen[-100:] != first + second


@pytest.mark.parametrize(
    ("batch_size", "particles"), [(40, 1), (16, 1), (7, 1), (1, 1), (16, 4), (40, 3)]
)
def test_the_bound_is_in_nats_per_datum_whatever_the_batch(batch_size, particles, params):
    """With the exact posterior as guide it is the mean of log p(y|x), without noise."""
    log_p = put_exact(params)
    result = fit(
        line_model, line_guide, line_data(), validation=line_data(), epochs=1,
        batch_size=batch_size, objective=ELBO(num_particles=particles), **FROZEN,
    )  # fmt: skip
    (row,) = result.history
    assert row["train_bound"] == pytest.approx(float(log_p.mean()), abs=1e-5)
    assert row["validation_bound"] == pytest.approx(float(log_p.mean()), abs=1e-5)
    assert row["step"] == result.steps == -(-40 // batch_size)


def test_the_bound_does_not_depend_on_the_number_of_data(params):
    put_exact(params)
    x, y = line_data()
    twice = (torch.cat([x, x]), torch.cat([y, y]))
    bounds, norms = [], []
    for data, size in (((x, y), 40), (twice, 80), (twice, 80)):
        settings = {"epochs": 1, "batch_size": size, "objective": ELBO(num_particles=5000)}
        (row,) = fit(line_model, line_guide, data, **settings, **FROZEN).history
        bounds.append(row["train_bound"])
        norms.append(row["grad_norm"])
    assert bounds[1] == pytest.approx(bounds[0], abs=1e-5)
    assert norms[1] == pytest.approx(norms[0], rel=0.1)  # the noise differs
    assert norms[1] == norms[2]


class Stubborn(Tutorial):
    """Its decoder flattens with a fixed rank, so that no particle dimension fits in front."""

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            logits = self.decoder(z.view(len(x), 2))
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)


@pytest.mark.parametrize(("cls", "vectorized"), [(Tutorial, True), (Stubborn, False)])
def test_particles_are_vectorized_where_the_networks_allow(cls, vectorized):
    x = patterns()
    torch.manual_seed(0)
    vae = cls()
    training = init(
        vae.model, vae.guide, (x,), objective=ELBO(num_particles=5), device=torch.device("cpu"),
        optimizer=SingleOptimizer("adam"), batch_size=16,
    )  # fmt: skip
    assert training.engine.pyro_loss.vectorize_particles == vectorized
    spread = {}
    for particles in (1, 25):
        objective = ELBO(num_particles=particles)
        settings = {"epochs": 12, "batch_size": 64, "objective": objective, **FROZEN}
        rows = fit(vae.model, vae.guide, x, **settings).history
        bounds = torch.tensor([row["train_bound"] for row in rows])
        spread[particles] = float(bounds.std())
        spread[-particles] = float(bounds.mean())
    assert 2.5 < spread[1] / spread[25] < 10  # 5, within what 12 draws can tell
    assert abs(spread[-1] - spread[-25]) < 5 * spread[1] / 12**0.5


# Warm-up, validation, early stopping ----------------------------------------------------------


def test_beta_grows_linearly_and_weighs_the_kl_alone(params):
    log_p = put_exact(params)
    x, y = line_data()
    objective = ELBO(num_particles=400, warmup_epochs=4)
    rows = fit(
        line_model, line_guide, (x, y), validation=(x, y), epochs=6, batch_size=40,
        objective=objective, **FROZEN,
    ).history  # fmt: skip
    assert [row["beta"] for row in rows] == [0.25, 0.5, 0.75, 1, 1, 1]
    q = dist.Normal(params["gain"] * y + params["lean"] * x, params["scale"])
    kl = torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).mean().item()
    for row in rows:
        expected = float(log_p.mean()) + (1 - row["beta"]) * kl
        assert row["train_bound"] == pytest.approx(expected, abs=0.02)
        # ... and never for validation, which has the same noise each time.
        assert row["validation_bound"] == pytest.approx(float(log_p.mean()), abs=1e-5)
    assert (1 - 0.25) * kl > 0.2


@pytest.mark.parametrize("warmup", [{"warmup_steps": 6}, {"warmup_epochs": 2}])
def test_beta_of_each_step(warmup):
    objective = ELBO(**warmup)
    assert objective.warmup(3) == 6
    betas = [objective.beta(step, 3) for step in range(8)]
    assert betas == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1])
    assert ELBO().beta(0, 3) == 1


def test_validation_has_the_same_noise_each_time():
    vae = tutorial()
    data = {"validation": patterns(30, seed=2), "batch_size": 16}
    rows = fit(vae.model, vae.guide, patterns(), **data, **FROZEN).history
    assert len({row["validation_bound"] for row in rows}) == 1
    assert len({row["train_bound"] for row in rows}) == 3  # fresh noise in training
    other = fit(vae.model, vae.guide, patterns(), seed=1, **data, **FROZEN).history
    assert other[0]["validation_bound"] != rows[0]["validation_bound"]


def test_validation_changes_nothing_else():
    results = []
    for validation in (None, patterns(30, seed=2)):
        vae = tutorial(batch_norm=True)
        fit(vae.model, vae.guide, patterns(), validation=validation, learning_rate=0.01)
        results.append(vae)
    assert same(*results)


@pytest.mark.parametrize("particles", [1, 3])
@pytest.mark.parametrize("held_out", [7, 10, 33, 90])
@pytest.mark.parametrize("kind", ["plain", "own", "prescaled"])
def test_the_validation_bound_is_over_all_validation_data(kind, held_out, particles, params):
    """With the exact posterior as guide: the mean of log p(y|x), however the plate subsamples."""
    put_exact(params)
    x, y = line_data(held_out, seed=5)
    log_p = dist.Normal(1.5 * x, (1 + 0.8**2) ** 0.5).log_prob(y)
    pair = {"plain": (line_model, line_guide), "own": subsampled(7), "prescaled": prescaled(40)}
    (row,) = fit(
        *pair[kind], line_data(), validation=(x, y), epochs=1,
        objective=ELBO(num_particles=particles), **FROZEN,
    ).history  # fmt: skip
    assert row["validation_bound"] == pytest.approx(float(log_p.mean()), abs=1e-5)
    # Rows left out or counted twice would show.
    other = torch.cat([log_p, log_p[-3:]])
    assert float(other.mean()) != pytest.approx(float(log_p.mean()), abs=1e-3)
    assert float(log_p[:-3].mean()) != pytest.approx(float(log_p.mean()), abs=1e-3)


def test_latents_outside_the_plate_count_once_whatever_part_validation_takes(params):
    """A pair that subsamples itself, with a global latent, against Pyro's own loss."""
    x, y = line_data(23)
    params["loc"] = torch.tensor(1.5)
    params.setdefault("scale", torch.tensor(1e-3), constraint=constraints.positive)

    def pair(size):
        def model(x, y):
            slope = pyro.sample("slope", dist.Normal(0.0, 0.1))
            with pyro.plate("data", len(x), subsample_size=size) as rows:
                pyro.sample("y", dist.Normal(slope * x[rows], 1.0), obs=y[rows])

        def guide(x, y):
            scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
            pyro.sample("slope", dist.Normal(pyro.param("loc", torch.tensor(0.0)), scale))

        return model, guide

    bounds = []
    for size in (23, 22, 10):
        (row,) = fit(
            *pair(size), (x, y), validation=(x, y), epochs=1, batch_size=23,
            objective=ELBO(num_particles=100), **FROZEN,
        ).history  # fmt: skip
        bounds.append(row["validation_bound"])
    theirs = -Trace_ELBO(100).loss(*pair(None), x, y) / 23
    assert bounds == pytest.approx([theirs] * 3, abs=0.02)


@pytest.mark.parametrize("warm", [0, 12])
def test_early_stopping_puts_the_best_weights_back(warm, tmp_path):
    """Few data, many weights: the validation bound rises, then falls."""
    x, held_out = patterns(12, seed=3), patterns(100, seed=4)
    vae = tutorial(hidden=64)
    objective = ELBO(warmup_epochs=warm)
    settings = {"batch_size": 4, "learning_rate": 0.05, "objective": objective, "seed": 1}
    result = fit(
        vae.model, vae.guide, x, validation=held_out, epochs=60, patience=3,
        checkpoint=tmp_path, **settings,
    )  # fmt: skip
    assert result.status == "stopped_early"
    bounds = [row["validation_bound"] for row in result.history]
    best = max(range(len(bounds)), key=bounds.__getitem__) + 1
    assert result.best_epoch == best < len(bounds)
    assert len(bounds) == max(best, warm - 1) + 3  # the epoch that ends warm-up counts
    assert f"weights are those of epoch {best}" in result.message
    assert "no better validation bound for 3 epochs" in result.message
    frozen = {**settings, **FROZEN, "epochs": 1, "objective": ELBO()}
    (row,) = fit(vae.model, vae.guide, x, validation=held_out, **frozen).history
    again = row["validation_bound"]
    assert again == bounds[best - 1]
    assert bounds[-1] < again

    # The checkpoint holds the best weights with *their* optimizer state.
    straight = tutorial(hidden=64)
    pyro.clear_param_store()
    fit(
        straight.model, straight.guide, x, validation=held_out, epochs=best,
        checkpoint=tmp_path / "straight", **settings,
    )  # fmt: skip
    assert same(vae, straight)
    kept = inference.checkpoint.load_checkpoint(tmp_path)
    there = inference.checkpoint.load_checkpoint(tmp_path / "straight").current
    for name, state in there.optimizer.items():
        for key, value in state.items():
            assert torch.equal(kept.best.optimizer[name][key], value)
            assert not torch.equal(kept.current.optimizer[name][key], value)
    assert all(torch.equal(kept.best.weights[n], w) for n, w in there.weights.items())


def test_without_patience_the_last_weights_stay():
    x, held_out = patterns(12, seed=3), patterns(100, seed=4)
    one, two = tutorial(), tutorial()
    result = fit(one.model, one.guide, x, validation=held_out, learning_rate=0.05)
    fit(two.model, two.guide, x, learning_rate=0.05)
    assert result.status == "completed"
    assert same(one, two)


def test_patience_that_is_not_used_up_still_keeps_the_best():
    x, held_out = patterns(12, seed=3), patterns(100, seed=4)
    vae = tutorial(hidden=64)
    settings = {"batch_size": 4, "learning_rate": 0.05, "seed": 1}
    result = fit(
        vae.model, vae.guide, x, validation=held_out, epochs=15, patience=50, **settings
    )  # fmt: skip
    bounds = [row["validation_bound"] for row in result.history]
    assert result.status == "completed"
    assert bounds[-1] < max(bounds)
    again = fit(
        vae.model, vae.guide, x, validation=held_out, epochs=1, **{**settings, **FROZEN}
    ).history[0]["validation_bound"]  # fmt: skip
    assert again == max(bounds)


@pytest.mark.parametrize(("num", "steps"), [(40, 1), (128, 1), (129, 2)])
def test_a_batch_is_128_data_or_all(num, steps):
    result = fit(line_model, line_guide, line_data(num), batch_size=None, epochs=1)
    assert result.steps == steps


# Bad requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs: got 0; expected a whole number of at least 1"),
        ({"epochs": 2.5}, "epochs: got 2.5"),
        ({"epochs": True}, "epochs: got True"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"batch_size": 41}, "batch_size: 41 exceeds the 40 training data"),
        ({"learning_rate": -1.0}, "learning_rate: got -1.0; expected a positive number"),
        ({"learning_rate": float("nan")}, "learning_rate: got nan"),
        ({"learning_rate": "fast"}, "learning_rate: got 'fast'"),
        ({"learning_rate": None}, "learning_rate: got None"),
        ({"clip_norm": 0.0}, "clip_norm: got 0.0"),
        ({"patience": 0}, "patience: got 0"),
        ({"patience": 3}, "early stopping after 3 epochs needs validation data"),
        ({"engine": "turbo"}, "engine: 'turbo' is unknown. Choices: auto, eager"),
        ({"device": "gpu"}, "device: 'gpu' is not available here"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not available here"),
        ({"optimizer": "adma"}, "optimizer: 'adma' is unknown. Choices: "),
        ({"optimizer_options": {"beta": 1}}, "optimizer_options: 'beta' is unknown to adam"),
        ({"resume": True}, "resume: give the checkpoint folder"),
        ({"objective": ELBO(warmup_epochs=4)}, "warm-up of 16 steps is longer than the training"),
        ({"objective": ELBO(warmup_steps=13)}, "warm-up of 13 steps is longer than .* 12 steps"),
        ({"plate": "rows"}, "no site stands in a plate called 'rows' .plates found: data"),
        ({"validation": torch.zeros(0, 3)}, "validation: shape .0, 3. holds no data"),
        ({"validation": torch.full((3,), torch.nan)}, "validation: 3 of 3 data hold NaN"),
        ({"schedule": "cosin"}, "schedule: 'cosin' is unknown. Choices: constant, cosine"),
        ({"schedule": 0.1}, "schedule: 0.1 is unknown. Choices: constant, cosine"),
        ({"objective": "iwea"}, "objective: 'iwea' is unknown. Choices: elbo, beta_elbo, "),
        ({"objective": None}, "objective: None is unknown. Choices: elbo"),
    ],
)
def test_bad_requests_are_one_sentence(settings, message, params):
    with pytest.raises(RequestError, match=message) as caught:
        fit(line_model, line_guide, line_data(), **settings)
    assert "\n" not in str(caught.value)
    assert not params


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.zeros(0), "train: shape .0,. holds no data"),
        (torch.tensor(1.0), "holds no data"),
        (([1.0], [2.0]), "train: argument 0 is a list; expected a tensor"),
        ((torch.zeros(20), torch.zeros(30)), "train: arguments have 20 and 30 rows"),
        ((torch.zeros(20), torch.tensor([0.0] * 18 + [torch.nan, torch.inf])), "in row 18"),
        (torch.zeros(20), "called with 1 tensor"),
    ],
)
def test_bad_data_are_one_sentence(data, message, params):
    with pytest.raises(RequestError, match=message):
        fit(line_model, line_guide, data)
    assert not params


def test_a_pair_that_takes_no_few_data_is_looked_at_with_a_batch(params):
    def model(x, y):
        assert len(x) >= 10, "my own assertion"
        line_model(x, y)

    assert fit(model, line_guide, line_data(), batch_size=20, epochs=2).steps == 4
    with pytest.raises(PairError, match=r"at once only \(8 data: .*my own assertion\), but"):
        fit(model, line_guide, line_data(), batch_size=8)


def fixed_size(size):
    """The line pair in a plate of fixed size."""

    def model(x, y):
        slope = pyro.param("slope", torch.tensor(0.0))
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(slope * x + z, 1.0), obs=y)

    def guide(x, y):
        with pyro.plate("data", size):
            pyro.sample("z", dist.Normal(0.5 * y, 1.0))

    return model, guide


LINE = line_model, line_guide
BAD_VALIDATION = {
    "one tensor": (LINE, line_data(9)[0], r"1 tensor\(s\), but train has 2"),
    "shape": (LINE, (torch.zeros(9, 1), torch.zeros(9)), r"tensor 0 has shape \(1,\), but \(\)"),
    "kind": (LINE, (torch.zeros(9), torch.zeros(9).long()), "tensor 1 holds int64, but .* float32"),
    "fixed size": (fixed_size(40), line_data(9), "pair fails on .* 40 vs 9"),
    "own": (subsampled(10), line_data(9), "draws 10 data itself, but validation holds 9"),
}


@pytest.mark.parametrize("case", BAD_VALIDATION)
def test_validation_data_unlike_the_training_data_are_refused(case, params):
    pair, validation, message = BAD_VALIDATION[case]
    with pytest.raises(RequestError, match=f"validation: .*{message}") as caught:
        fit(*pair, line_data(), validation=validation, batch_size=40)
    assert "\n" not in str(caught.value)
    assert not params


def test_validation_data_that_the_networks_do_not_take_are_refused():
    vae = tutorial()
    with pytest.raises(
        PairError, match=r"validation: the pair fails on these data \(float64"
    ) as told:
        fit(vae.model, vae.guide, patterns(), validation=patterns(9).double())
    assert "\n" not in str(told.value)
    outside = patterns(9) * 0.7
    with pytest.raises(PairError, match=r"validation: .*'obs'") as told:
        fit(vae.model, vae.guide, patterns(), validation=outside)
    assert "\n" not in str(told.value)


def test_validation_is_compared_with_what_batches_become():
    """Grey bytes, binarized and flattened for each batch; validation is so already."""
    vae = tutorial()
    grey = (patterns().reshape(-1, 2, 3) * 200).to(torch.uint8)

    def binarize(x):
        return torch.bernoulli(x.flatten(1) / 255)

    settings = {"batch_transform": binarize, "validation": patterns(9)}
    assert len(fit(vae.model, vae.guide, grey, **settings).history) == 3
    with pytest.raises(RequestError, match="validation: a datum of tensor 0 has shape"):
        fit(vae.model, vae.guide, grey, **{**settings, "validation": grey})


def test_integers_under_float_networks_are_one_sentence():
    vae = tutorial()
    with pytest.raises(PairError, match=r"train: the pair fails on these data \(uint8") as told:
        fit(vae.model, vae.guide, patterns().to(torch.uint8))
    assert "\n" not in str(told.value)


def test_schedules_and_objectives_go_by_name_too():
    by_value, by_name = tutorial(), tutorial()
    settings = {"schedule": inference.Cosine(), "objective": ELBO()}
    fit(by_value.model, by_value.guide, patterns(), **settings)
    names = {"schedule": "cosine", "objective": "elbo"}
    fit(by_name.model, by_name.guide, patterns(), **names)
    assert same(by_value, by_name)


def test_a_warm_up_as_long_as_the_training_is_allowed():
    rows = fit(line_model, line_guide, line_data(), objective=ELBO(warmup_epochs=3)).history
    assert [row["beta"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1])


def test_two_warm_ups_are_refused():
    with pytest.raises(ValueError, match="give one of them"):
        ELBO(warmup_epochs=1, warmup_steps=1)


# No traces ------------------------------------------------------------------------------------


class Stop(Exception):
    pass


def stop(row):
    raise Stop


@pytest.mark.parametrize("fails", [False, True])
def test_store_random_state_and_modes_are_left_as_found(fails, params):
    vae, stale = tutorial(batch_norm=True), tutorial(seed=9, batch_norm=True)
    pyro.module("decoder", stale.decoder)  # a former module under the same name
    pyro.module("encoder", stale.encoder)
    params["other"] = torch.tensor([1.0, 2.0])
    params.setdefault("positive", torch.tensor(3.0), constraint=constraints.positive)
    vae.eval()
    vae.encoder[1].train()
    before = dict(params._params)
    values = {name: value.detach().clone() for name, value in before.items()}
    random, mode = torch.get_rng_state(), [m.training for m in vae.modules()]
    settings = {"callback": stop} if fails else {}
    try:
        fit(vae.model, vae.guide, patterns(), validation=patterns(9), **settings)
    except Stop:
        assert fails
    assert list(params._params) == list(before)
    assert all(params._params[name] is value for name, value in before.items())
    assert all(torch.equal(params._params[name], value) for name, value in values.items())
    assert all(params.param_name(value) == name for name, value in before.items())
    assert params["positive"].item() == pytest.approx(3)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in vae.modules()] == mode
    assert not same(vae, tutorial(batch_norm=True))  # it did train
    assert same(stale, tutorial(seed=9, batch_norm=True))  # ... this one only


@pytest.mark.parametrize("fails", [False, True])
def test_random_states_of_numpy_and_python_are_left_as_found(fails):
    """... and do not matter to the training, which seeds its own."""
    results, settings = [], {"callback": stop} if fails else {}
    for seed in (1, 2):
        vae = tutorial()
        np.random.seed(seed)  # noqa: NPY002
        random.seed(seed)
        expected = np.random.RandomState(seed).random(), random.Random(seed).random()
        drawn = []

        def noisy(x, drawn=drawn):
            drawn.append((np.random.random(), random.random()))  # noqa: NPY002
            return (x - float(drawn[-1][0] < 0.1)).abs()

        try:
            fit(vae.model, vae.guide, patterns(), batch_transform=noisy, **settings)
        except Stop:
            assert fails
        assert (np.random.random(), random.random()) == expected  # noqa: NPY002
        results.append((vae, drawn))
    (one, first), (other, second) = results
    assert same(one, other)
    assert first == second
    assert len(set(first[-7:])) == 7


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("enabled", [False, True])
def test_dtype_and_validation_flags_are_left_as_found(fails, enabled):
    torch.set_default_dtype(torch.float64)
    flags = pyro.poutine.util.is_validation_enabled, dist.is_validation_enabled
    try:
        with pyro.validation_enabled(enabled):
            vae = tutorial()
            try:
                settings = {"callback": stop} if fails else {}
                fit(vae.model, vae.guide, patterns().double(), **settings)
            except Stop:
                assert fails
            assert torch.get_default_dtype() == torch.float64
            assert [flag() for flag in flags] == [enabled, enabled]
            assert torch.distributions.Distribution._validate_args == enabled
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_random_state_of_the_caller_does_not_matter():
    results = []
    for seed in (1, 2):
        vae = tutorial()
        torch.manual_seed(seed)
        fit(vae.model, vae.guide, patterns())
        results.append(vae)
    assert same(*results)


def test_plain_params_go_to_the_callers_store_and_a_second_fit_starts_there(params):
    data = line_data()
    fit(line_model, line_guide, data, learning_rate=0.05)
    first = {name: value.item() for name, value in params.items()}
    assert first.keys() == {"slope", "noise", "gain", "lean", "scale"}
    assert first["noise"] > 0
    assert first["slope"] != 0
    slope = params._params["slope"]
    result = fit(line_model, line_guide, data, **FROZEN)
    assert {name: value.item() for name, value in params.items()} == first
    fit(line_model, line_guide, data, learning_rate=0.05)
    assert params._params["slope"] is slope  # the caller's tensor, with a new value
    assert params["slope"].item() != first["slope"]
    params.clear()
    assert fit(line_model, line_guide, data, **FROZEN).history != result.history


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, NonFiniteError])
def test_plain_params_keep_their_last_values_when_training_breaks_off(error, params):
    """Those already in the caller's store, and those that the training made."""
    params["slope"] = torch.tensor(0.5)
    slope = params._params["slope"]
    held, calls = {}, itertools.count()
    x, y = line_data()

    def breaks(batch):
        if next(calls) < 9:  # looks at the pair count, too
            return batch
        held.update({n: v.item() for n, v in pyro.get_param_store().items()})
        if error is NonFiniteError:
            return batch * torch.nan
        raise error

    with pytest.raises(error):
        fit(line_model, line_guide, (x, y), batch_transform=breaks, learning_rate=0.05)
    assert {name: value.item() for name, value in params.items()} == held
    assert params._params["slope"] is slope
    assert held.keys() == {"slope", "noise", "gain", "lean", "scale"}
    assert held["slope"] not in (0.0, 0.5)
    assert all(value.grad is None for value in params._params.values())


def test_gradients_left_behind_do_not_matter():
    x, clean, dirty = patterns(), tutorial(), tutorial()
    fit(clean.model, clean.guide, x)
    for p in dirty.parameters():
        p.grad = torch.full_like(p, torch.nan)
    fit(dirty.model, dirty.guide, x)
    assert same(clean, dirty)


TRAIN_ONE = """
import json, sys, torch
import pyro_vae as pv
from small_pairs import fit, patterns

for prior in sys.argv[1:]:
    torch.manual_seed(0)
    mlp = {"name": "mlp", "hidden": (8,)}
    vae = pv.VAE(data_shape=(6,), latent_dim=2, prior=prior, encoder=mlp, decoder=mlp)
    settings = {"epochs": 30, "batch_size": 16, "learning_rate": 0.02}
    rows = fit(vae.model, vae.guide, patterns(), **settings).history
    weights = {n: v.double().flatten().tolist() for n, v in vae.state_dict().items()}
    print(json.dumps([[r["train_bound"] for r in rows], weights]))
"""


def test_two_vaes_trained_in_one_process_are_as_if_alone(pytestconfig):
    """Bit for bit: alone in a fresh process, after another one, and after a cleared store."""

    def train(prior):
        torch.manual_seed(0)
        mlp = {"name": "mlp", "hidden": (8,)}
        vae = pv.VAE(data_shape=(6,), latent_dim=2, prior=prior, encoder=mlp, decoder=mlp)
        settings = {"epochs": 30, "batch_size": 16, "learning_rate": 0.02}
        rows = fit(vae.model, vae.guide, patterns(), **settings).history
        weights = {n: v.double().flatten().tolist() for n, v in vae.state_dict().items()}
        return [[row["train_bound"] for row in rows], weights]

    together = [train("standard_normal"), train("gaussian_mixture"), train("standard_normal")]
    assert together[0] == together[2]
    for bounds, _ in together:
        assert bounds[-1] > bounds[0] + 0.2  # both learn
    tests = pytestconfig.rootpath / "tests"
    command = [sys.executable, "-c", TRAIN_ONE, "gaussian_mixture"]
    paths = {"PYTHONPATH": f"{pytestconfig.rootpath}:{tests}", "PATH": ""}
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run(
        command, env={**paths, **threads}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == together[1]


def test_pyros_own_loop_would_not_learn_the_second(params):
    """Why fit keeps a store of its own: the second module is silently detached."""
    first, second, x = tutorial(), tutorial(), patterns()
    for vae in (first, second):
        SVI(vae.model, vae.guide, SingleOptimizer("adam", 0.01), Trace_ELBO()).step(x)
    assert not same(first, tutorial())
    assert same(second, tutorial())


def test_modules_are_found_wherever_functions_keep_them():
    net, inner = nn.Linear(1, 1), nn.Linear(1, 1)

    class Owner:
        def __init__(self):
            self.held = net

        def model(self, x):
            return self.held(x)

        def __call__(self, x):
            return self.held(x)

    def helper(x):
        return net(x)

    def through_helper(x):
        return helper(x)

    def scaled(x):
        return inner(x)

    owner, outer = Owner(), nn.Sequential(inner)
    for function in (helper, through_helper, owner.model, owner, net, net.forward):
        assert modules_of(function) == [net], function
    assert modules_of(pyro.poutine.scale(scaled, scale=2.0)) == [inner]
    assert modules_of(pyro.poutine.block(helper)) == [net]
    assert modules_of(outer, scaled) == [outer]  # a child is its parent's business
    assert modules_of(lambda x: x) == []


# What goes wrong with numbers -----------------------------------------------------------------


class Fragile(Tutorial):
    """Breaks in a chosen way from a chosen call of the model on (looks do not count)."""

    way, start, calls = "", 0, 0

    def model(self, x):
        pyro.module("decoder", self.decoder)
        self.calls += torch.is_grad_enabled()
        broken = self.calls > self.start
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(len(x), 2)
            z = pyro.sample("latent", dist.Normal(loc, 1.0).to_event(1))
            logits = self.decoder(z)
            if broken and self.way == "model":
                logits = logits * float("nan")
            if broken and self.way == "infinite":
                pyro.factor("wall", torch.full((len(x),), -torch.inf))
            if broken and self.way == "gradient":
                bias = self.decoder[2].bias
                logits = logits + (bias - bias.detach()).abs().sqrt().sum()  # 0, slope infinite
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            if self.way == "guide" and self.calls >= self.start and torch.is_grad_enabled():
                self.hurt = True
            if self.way == "guide" and getattr(self, "hurt", False):
                loc = loc / 0.0
            pyro.sample("latent", dist.Normal(loc, raw.exp()).to_event(1))


BREAKS = {
    "model": "step .*; site 'obs' of the model has a log-density that is not finite",
    "infinite": "the loss is inf; site 'wall' of the model has a log-density that is not finite",
    "guide": "; site 'latent' of the guide drew a value that is not finite",
    "gradient": r"the gradient of parameter 'decoder\$\$\$2.bias' is not finite",
}


@pytest.mark.parametrize("way", BREAKS)
@pytest.mark.parametrize("start", [0, 6])
def test_a_loss_that_is_not_finite_stops_before_the_weights(way, start, params, tmp_path):
    x, settings = patterns(), {"batch_size": 16, "learning_rate": 0.01, "seed": 3}
    params["other"] = torch.tensor(1.0)
    torch.manual_seed(0)
    vae = Fragile(batch_norm=True)
    vae.way, vae.start = way, start
    rows = []
    with pytest.raises(NonFiniteError, match=BREAKS[way]) as caught:
        fit(
            vae.model, vae.guide, x, checkpoint=tmp_path, checkpoint_seconds=0,
            callback=rows.append, **settings,
        )  # fmt: skip
    message = str(caught.value)
    assert message.startswith(f"step {start + 1} (epoch {1 + start // 4})")
    assert str(tmp_path) in message
    assert "\n" not in message
    assert len(rows) == start // 4

    # The weights (running statistics too) are those after `start` steps.
    seen = itertools.count()
    reference = tutorial(batch_norm=True)
    kept = {n: v.clone() for n, v in reference.state_dict().items()}

    def keep(batch):
        if reference.training and next(seen) == start:  # looks are in eval mode
            kept.update({n: v.clone() for n, v in reference.state_dict().items()})
        return batch

    fit(reference.model, reference.guide, x, batch_transform=keep, **settings)
    assert next(seen) == 12
    assert all(torch.equal(value, kept[name]) for name, value in vae.state_dict().items())
    assert all(p.grad is None or p.grad.isfinite().all() for p in vae.parameters())

    # The checkpoint is the last good one, the caller's store as it was.
    held = inference.checkpoint.load_checkpoint(tmp_path)
    assert held.progress["step"] == start
    weights = {**held.current.weights}
    for part in ("encoder", "decoder"):
        for name, value in getattr(vae, part).named_parameters():
            assert torch.equal(weights[f"{part}$$${name}"], value)
    assert list(params) == ["other"]


def test_weights_that_are_not_finite_from_the_start_are_named():
    vae = tutorial()
    with torch.no_grad():
        vae.decoder[0].weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"parameter 'decoder\$\$\$0.weight' holds NaN"):
        fit(vae.model, vae.guide, patterns())


def test_pyros_own_warning_of_nan_is_not_a_second_message():
    torch.manual_seed(0)
    vae = Fragile()
    vae.way, vae.start = "model", 2
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with pytest.raises(NonFiniteError):
            fit(vae.model, vae.guide, patterns(), batch_size=16)
    assert not told


# Devices ---------------------------------------------------------------------------------------


def test_a_pair_is_where_its_first_parameter_is():
    x = (torch.zeros(3, 6),)
    far = nn.Linear(2, 2, device="meta")
    assert device_of([], x) == torch.device("cpu")
    assert device_of([nn.Softplus(), far, nn.Linear(2, 2)], x) == torch.device("meta")
    assert device_of([nn.Linear(2, 2), far], (x[0].to("meta"),)) == torch.device("cpu")
    assert device_of([nn.Softplus()], (x[0].to("meta"),)) == torch.device("meta")
    assert usable_device("cpu") == torch.device("cpu")


def evidence_of(vae, x, **settings):
    """Everything that takes a device, on one pair."""
    few = {"num_samples": 5, **settings}
    importance = inference.Importance(num_samples=5)
    weighed = inference.log_marginal(
        vae.model, vae.guide, x, estimator=importance, progress=False, **settings
    )
    return (
        weighed.mean,
        inference.bound(vae.model, vae.guide, x, **few).elbo,
        inference.active_units(vae.model, vae.guide, x, **few).count,
    )


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
@pytest.mark.parametrize("function", ["bound", "active_units", "log_marginal"])
def test_evidence_refuses_a_bad_device_as_fit_does(function, device):
    vae = tutorial()
    with pytest.raises(RequestError, match=f"device: '{device}' is not available here"):
        getattr(inference, function)(vae.model, vae.guide, patterns(), device=device)


def test_evidence_on_the_device_asked_for_is_that_of_the_default():
    vae = tutorial()
    assert evidence_of(vae, patterns(), device="cpu") == evidence_of(vae, patterns())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_evidence_follows_the_modules_to_the_gpu():
    vae, x = tutorial(batch_norm=True), patterns()
    fit(vae.model, vae.guide, x, validation=patterns(9))
    assert all(p.is_cuda for p in vae.parameters())
    there = evidence_of(vae, x)
    assert all(p.is_cuda for p in vae.parameters())
    back = evidence_of(vae, x.cuda(), device="cpu")
    assert not any(p.is_cuda for p in vae.parameters())
    assert there[:2] == pytest.approx(back[:2], abs=0.5)
    assert evidence_of(vae, x.cuda())[:2] == back[:2]


# Progress --------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["steps", "tiles"])
def test_the_bar_tells_bound_rate_and_time_left(unit, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    with Progress("training", 5, True, unit=unit) as bar:
        for _ in range(5):
            time.sleep(0.02)
            bar.advance(text="bound -98.20")
    told = capsys.readouterr().err
    assert "bound -98.20" in told
    assert f"{unit}/s" in told
    rate = float(told.split(f" {unit}/s")[0].split()[-1])
    assert 5 < rate < 60
    assert "left" in told
