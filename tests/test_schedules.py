"""Learning-rate schedules and early stopping: each by its formula."""

import math
from itertools import pairwise

import pyro
import pytest
import torch
from pydantic import ValidationError
from small_pairs import fit, line_data, line_guide, line_model

import inference
from inference.stopping import Stopping

STEPS_PER_EPOCH, TOTAL = 7, 70


@pytest.fixture
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def factors(schedule):
    return [schedule.factor(step, STEPS_PER_EPOCH, TOTAL) for step in range(TOTAL)]


def test_constant():
    assert factors(inference.Constant()) == [1.0] * TOTAL


@pytest.mark.parametrize("final", [0.0, 0.01, 1.0])
def test_cosine_is_half_a_cosine(final):
    expected = [
        final + (1 - final) * 0.5 * (1 + math.cos(math.pi * t / TOTAL)) for t in range(TOTAL)
    ]
    got = factors(inference.Cosine(final_fraction=final))
    assert got == pytest.approx(expected, abs=1e-12)
    assert got[0] == 1
    assert all(a >= b for a, b in pairwise(got))


def test_cosine_agrees_with_torch():
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL, eta_min=0.05)
    for step in range(TOTAL):
        ours = inference.Cosine(final_fraction=0.05).factor(step, STEPS_PER_EPOCH, TOTAL)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_exponential_is_continuous_in_epochs():
    got = factors(inference.Exponential(decay_per_epoch=0.9))
    assert got == pytest.approx([0.9 ** (t / STEPS_PER_EPOCH) for t in range(TOTAL)], rel=1e-12)
    assert got[3 * STEPS_PER_EPOCH] == pytest.approx(0.9**3)


def test_step_falls_at_the_start_of_each_milestone_epoch():
    got = factors(inference.Step(milestones=(2, 5), gamma=0.1))
    epochs = [1 + t // STEPS_PER_EPOCH for t in range(TOTAL)]
    expected = [1.0 if e < 2 else 0.1 if e < 5 else 0.01 for e in epochs]
    assert got == pytest.approx(expected, rel=1e-12)


def test_only_cosine_looks_at_the_last_step():
    depends = {name for name, cls in inference.SCHEDULES.items() if cls.depends_on_total}
    assert depends == {"cosine"}
    for name, cls in inference.SCHEDULES.items():
        changes = cls().factor(5, STEPS_PER_EPOCH, TOTAL) != cls().factor(5, STEPS_PER_EPOCH, 99)
        assert changes == (name in depends)


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (inference.Cosine, {"final_fraction": 1.5}),
        (inference.Exponential, {"decay_per_epoch": 0}),
        (inference.Step, {"milestones": (0,)}),
        (inference.Step, {"gamma": -1}),
        (inference.Constant, {"rate": 1}),
    ],
)
def test_bad_fields_are_refused(cls, fields):
    with pytest.raises(ValidationError):
        cls(**fields)


def test_the_learning_rate_of_each_epoch_is_in_the_history(params):
    schedule = inference.Step(milestones=(2, 3), gamma=0.5)
    rows = fit(line_model, line_guide, line_data(), learning_rate=0.08, schedule=schedule).history
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.08, 0.04, 0.02])


def test_a_schedule_changes_the_updates_themselves(params):
    """With plain SGD of lr 1e-3 and factor f, the only update is f * 1e-3 * gradient."""
    moves = {}
    for gamma in (1.0, 0.5):
        params.clear()
        schedule = inference.Step(milestones=(1,), gamma=gamma)
        settings = {"epochs": 1, "batch_size": 40, "optimizer": "sgd", "schedule": schedule}
        fit(line_model, line_guide, line_data(), **settings)
        moves[gamma] = params["slope"].item()
    assert moves[0.5] == pytest.approx(0.5 * moves[1.0], rel=1e-5)
    assert moves[1.0] != 0


# Early stopping ------------------------------------------------------------------------------


def watch(bounds, warm_epochs=0):
    stopping = Stopping()
    for epoch, bound in enumerate(bounds, 1):
        stopping = stopping.see(bound, epoch, warming=epoch <= warm_epochs)
    return stopping


def test_stopping_keeps_the_best_and_counts_from_it():
    assert watch([-5.0, -3.0, -4.0, -3.0]) == Stopping(best=-3.0, best_epoch=2, waited=2)


def test_patience_does_not_run_during_warm_up():
    bounds = [-3.0, -4.0, -5.0, -6.0, -7.0]
    assert watch(bounds, warm_epochs=3) == Stopping(best=-3.0, best_epoch=1, waited=2)
    assert watch(bounds).waited == 4


def test_a_bound_that_is_not_a_number_is_never_the_best():
    assert watch([-3.0, math.nan]) == Stopping(best=-3.0, best_epoch=1, waited=1)
    assert watch([math.nan, -9.0]) == Stopping(best=-9.0, best_epoch=2, waited=0)
