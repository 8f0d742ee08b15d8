"""Engines: the compiled step gives the eager trajectory, and what it cannot do is done eagerly."""

import contextlib
import itertools
import math
import os
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_pairs import (
    PAIRS,
    Tutorial,
    fit,
    line_data,
    line_guide,
    line_model,
    methods,
    patterns,
    plate_of,
)
from test_tracing import BY_OPERATION, BY_SITE, BY_VALUE, COMBINATIONS, build, label, odd, pixels
from tiers import each
from torch import nn

import inference
from inference import ELBO, EngineWarning, NonFiniteError, PairError, RequestError
from inference.checkpoint import load_checkpoint
from inference.engines import choice, compiled, cuda_graph
from inference.engines.compiled import Compiled
from inference.isolation import modules_of

REAL = compiled.compile_graph


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


@pytest.fixture(autouse=True)
def engines(monkeypatch):
    """Recorded steps are run operation by operation; the engines made are kept for a look."""
    monkeypatch.setattr(compiled, "compile_graph", lambda graph, inputs: graph)
    made = []
    real = Compiled.__init__

    def init(self, *args, **kwargs):
        real(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(Compiled, "__init__", init)
    return made


@pytest.fixture
def compiler(monkeypatch, engines):
    """The real compiler; how often it ran."""
    calls = []

    def counted(graph, inputs):
        calls.append(graph)
        return REAL(graph, inputs)

    monkeypatch.setattr(compiled, "compile_graph", counted)
    return calls


def tutorial(seed=0, **fields):
    torch.manual_seed(seed)
    return Tutorial(**fields)


def weights_of(model, guide):
    """All that training moves: module states and plain params."""
    found = {f"store {n}": p for n, p in pyro.get_param_store()._params.items()}
    for i, module in enumerate(modules_of(model, guide)):
        found |= {f"{i} {n}": v for n, v in module.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


def train(make, engine, **settings):
    """A pair anew, trained from the same start: result and weights."""
    pyro.clear_param_store()
    torch.manual_seed(0)
    (model, guide), data = make()
    result = fit(model, guide, data, engine=engine, **{"batch_size": 16, **settings})
    return result, weights_of(model, guide)


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(v, second[n]) for n, v in first.items()
    )


def apart(first, second):
    """The largest difference of weights, against the size of each tensor."""
    assert first.keys() == second.keys()
    return max(
        float((v.double() - second[n].double()).abs().max() / (1 + v.double().abs().max()))
        for n, v in first.items()
    )


def follows(eager, other, tolerance=2e-5):
    """The same trajectory up to the rounding of single precision."""
    (expected, weights), (found, others) = eager, other
    assert apart(weights, others) < tolerance
    assert len(expected.history) == len(found.history)
    for row, again in zip(expected.history, found.history, strict=True):
        assert row.keys() == again.keys()
        for key, value in row.items():
            if key == "seconds" or value is None:
                continue
            size = 10 * tolerance * (1 + abs(value))
            assert again[key] == pytest.approx(value, abs=size), (key, row["epoch"])
    for field in ("status", "best_epoch", "steps"):
        assert getattr(expected, field) == getattr(found, field)


def pair_settings(name):
    if name == "joint":
        return {"plate": plate_of(name), "batch_size": 40}
    return {"batch_size": 40 if name == "subsampling" else 16}


# The eager trajectory ----------------------------------------------------------------------------

BUSY = {
    "objective": ELBO(warmup_epochs=2), "schedule": inference.Cosine(), "clip_norm": 0.5,
    "learning_rate": 0.02, "epochs": 4,
}  # fmt: skip


SINGLE = each(3, ((name, 1) for name in PAIRS), unpack=True)


@pytest.mark.parametrize(("name", "particles"), [*SINGLE, *((n, 3) for n in list(PAIRS)[::5])])
def test_recorded_steps_give_the_eager_trajectory(name, particles, engines):
    """Weights and history, with warm-up, a schedule, clipping, validation and a ragged batch."""
    make = PAIRS[name]
    objective = ELBO(num_particles=particles, warmup_epochs=2)
    settings = {**BUSY, **pair_settings(name), "objective": objective}
    (_, _), data = make()
    settings["validation"] = data
    expected, found = (train(make, engine, **settings) for engine in ("eager", "compiled"))
    assert (expected[0].engine, found[0].engine) == ("eager", "compiled")
    assert expected[0].engine_reason == found[0].engine_reason == "as asked"
    follows(expected, found)
    num = len(data) if isinstance(data, torch.Tensor) else len(data[0])
    assert engines[0].recordings == 1 + (num % settings["batch_size"] > 0)
    assert expected[0].history[0]["grad_norm"] > 0


def vae_of(combination, num=40):
    def make():
        vae, x = build(*combination), pixels(num)
        return methods(vae.initialize(x)), x

    return make


@pytest.mark.parametrize("combination", each(4, COMBINATIONS), ids=label)
def test_recorded_vaes_give_the_eager_trajectory(combination):
    settings = {**BUSY, "validation": pixels(10)}
    make = vae_of(combination)
    expected, found = (train(make, engine, **settings) for engine in ("eager", "compiled"))
    assert found[0].engine == "compiled"
    follows(expected, found)


def test_the_comparison_of_trajectories_can_fail(monkeypatch):
    """Frozen noise, no clipping, beta stuck at 1: each shows."""
    make = PAIRS["pyro.module"]
    expected = train(make, "eager", **BUSY)
    follows(expected, train(make, "compiled", **BUSY))
    wrong = [{"clip_norm": None}, {"objective": ELBO()}, {"schedule": inference.Constant()}]
    for change in (*wrong, {"seed": 1}):
        other = train(make, "compiled", **{**BUSY, **change})
        with pytest.raises(AssertionError):
            follows(expected, other)
    real = Compiled._run

    def frozen(self, *args):
        torch.manual_seed(0)
        real(self, *args)

    monkeypatch.setattr(Compiled, "_run", frozen)
    other = train(make, "compiled", **BUSY)
    with pytest.raises(AssertionError):
        follows(expected, other)


SCHEDULES = [
    inference.Constant(),
    inference.Cosine(),
    inference.Exponential(decay_per_epoch=0.5),
    inference.Step(milestones=(2, 3), gamma=0.1),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_schedules_are_data_of_the_recorded_step(schedule, engines):
    settings = {"schedule": schedule, "epochs": 4, "optimizer": "sgd", "learning_rate": 0.1}
    make = PAIRS["pyro.module"]
    expected, found = (train(make, engine, **settings) for engine in ("eager", "compiled"))
    follows(expected, found)
    assert engines[0].recordings == 1  # 64 = 4 x 16


OPTIMIZERS = [
    ("adam", {}),
    ("adam", {"amsgrad": True, "weight_decay": 0.1}),
    ("adam", {"fused": False, "betas": (0.5, 0.9)}),
    ("adam", {"maximize": True}),
    ("adamw", {"weight_decay": 0.1}),
    ("sgd", {}),
    ("sgd", {"momentum": 0.9, "nesterov": True}),
    ("sgd", {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.1}),
    ("rmsprop", {}),
    ("rmsprop", {"momentum": 0.5, "centered": True}),
    ("nadam", {}),
    ("radam", {}),
    ("adagrad", {}),
    ("adagrad", {"lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    ("adadelta", {}),
    ("adamax", {}),
    ("asgd", {}),
    ("rprop", {}),
]


@pytest.mark.parametrize(
    ("optimizer", "options"),
    each(2, OPTIMIZERS, unpack=True),
    ids=[f"{n} {'-'.join(o)}".strip() for n, o in OPTIMIZERS],
)
def test_optimizers_step_as_they_do_eagerly(optimizer, options):
    settings = {"optimizer": optimizer, "optimizer_options": options, "learning_rate": 0.01}
    make = PAIRS["pyro.module"]
    expected, found = (
        train(make, engine, epochs=4, clip_norm=1.0, **settings) for engine in ("eager", "compiled")
    )
    assert found[0].engine == "compiled"
    follows(expected, found)
    start = weights_of(*methods(tutorial()))
    assert apart(start, expected[1]) > 1e-4


def test_an_optimizer_that_cannot_be_recorded_is_run_eagerly():
    expected = train(PAIRS["pyro.module"], "eager", optimizer="adafactor")
    with pytest.warns(EngineWarning, match="not compiled, since ") as told:
        found = train(PAIRS["pyro.module"], "compiled", optimizer="adafactor")
    assert len(told) == 1
    assert found[0].engine == "eager"
    assert same(expected[1], found[1])


def test_transform_callback_and_patience():
    """Fresh binarization, early stopping with the best weights put back, rows handed out."""
    grey = patterns(12, seed=3) * 0.8 + 0.1
    settings = {
        "batch_size": 5, "epochs": 30, "learning_rate": 0.05, "patience": 2,
        "batch_transform": torch.bernoulli, "validation": patterns(50, seed=4),
    }  # fmt: skip
    results, seen = [], []
    for engine in ("eager", "compiled"):
        rows = []
        results.append(
            train(lambda: (methods(tutorial()), grey), engine, callback=rows.append, **settings)
        )
        seen.append(rows)
        assert rows == results[-1][0].history
    follows(*results)
    assert results[1][0].engine == "compiled"
    assert results[1][0].status == "stopped_early"
    assert results[1][0].best_epoch < len(seen[1])


# Real compilation --------------------------------------------------------------------------------


def compiles(make, compiler, **settings):
    settings = {**BUSY, **settings}
    expected, found = (train(make, engine, **settings) for engine in ("eager", "compiled"))
    assert found[0].engine == "compiled"
    assert compiler
    follows(expected, found, 1e-4)


@pytest.mark.slow
def test_compiled_steps_give_the_eager_trajectory(compiler):
    """Both shapes compiled, as in every short epoch; nothing compiled or recorded later."""
    x = patterns(40)
    compiles(lambda: (methods(tutorial()), x), compiler, validation=x, epochs=8)
    assert len(compiler) == 2


@pytest.mark.slow
def test_compiled_vaes_draw_several_sites_in_the_order_of_the_programs(compiler):
    """Two sites, implicit gradients, several particles: the noise is that of the eager engine."""
    compiles(PAIRS["implicit"], compiler, batch_size=20, objective=ELBO(num_particles=2))


@pytest.mark.slow
def test_compiled_code_reads_closed_over_tensors_where_they_are(compiler):
    """Changed in place between steps: not inlined as constants."""
    shift, wide = torch.tensor(0.0), torch.zeros(6)

    def make():
        vae = tutorial()
        shift.zero_()
        wide.zero_()

        def model(x):
            pyro.module("decoder", vae.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("latent", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
                logits = vae.decoder(z) + shift + wide
                pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        return (model, vae.guide), patterns()

    def callback(row):
        shift.add_(1.0)
        wide[2] += 1.0

    compiles(make, compiler, callback=callback)
    assert len(compiler) == 1  # by reference: nothing to record anew
    still = train(make, "eager", **BUSY)
    moved = train(make, "eager", callback=callback, **BUSY)
    assert apart(still[1], moved[1]) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS[::3], ids=label)
def test_compiled_vaes_give_the_eager_trajectory(combination, compiler):
    compiles(vae_of(combination, 48), compiler, validation=pixels(10))


def test_compiled_code_gives_the_eager_trajectory(compiler, capfd):
    """And prints nothing."""
    compiles(PAIRS["plain params"], compiler, batch_size=20)
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_compiled_pairs_give_the_eager_trajectory(name, compiler):
    compiles(PAIRS[name], compiler, **pair_settings(name))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop", "nadam", "adagrad", "radam"])
def test_compiled_optimizers_step_as_they_do_eagerly(optimizer, compiler):
    compiles(PAIRS["pyro.module"], compiler, optimizer=optimizer)


# One recording a shape ---------------------------------------------------------------------------


@pytest.mark.parametrize("num", [64, 50])
def test_one_recording_a_batch_shape_and_none_later(num, engines, monkeypatch):
    traced, compiled_graphs = [], []
    real = compiled.trace_loss

    def counted(*args, **kwargs):
        traced.append(args)
        return real(*args, **kwargs)

    def graph_of(graph, inputs):
        compiled_graphs.append(graph)
        return graph

    monkeypatch.setattr(compiled, "trace_loss", counted)
    monkeypatch.setattr(compiled, "compile_graph", graph_of)
    runs = []
    vae = tutorial()
    real_model, vae.model = vae.model, lambda x: (runs.append(len(x)), real_model(x))[1]
    counts = []
    settings = {"epochs": 6, "objective": ELBO(warmup_epochs=3), "schedule": "cosine"}
    fit(
        vae.model, vae.guide, patterns(num), batch_size=16, engine="compiled",
        callback=lambda row: counts.append(len(runs)), **settings,
    )  # fmt: skip
    assert len(traced) == len(compiled_graphs) == 1 + (num == 50) == engines[0].recordings
    # After the first epoch the pair itself runs only to be compared, after the callback.
    later = [b - a for a, b in itertools.pairwise(counts)]
    assert set(later) == {1 + (num == 50)}
    assert counts[0] > later[0]


def test_without_a_callback_the_pair_is_not_run_after_the_first_epoch(engines):
    runs, x = [], patterns(50)
    totals = []
    for epochs in (1, 5):
        vae = tutorial()
        vae.model = lambda x, real=vae.model: (runs.append(len(x)), real(x))[1]
        fit(vae.model, vae.guide, x, batch_size=16, engine="compiled", epochs=epochs)
        totals.append(len(runs))
        runs.clear()
    assert totals[0] == totals[1]


def test_a_rare_shape_of_a_long_epoch_is_not_compiled(compiler, monkeypatch, engines):
    monkeypatch.setattr(
        compiled, "compile_graph", lambda graph, inputs: compiler.append(graph) or graph
    )
    x = patterns(50)
    for size, expected in ((16, 2), (4, 1)):  # 4 and 13 steps an epoch
        compiler.clear()
        expected_run = train(lambda: (methods(tutorial()), x), "eager", batch_size=size)
        follows(expected_run, train(lambda: (methods(tutorial()), x), "compiled", batch_size=size))
        assert len(compiler) == expected
        assert engines[-1].recordings == 2


def test_batches_of_ever_new_shapes_are_run_eagerly_in_the_end(engines):
    """So many recordings, then a sentence: never one a step."""
    drawn = itertools.count()

    def crop(x):  # views of another length for each batch
        return x[:, : 1 + next(drawn) % 20]

    def make():
        def model(x):
            loc = pyro.param("loc", torch.tensor(0.1))
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                like = dist.Normal(z[..., None] + loc, 1.0).expand([len(x), x.shape[1]])
                pyro.sample("x", like.to_event(1), obs=x)

        def guide(x):
            lean = pyro.param("lean", torch.tensor(0.1))
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(lean * x.mean(-1), 0.5))

        return (model, guide), torch.randn(48, 20)

    def counted(engine):
        nonlocal drawn
        drawn = itertools.count()
        return train(make, engine, epochs=5, batch_transform=crop)

    with pytest.warns(EngineWarning, match="run eagerly from here: 8 were compiled") as told:
        result, _ = counted("compiled")
    assert engines[0].recordings == compiled.MOST_RECORDINGS == 8
    assert result.engine == "compiled"
    assert len(told) == 1
    assert "new shapes and modes are run eagerly from here" in result.engine_reason
    assert "\n" not in str(told[0].message)


# No traces ---------------------------------------------------------------------------------------


def test_modules_keep_their_parameters_and_the_store_its_content(params):
    vae, x = tutorial(), patterns(50)
    params["other"] = torch.tensor([1.0, 2.0])
    other = params._params["other"]
    names, live = list(vae.state_dict()), {n: id(p) for n, p in vae.named_parameters()}
    vae.eval()
    result = fit(vae.model, vae.guide, x, batch_size=16, engine="compiled")
    assert result.engine == "compiled"
    assert list(vae.state_dict()) == names
    assert {n: id(p) for n, p in vae.named_parameters()} == live
    assert all(p.requires_grad and p.grad is None and p.is_leaf for p in vae.parameters())
    assert not vae.training
    assert list(params) == ["other"]
    assert params._params["other"] is other
    assert not any("_orig_mod" in name for name in vae.state_dict())


def test_plain_params_end_in_the_callers_store(params):
    params["slope"] = torch.tensor(0.5)
    slope = params._params["slope"]
    fit(line_model, line_guide, line_data(), engine="compiled", learning_rate=0.05)
    assert params._params["slope"] is slope
    assert params.keys() == {"slope", "noise", "gain", "lean", "scale"}
    assert slope.item() != 0.5
    assert all(p.grad is None for p in params._params.values())


def test_the_random_state_of_the_caller_is_left_and_does_not_matter():
    found = []
    for seed in (1, 2):
        vae = tutorial()
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        fit(vae.model, vae.guide, patterns(50), batch_size=16, engine="compiled")
        assert torch.equal(torch.get_rng_state(), state)
        found.append(vae.state_dict())
    assert same(*found)
    assert not same(found[0], tutorial().state_dict())


@pytest.mark.slow
def test_two_vaes_in_one_process_are_as_if_alone():
    makes = [vae_of(COMBINATIONS[0]), vae_of(COMBINATIONS[-1])]
    alone = [train(make, "compiled")[1] for make in makes]
    pyro.clear_param_store()
    vaes = [build(*COMBINATIONS[i]).initialize(pixels(40)) for i in (0, -1)]
    for vae in vaes:  # the second one's parameters bear the names of the first one's
        fit(vae.model, vae.guide, pixels(40), batch_size=16, engine="compiled")
    for vae, weights in zip(vaes, alone, strict=True):
        assert same(weights_of(*methods(vae)), weights)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_double_precision(precision):
    """Data, weights and optimizer in float64: the engines agree to its rounding."""

    def make():
        x = patterns()
        if precision == "float64":
            return (methods(tutorial()), x)
        return (methods(tutorial().double()), x.double())

    settings = {**BUSY, "precision": precision, "validation": make()[1]}
    if precision == "float64":
        expected, found = (train(make, engine, **settings) for engine in ("eager", "compiled"))
        follows(expected, found, 1e-6)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tutorial, "model", double_model)
        expected, found = (train(make, engine, **settings) for engine in ("eager", "compiled"))
    assert found[0].engine == "compiled"
    follows(expected, found, 1e-10)


def double_model(self, x):
    pyro.module("decoder", self.decoder)
    with pyro.plate("data", x.shape[0]):
        loc = x.new_zeros(x.shape[0], self.num_latents)
        z = pyro.sample("latent", dist.Normal(loc, torch.ones_like(loc)).to_event(1))
        pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


# Resuming ----------------------------------------------------------------------------------------


class Crash(Exception):
    pass


def untimed(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def stopped_and_resumed(make, engines_of, point, folder, monkeypatch, **settings):
    """Stopped after `point` steps, inside an epoch, and resumed from scratch."""
    training = inference.fit.__globals__["Training"]
    real, calls = training.step, itertools.count()

    def crash(*args):
        if next(calls) == point:
            raise Crash
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "step", crash)
        with pytest.raises(Crash):
            train(make, engines_of[0], checkpoint=folder, checkpoint_seconds=0, **settings)
    assert load_checkpoint(folder).progress["step"] == point
    return train(make, engines_of[1], checkpoint=folder, resume=True, **settings)


def strided():
    """A weight whose memory is not in the order of its shape, and so the optimizer's state."""
    vae = tutorial()
    vae.decoder[0].weight = nn.Parameter(torch.randn(2, 8).T)
    return methods(vae), patterns(40)


RESUMED = {
    "pyro.module": lambda: (methods(tutorial()), patterns(40)),
    "strided": strided,
    "plain params": PAIRS["plain params"],
    "subsampling": PAIRS["subsampling"],
    "vamp": vae_of(next(c for c in COMBINATIONS if c[0]["name"] == "vamp")),
}


@pytest.mark.parametrize(
    ("name", "point"),
    [
        *(pytest.param(name, 3, marks=pytest.mark.slow) for name in RESUMED),
        *(("strided", 1), ("plain params", 6), ("pyro.module", 7)),
    ],
)
def test_a_resumed_training_equals_one_that_never_stopped(name, point, tmp_path, monkeypatch):
    make, settings = RESUMED[name], {**BUSY, **pair_settings(name), "optimizer": "nadam"}
    settings["epochs"] = 16 if name == "subsampling" else 4
    settings["batch_transform"] = None if name == "subsampling" else lambda x: x + 0 * x
    straight, weights = train(make, "compiled", **settings)
    resumed, again = stopped_and_resumed(
        make, ("compiled", "compiled"), point, tmp_path, monkeypatch, **settings
    )
    assert straight.engine == resumed.engine == "compiled"
    assert same(weights, again)
    assert untimed(straight.history) == untimed(resumed.history)


@pytest.mark.slow
def test_compiled_training_resumes_exactly(compiler, tmp_path, monkeypatch):
    make = RESUMED["strided"]
    settings = {**BUSY, "batch_size": 20}
    straight, weights = train(make, "compiled", **settings)
    resumed, again = stopped_and_resumed(
        make, ("compiled", "compiled"), 3, tmp_path, monkeypatch, **settings
    )
    assert same(weights, again)
    assert untimed(straight.history) == untimed(resumed.history)
    follows(train(make, "eager", **settings), (straight, weights), 1e-4)


@pytest.mark.parametrize("order", [("eager", "compiled"), ("compiled", "eager")])
@pytest.mark.parametrize("optimizer", each(2, ["adam", "rmsprop", "sgd", "nadam"]))
def test_a_checkpoint_of_one_engine_resumes_in_another(order, optimizer, tmp_path, monkeypatch):
    """The optimizer's state moves: the trajectory goes on, to the rounding of the engines."""
    make, settings = RESUMED["pyro.module"], {**BUSY, "optimizer": optimizer}
    settings["optimizer_options"] = {"momentum": 0.9} if optimizer == "sgd" else None
    straight = train(make, "eager", **settings)
    resumed = stopped_and_resumed(make, order, 7, tmp_path, monkeypatch, **settings)
    assert resumed[0].engine == order[1]
    follows(straight, resumed)


def test_an_optimizer_state_that_is_lost_on_the_way_shows(tmp_path, monkeypatch):
    """The check above can fail."""
    make = RESUMED["pyro.module"]
    straight = train(make, "eager", **BUSY)
    real = load_checkpoint

    def without(folder):
        found = real(folder)
        for state in found.current.optimizer.values():
            for item in state.values():
                item.zero_()
        return found

    monkeypatch.setitem(inference.fit.__globals__, "load_checkpoint", without)
    order = ("eager", "compiled")
    other = stopped_and_resumed(make, order, 7, tmp_path, monkeypatch, **BUSY)
    with pytest.raises(AssertionError):
        follows(straight, other)


def test_noise_is_fresh_after_resuming(tmp_path, monkeypatch):
    """Had the recording's or the start's noise come back, the bounds would tell."""
    frozen = {"optimizer": "sgd", "learning_rate": 1e-30, "batch_size": 40, "epochs": 6}
    make = RESUMED["plain params"]
    resumed, _ = stopped_and_resumed(
        make, ("compiled", "compiled"), 3, tmp_path, monkeypatch, **frozen
    )
    bounds = [row["train_bound"] for row in resumed.history]
    assert len(set(bounds)) == 6
    assert bounds == [row["train_bound"] for row in train(make, "compiled", **frozen)[0].history]


# What cannot be compiled -------------------------------------------------------------------------

WAYS = {**BY_OPERATION, **dict.fromkeys(BY_VALUE, "its traced .* is not the eager one")}
# How often a Python counter is asked depends on the looks at the pair.
REPEATABLE = [way for way in WAYS if way != "counter"]


def make_odd(way):
    return lambda: (methods(odd(way)), patterns())


@pytest.mark.parametrize("way", WAYS)
def test_a_pair_that_cannot_be_recorded_is_trained_eagerly(way):
    """With one warning of one sentence, and bit for bit as by the eager engine."""
    expected = train(make_odd(way), "eager")
    with pytest.warns(EngineWarning, match=WAYS[way]) as told:
        found = train(make_odd(way), "compiled")
    assert len(told) == 1
    message = str(told[0].message)
    assert message.startswith("the eager engine runs this training: not compiled, since ")
    assert "\n" not in message
    assert found[0].engine == "eager"
    assert message.endswith(found[0].engine_reason)
    if way in REPEATABLE:
        assert same(expected[1], found[1])
        assert untimed(expected[0].history) == untimed(found[0].history)


@pytest.mark.parametrize("site", BY_SITE)
def test_a_score_function_is_trained_eagerly(site):
    def make():
        return BY_SITE[site](), line_data()[0]

    expected = train(make, "eager")
    with pytest.warns(EngineWarning, match=site):
        found = train(make, "compiled")
    assert found[0].engine == "eager"
    assert same(expected[1], found[1])


def test_batch_normalization_is_trained_eagerly():
    def make():
        return methods(tutorial(batch_norm=True)), patterns(40)

    expected = train(make, "eager")
    with pytest.warns(EngineWarning, match="running statistics"):
        found = train(make, "compiled")
    assert same(expected[1], found[1])


def test_auto_falls_back_without_a_warning(monkeypatch):
    monkeypatch.setattr(choice, "STEPS_TO_REPAY", 1)
    expected = train(make_odd("item"), "eager")
    found = train(make_odd("item"), "auto")  # warnings are errors
    assert found[0].engine == "eager"
    assert found[0].engine_reason.startswith("not compiled, since 'item' hands values")
    assert same(expected[1], found[1])


@pytest.mark.parametrize("asked", ["compiled", "auto"])
def test_a_compiler_that_fails_is_said(asked, compiler, monkeypatch):
    def fails(*args, **kwargs):
        raise RuntimeError("no g++ here\nand many lines more")

    monkeypatch.setattr(torch._inductor, "compile", fails)
    monkeypatch.setattr(choice, "STEPS_TO_REPAY", 1)
    make = RESUMED["pyro.module"]
    expected = train(make, "eager")
    told = pytest.warns(EngineWarning) if asked == "compiled" else contextlib.nullcontext([])
    with told as warned:
        found = train(make, asked)
    assert len(warned) == (asked == "compiled")
    assert found[0].engine == "eager"
    reason = "not compiled, since compiling failed (torch's inductor: no g++ here)"
    assert found[0].engine_reason == reason
    assert same(expected[1], found[1])


NO_COMPILER = """
import torch, warnings
from small_pairs import Tutorial, fit, patterns

torch.manual_seed(0)
vae = Tutorial()
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    result = fit(vae.model, vae.guide, patterns(), batch_size=16, engine="compiled")
print(result.engine, len(told), result.engine_reason)
"""


@pytest.mark.slow
def test_a_machine_without_a_compiler(tmp_path, pytestconfig):
    root = pytestconfig.rootpath
    environment = {
        **os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}", "CXX": str(tmp_path / "none"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", NO_COMPILER], env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    engine, warned, reason = done.stdout.strip().split(" ", 2)
    assert (engine, warned) == ("eager", "1")
    assert reason.startswith("not compiled, since compiling failed (torch's inductor: ")
    assert "\n" not in reason


# What changes during training --------------------------------------------------------------------


class Changing(Tutorial):
    """Reads numbers and modes that a callback may change."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.register_buffer("temperature", torch.tensor(1.0))
        self.scale, self.noisy = 1.0, False

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            logits = self.drop(self.decoder(z)) * self.temperature * self.scale
            if self.noisy:
                logits = logits * (1 + 0 * logits.mean().item())
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def changing(change, engine, **settings):
    """Trained with a callback that gets hold of the VAE."""
    vae = []

    def make():
        torch.manual_seed(0)
        vae.append(Changing())
        return methods(vae[-1]), patterns(40)

    return train(make, engine, callback=lambda row: change(vae[-1], row), **{**BUSY, **settings})


def mode(vae, row):
    vae.drop.train(row["epoch"] % 2 == 0)


def freeze(vae, row):
    vae.decoder.requires_grad_(row["epoch"] != 2)


def attribute(vae, row):
    if row["epoch"] == 2:
        vae.scale = 0.5


def replaced(vae, row):
    if row["epoch"] == 2:
        vae.temperature = torch.full_like(vae.temperature, 0.5)


def in_place(vae, row):
    vae.temperature.mul_(0.5)


CHANGES = {  # how often each shape is recorded, at the most
    mode: 2, freeze: 2, attribute: 2, replaced: 2, in_place: 1
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_a_callback_changes_is_noticed(change, engines):
    expected = changing(change, "eager")
    found = changing(change, "compiled")
    follows(expected, found)
    assert found[0].engine_reason == "as asked"
    assert engines[0].recordings == 2 * CHANGES[change]
    untouched = changing(lambda vae, row: None, "eager")
    assert apart(untouched[1], expected[1]) > 1e-4


def test_a_frozen_layer_of_a_pyro_module_stays_frozen(engines):
    """Looking whether the recording still holds registers nothing anew, which would unfreeze."""
    results = {}
    for engine in ("eager", "compiled"):
        made = []

        def make(made=made):
            pair, data = PAIRS["pyro modules"]()
            made.append(pair)
            return pair, data

        kept = []

        def callback(row, made=made, kept=kept):
            linear = made[-1][1].linear
            if row["epoch"] >= 2:
                if row["epoch"] == 2:
                    linear.requires_grad_(False)
                assert not linear.weight.requires_grad
                kept.append(linear.weight.detach().clone())

        results[engine] = train(make, engine, callback=callback, **{**BUSY, "epochs": 6})
        assert all(torch.equal(w, kept[0]) for w in kept)
    follows(results["eager"], results["compiled"])
    assert results["compiled"][0].engine_reason == "as asked"


def ridge(held):
    """A factor outside the plate, whose weight in the loss is 1/N."""

    def model(x, y):
        line_model(x, y)
        pyro.factor("ridge", -held["lam"] * (1 + pyro.param("slope") ** 2))

    return model, line_guide


def test_a_small_term_that_a_callback_changes_is_noticed(engines):
    x, y = line_data(2000)
    data = (x.repeat(30), y.repeat(30))  # 60,000
    held = {}

    def change(row):
        held["lam"] = 1.0 + 0.1 * row["epoch"]

    settings = {"batch_size": 30_000, "epochs": 3, "callback": change}

    def make():
        held["lam"] = 1.0
        return ridge(held), data

    expected, found = (train(make, engine, **settings) for engine in ("eager", "compiled"))
    follows(expected, found)
    assert engines[0].recordings == 3


@pytest.mark.parametrize(("first", "recordings"), [(16, 2), (10**9, 1)])
def test_numbers_that_the_pair_itself_changes_are_found(first, recordings, engines, monkeypatch):
    """By a transform, which runs each step without any callback: when steps have doubled."""
    monkeypatch.setattr("inference.training.FIRST_CHECK", first)
    vae, calls = Changing(), itertools.count()

    def transform(x):
        vae.scale = 0.5 if next(calls) > 25 else 1.0
        return x

    make = lambda: (methods(vae), patterns(40))  # noqa: E731
    train(make, "compiled", batch_transform=transform, epochs=20, batch_size=20)
    assert next(calls) > 40
    assert engines[0].recordings == recordings


def test_comparing_on_the_way_changes_nothing(monkeypatch):
    """Neither weights nor random states."""
    found = []
    for first in (2, 10**9):
        monkeypatch.setattr("inference.training.FIRST_CHECK", first)
        found.append(train(RESUMED["pyro.module"], "compiled", **{**BUSY, "epochs": 8}))
    assert same(found[0][1], found[1][1])
    assert untimed(found[0][0].history) == untimed(found[1][0].history)


def tied():
    """One decoder under two names, and one weight in two modules."""
    vae, other = tutorial(), nn.Linear(2, 8)
    other.weight = vae.decoder[0].weight

    def model(x):
        pyro.module("again", vae.decoder)
        pyro.module("other", other)
        pyro.module("decoder", vae.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            logits = vae.decoder(z) + 0.1 * other(z).mean(-1, keepdim=True)
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    return (model, vae.guide), patterns(40)


@pytest.mark.slow
def test_tied_weights_are_one_parameter(compiler):
    """Gradient norm and optimizer count them once; machine code writes them once."""
    compiles(tied, compiler, batch_size=20)


@pytest.mark.parametrize(
    "order",
    each(2, [("eager", "compiled"), ("eager", "eager"), ("compiled", "compiled")]),
)
def test_tied_weights_are_resumed(order, tmp_path, monkeypatch):
    straight = train(tied, order[1], **BUSY)
    resumed = stopped_and_resumed(tied, order, 7, tmp_path, monkeypatch, **BUSY)
    follows(straight, resumed)
    if order[0] == order[1]:
        assert same(straight[1], resumed[1])


def test_without_the_check_a_changed_number_would_be_missed(monkeypatch):
    monkeypatch.setattr(Compiled, "doubt", lambda self: None)
    expected, found = (changing(attribute, engine) for engine in ("eager", "compiled"))
    with pytest.raises(AssertionError):
        follows(expected, found)


def test_a_number_changed_each_epoch_is_not_compiled_forever(engines):
    def anneal(vae, row):
        vae.scale = 1 / (1 + row["epoch"])

    expected = changing(anneal, "eager", epochs=12)
    with pytest.warns(EngineWarning, match="eagerly from here: 8 were compiled") as told:
        found = changing(anneal, "compiled", epochs=12)
    assert len(told) == 1
    follows(expected, found)
    assert engines[0].recordings == 8
    assert found[0].engine_reason.count("eagerly from here") == 1


def test_a_pair_that_can_no_longer_be_recorded_goes_on_eagerly():
    def spoil(vae, row):
        vae.noisy = row["epoch"] >= 2
        vae.scale = 1 - 0.1 * vae.noisy

    expected = changing(spoil, "eager")
    with pytest.warns(EngineWarning, match=r"eager ones, since 'item' hands .* at line") as told:
        found = changing(spoil, "compiled")
    assert len(told) == 2
    follows(expected, found)
    assert found[0].engine == "compiled"
    assert "'item'" in found[0].engine_reason


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_replaced_parameter_is_refused_by_name(engine, params):
    def swap(vae, row):
        if row["epoch"] == 2:
            vae.decoder[2].weight = nn.Parameter(vae.decoder[2].weight.detach().clone())

    with pytest.raises(PairError, match=r"parameter 'decoder\$\$\$2.weight' was replaced"):
        changing(swap, engine)

    def drop(vae, row):
        del vae.decoder[0]._parameters["bias"]
        vae.decoder[0].bias = None

    with pytest.raises(PairError, match=r"'decoder\$\$\$0.bias' was replaced by another tensor"):
        changing(drop, engine)

    def turn(vae, row):
        vae.encoder[2].weight.data = vae.encoder[2].weight.data.T.contiguous().T

    with pytest.raises(
        PairError, match=r"'encoder\$\$\$2.weight' was given another shape, dtype or"
    ):
        changing(turn, engine)

    def widen(vae, row):
        bias = vae.encoder[2].bias
        bias.data = torch.zeros(len(bias) + 1)

    with pytest.raises(PairError, match=r"'encoder\$\$\$2.bias' was given another shape, dtype or"):
        changing(widen, engine)

    def store(row):
        pyro.get_param_store()["slope"] = torch.tensor(1.0)

    with pytest.raises(PairError, match="parameter 'slope' was replaced") as told:
        fit(line_model, line_guide, line_data(), engine=engine, callback=store)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_a_callback_may_look_at_the_pair(engine):
    """Evidence and bounds run in stores of their own; values may be set in place."""
    seen = []

    def look(vae, row):
        x = patterns(9)
        seen.append(inference.bound(vae.model, vae.guide, x, num_samples=3).elbo)
        with torch.no_grad():
            vae.decoder[2].bias.zero_()

    result, _ = changing(look, engine)
    assert result.engine == engine
    assert len(set(seen)) == 4


# What is not finite ------------------------------------------------------------------------------


def breaks_at(step, value=math.nan):
    """Data whose batch number `step` (looks do not count) is not finite."""
    calls = itertools.count(1)

    def transform(x):
        if torch.is_grad_enabled() and transform.started and next(calls) == step:
            return x * value
        return x

    transform.started = False
    return transform


def broken(engine, step, tmp_path, read_every=None, **settings):
    """Train until it breaks: message, weights then, checkpoint's step."""
    vae, transform = tutorial(), breaks_at(step)
    training = inference.fit.__globals__["Training"]
    real = training.step

    def start(*args):
        transform.started = True
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "step", start)
        if read_every is not None:
            patch.setattr(Compiled, "read_every", read_every)
        with pytest.raises(NonFiniteError) as told:
            fit(
                vae.model, vae.guide, patterns(50), batch_size=16, engine=engine, epochs=9,
                batch_transform=transform, checkpoint=tmp_path, learning_rate=0.01,
                checkpoint_seconds=0 if read_every is None else 1e9, **settings,
            )  # fmt: skip
    return str(told.value).replace(str(tmp_path), "FOLDER"), weights_of(*methods(vae))


@pytest.mark.parametrize("step", [1, 2, 4, 5, 11])
def test_a_loss_that_is_not_finite_stops_the_compiled_engine_as_the_eager_one(step, tmp_path):
    """First step, ragged batch and others: the same sentence, and the weights before it."""
    expected, weights = broken("eager", step, tmp_path / "eager")
    message, found = broken("compiled", step, tmp_path / "compiled")
    assert message == expected
    assert message.startswith(f"step {step} (epoch {(step - 1) // 4 + 1}): ")
    # Pyro's validation words the first one.
    assert ("Expected parameter loc" if step == 1 else ": the loss is nan; site '") in message
    assert apart(weights, found) < 1e-5
    assert load_checkpoint(tmp_path / "compiled").progress["step"] == step - 1


@pytest.mark.parametrize(
    ("step", "read_every"),
    each(2, [(2, 5), (4, 5), (14, 5), (5, 5), (4, 1000), (11, 1000)], unpack=True),
)
def test_no_step_after_a_bad_one_touches_a_weight(step, read_every, tmp_path, monkeypatch):
    """Read every so many steps: what comes after the bad step changes nothing, nor its number."""
    runs, real = [], Compiled._run
    monkeypatch.setattr(Compiled, "_run", lambda self, *a: (runs.append(1), real(self, *a))[1])
    expected, weights = broken("eager", step, tmp_path / "eager")
    message, found = broken("compiled", step, tmp_path / "compiled", read_every=read_every)
    assert message == expected
    assert apart(weights, found) < 1e-5
    # The first step is an eager one; the sums are read at an epoch's end, too.
    assert 1 + len(runs) == min(-(-step // read_every) * read_every, -(-step // 4) * 4)


def test_without_the_freeze_weights_would_be_lost(monkeypatch):
    """Every step taken for a good one: what the tests above see is the doing of the graph."""
    real = compiled.record_step

    def blind(*args):
        with monkeypatch.context() as patch:
            patch.setattr(
                "inference.engines.recording.torch.isfinite",
                lambda x: torch.ones_like(x, dtype=torch.bool),
            )
            return real(*args)

    monkeypatch.setattr(compiled, "record_step", blind)
    vae, transform = tutorial(), breaks_at(5)
    training = inference.fit.__globals__["Training"]
    step = training.step

    def start(*args):
        transform.started = True
        return step(*args)

    monkeypatch.setattr(training, "step", start)
    fit(
        vae.model, vae.guide, patterns(), batch_size=16, engine="compiled", epochs=4,
        batch_transform=transform,
    )  # fmt: skip
    assert not all(v.isfinite().all() for v in vae.state_dict().values())


class Steep(Tutorial):
    """A gradient that is infinite, or too large for the norm of all, from some step on."""

    def __init__(self, way):
        super().__init__()
        self.way, self.factor, self.floor = way, torch.tensor(0.0), torch.tensor(1.0)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            bias = self.decoder[2].bias
            off = (bias - bias.detach()) * self.factor  # 0, as is its slope at first
            if self.way == "infinite":
                off = (off + self.floor).sqrt().sum() * self.factor
            logits = self.decoder(z) + off
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)


@pytest.mark.parametrize("engine", ["eager", "compiled"])
@pytest.mark.parametrize("way", ["infinite", "large"])
def test_gradients_that_are_not_finite_name_their_parameter(way, engine):
    torch.manual_seed(0)
    vae = Steep(way)
    kept = {}

    def spoil(row):
        if row["epoch"] == 2:
            vae.factor.fill_(1.0 if way == "infinite" else 1e30)
            vae.floor.fill_(0.0)
            kept.update({n: v.clone() for n, v in vae.state_dict().items()})

    with pytest.raises(NonFiniteError) as told:
        fit(vae.model, vae.guide, patterns(), batch_size=16, engine=engine, callback=spoil)
    message = str(told.value)
    assert message.startswith("step 9 (epoch 3): the ")
    if way == "infinite":
        assert r"gradient of parameter 'decoder$$$2.bias' is not finite" in message
    assert "is not finite" in message
    assert same(kept, vae.state_dict())


def test_a_norm_that_overflows_is_said(params):
    """Each gradient's norm is finite, that of all is not: training does not just stand still."""

    def model(x):
        a, b = (pyro.param(name, torch.tensor(0.0)) for name in "ab")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
            pyro.factor("steep", (a + b) * torch.full((len(x),), 3e38) * size)

    size = torch.tensor(1e-30)

    def spoil(row):
        size.fill_(1.0)

    def guide(x):
        pass

    messages = []
    for engine in ("eager", "compiled"):
        size.fill_(1e-38)
        pyro.clear_param_store()
        with pytest.raises(NonFiniteError) as told:
            fit(
                model, guide, torch.randn(40), batch_size=40, engine=engine, callback=spoil,
                optimizer="sgd", learning_rate=1e-30,
            )  # fmt: skip
        messages.append(str(told.value))
    assert messages[0] == messages[1]
    assert messages[0].startswith("step 2 (epoch 2): the norm of all gradients is not finite. ")


# The choice --------------------------------------------------------------------------------------


def test_auto_does_not_compile_for_a_short_training(compiler):
    vae, x = tutorial(), patterns()
    result = fit(vae.model, vae.guide, x, epochs=2, batch_size=16, engine="auto")
    assert result.engine == "eager"
    assert result.engine_reason == "8 steps do not repay compiling (from 10000 steps on)"
    assert not compiler


def test_auto_compiles_for_a_long_training(monkeypatch):
    monkeypatch.setattr(choice, "STEPS_TO_REPAY", 12)
    make = RESUMED["pyro.module"]
    expected = train(make, "eager", epochs=4)
    found = train(make, "auto", epochs=4)
    assert found[0].engine == "compiled"
    assert found[0].engine_reason == "12 steps repay compiling"
    follows(expected, found)
    assert train(make, "auto", epochs=3)[0].engine == "eager"


def test_a_cuda_graph_needs_a_gpu():
    vae = tutorial()
    with pytest.raises(RequestError, match=r"engine: 'cuda_graph' runs on an NVIDIA GPU, but") as e:
        fit(vae.model, vae.guide, patterns(), engine="cuda_graph", device="cpu")
    assert "use 'compiled', or 'auto'" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("engine", ["eager", "compiled", "auto"])
def test_what_is_printed(engine, capfd, monkeypatch):
    vae, x = tutorial(), patterns()
    monkeypatch.setenv("COLUMNS", "200")
    fit(vae.model, vae.guide, x, engine=engine, progress=False)
    assert capfd.readouterr() == ("", "")
    fit(vae.model, vae.guide, x, engine=engine, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    told = [line for line in err.splitlines() if "engine:" in line]
    assert len(told) == (engine == "auto")
    if told:
        assert "engine: eager (21 steps do not repay compiling" in told[0]


# CUDA graphs -------------------------------------------------------------------------------------


@pytest.fixture
def launches(monkeypatch):
    """The CUDA-graph engine on the CPU: a launch runs the captured function again.

    All but the capture itself is real: static inputs, gathering of rows, addresses, what warming up
    changes and what is put back. Counts captures and launches.
    """
    counts = {"captures": 0, "launches": 0}

    def captured_run(run, device):
        counts["captures"] += 1
        for _ in range(3):
            run()

        def launch():
            counts["launches"] += 1
            run()

        return launch

    monkeypatch.setattr(cuda_graph, "captured_run", captured_run)
    monkeypatch.setattr(choice, "Compiled", cuda_graph.CudaGraph)
    monkeypatch.setattr(choice, "STEPS_TO_REPAY", 1)
    return counts


@pytest.mark.parametrize("transform", [None, lambda x: x * 1.0], ids=["rows", "batches"])
@pytest.mark.parametrize("name", each(2, ["pyro.module", "plain params", "subsampling", "vamp"]))
def test_launched_steps_give_the_eager_trajectory(name, transform, launches):
    """Rows gathered in the graph, or batches handed in; warm-up and schedule as data."""
    settings = {**BUSY, **pair_settings(name), "epochs": 8, "optimizer": "nadam"}
    settings["batch_transform"] = transform
    expected, found = (train(RESUMED[name], engine, **settings) for engine in ("eager", "auto"))
    assert found[0].engine == "cuda_graph"
    follows(expected, found)
    shapes = 1 if name == "subsampling" else 2
    assert launches == {"captures": shapes, "launches": found[0].steps - 1}


def test_launched_training_resumes_exactly(launches, tmp_path, monkeypatch):
    settings, engines = {**BUSY, "batch_size": 16}, ("auto", "auto")
    make = RESUMED["pyro.module"]
    straight, weights = train(make, "auto", **settings)
    resumed, again = stopped_and_resumed(make, engines, 7, tmp_path, monkeypatch, **settings)
    assert straight.engine == resumed.engine == "cuda_graph"
    assert same(weights, again)
    assert untimed(straight.history) == untimed(resumed.history)


@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
@pytest.mark.parametrize("change", each(2, CHANGES), ids=lambda c: c.__name__)
def test_what_a_callback_changes_is_launched_anew(change, launches):
    expected, found = changing(change, "eager"), changing(change, "auto")
    assert found[0].engine == "cuda_graph"
    follows(expected, found)
    assert launches["captures"] <= 8


@pytest.mark.parametrize("step", [2, 5, 11])
def test_a_bad_launch_is_named_though_it_is_read_later(step, launches, tmp_path, monkeypatch):
    expected, weights = broken("eager", step, tmp_path / "eager")
    message, found = broken("auto", step, tmp_path / "graph", read_every=50)
    assert message == expected
    assert apart(weights, found) < 1e-5


def test_a_tensor_that_moved_is_captured_anew(launches):
    """The graph holds addresses: a parameter whose data were swapped would be stale."""

    def move(vae, row):
        vae.decoder[2].weight.data = vae.decoder[2].weight.data.clone()

    expected, found = changing(move, "eager"), changing(move, "auto")
    follows(expected, found)
    assert launches["captures"] == 2 * BUSY["epochs"]


def test_a_tensor_of_the_pair_that_moved_is_captured_anew(launches):
    def move(vae, row):
        vae.temperature.data = vae.temperature.data.clone() * 0.5

    expected, found = changing(move, "eager"), changing(move, "auto")
    follows(expected, found)
    assert launches["captures"] == 2 * BUSY["epochs"]


@pytest.mark.parametrize("handed_in", [False, True])
def test_after_a_capture_that_fails_steps_are_compiled_ones(handed_in, launches, monkeypatch):
    """The training goes on as it was before the attempt."""
    vae = tutorial()
    kept = []

    def fails(run, device):
        kept.append({n: v.clone() for n, v in vae.state_dict().items()})
        kept.append(torch.get_rng_state())
        run()
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(cuda_graph, "captured_run", fails)
    expected = train(RESUMED["pyro.module"], "eager", **BUSY)
    transform = {"batch_transform": lambda x: x * 1.0} if handed_in else {}
    with pytest.warns(EngineWarning, match="steps are run as by 'compiled', since capt") as told:
        found = train(lambda: (methods(vae), patterns(40)), "auto", **BUSY, **transform)
    assert len(told) == 1
    assert len(kept) == 2  # never tried again
    assert found[0].engine == "cuda_graph"
    assert found[0].engine_reason.endswith("capturing one failed (operation not permitted)")
    follows(expected, found)


def recorded(function, *inputs):
    return inference.capture.capture(function, inputs)


def test_what_a_launched_graph_would_not_repeat_is_found():
    """On `meta` as the device: draws and copies made on the CPU, tensors kept there."""
    device, x = torch.device("meta"), torch.zeros(3, device="meta")
    outside = torch.tensor(2.0)
    found = {
        "scalar": lambda x: x * torch.tensor(0.5) + torch.tensor(2.0).log(),
        "draw": lambda x: x + torch.randn(()),
        "rows": lambda x: x + torch.tensor([0.5, 1.0, 2.0]).to("meta"),
        "copy": lambda x: x + torch.tensor(0.5).to("meta"),
        "kept": lambda x: x * outside,
    }
    said = {
        name: cuda_graph.off_device(recorded(function, x), device)
        for name, function in found.items()
    }
    assert said["scalar"] is None
    assert said["draw"] == "'randn'"
    assert said["kept"] == "the pair"
    assert said["rows"]
    assert said["copy"]


def test_a_parameter_away_from_the_data_is_not_recorded(params):
    """As a plain `pyro.param` of a training on a GPU: here on `meta`."""
    traced = inference.trace(line_model, line_guide, *line_data())
    batch = tuple(a.to("meta") for a in line_data())
    with pytest.raises(inference.Untraceable, match=r"parameter '\w+' is not on meta, where the"):
        compiled.record_step(traced, inference.SingleOptimizer(), batch, 40)


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@needs_cuda
@pytest.mark.parametrize("engine", ["compiled", "cuda_graph"])
@pytest.mark.parametrize("transform", [None, lambda x: x * 1.0])
def test_gpu_engines_give_the_eager_trajectory(engine, transform, compiler):
    """With data gathered on the device (no transform) and handed in; a ragged batch; clipping."""
    settings = {**BUSY, "device": "cuda", "batch_transform": transform, "epochs": 6}
    make = RESUMED["pyro.module"]
    expected, found = (train(make, e, **settings) for e in ("eager", engine))
    assert found[0].engine == engine
    follows(expected, found, 1e-4)


@needs_cuda
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop", "nadam"])
def test_gpu_optimizers_count_their_steps_on_the_device(optimizer, compiler):
    settings = {"optimizer": optimizer, "device": "cuda", "epochs": 6, "learning_rate": 0.01}
    make = RESUMED["pyro.module"]
    expected, found = (train(make, e, **settings) for e in ("eager", "cuda_graph"))
    assert found[0].engine == "cuda_graph"
    follows(expected, found, 1e-4)


@needs_cuda
def test_an_optimizer_that_counts_on_the_cpu_is_not_captured(compiler):
    with pytest.warns(EngineWarning, match="keeps a part of its state away from cuda"):
        result, _ = train(RESUMED["pyro.module"], "cuda_graph", device="cuda", optimizer="adagrad")
    assert result.engine == "eager"


@needs_cuda
@pytest.mark.parametrize("engine", ["eager", "compiled", "cuda_graph"])
def test_gpu_training_resumes_exactly(engine, compiler, tmp_path, monkeypatch):
    make, settings = RESUMED["pyro.module"], {**BUSY, "device": "cuda"}
    straight, weights = train(make, engine, **settings)
    resumed, again = stopped_and_resumed(
        make, (engine, engine), 7, tmp_path, monkeypatch, **settings
    )
    assert same(weights, again)
    assert untimed(straight.history) == untimed(resumed.history)


@needs_cuda
def test_every_replay_draws_fresh_noise(compiler):
    frozen = {"optimizer": "sgd", "learning_rate": 1e-30, "batch_size": 40, "epochs": 6}
    result, _ = train(RESUMED["pyro.module"], "cuda_graph", device="cuda", **frozen)
    assert result.engine == "cuda_graph"
    assert len({row["train_bound"] for row in result.history}) == 6


@needs_cuda
def test_no_step_waits_for_the_device(compiler, monkeypatch):
    """Between two readings of the sums, once all is captured."""
    training = inference.fit.__globals__["Training"]
    real, calls, quiet = training.step, itertools.count(1), []

    def watched(self, state, order):
        number = next(calls)
        # Each shape has been captured, and no reading falls due at the end of this step.
        if number > 12 and number % self.engine.read_every:
            before = torch.cuda.get_sync_debug_mode()
            torch.cuda.set_sync_debug_mode("error")
            try:
                real(self, state, order)
            finally:
                torch.cuda.set_sync_debug_mode(before)
            quiet.append(number)
            return
        real(self, state, order)

    monkeypatch.setattr(training, "step", watched)
    result, _ = train(RESUMED["pyro.module"], "cuda_graph", device="cuda", epochs=12)
    assert result.engine == "cuda_graph"
    assert len(quiet) > 20


@needs_cuda
def test_a_bad_step_is_named_though_it_is_read_later(compiler, tmp_path):
    expected, weights = broken("eager", 6, tmp_path / "eager", device="cuda")
    message, found = broken("cuda_graph", 6, tmp_path / "graph", device="cuda")
    assert message == expected
    assert apart(weights, found) < 1e-4


@needs_cuda
@pytest.mark.filterwarnings("ignore:.*was not registered in the param store:UserWarning")
@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
def test_what_a_callback_changes_is_captured_anew(change, compiler):
    expected, found = (
        changing(change, engine, device="cuda") for engine in ("eager", "cuda_graph")
    )
    follows(expected, found, 1e-4)
