"""Gradients of every objective against exact ones: quadrature, enumeration; wrong twins fail.

Statistical tests compare means of 80,000 estimates with the exact gradient, at 5 standard errors
each (of 40 means). About 200 numbers are compared, with fixed seeds: of other seeds, one in some
hundreds would raise a false alarm.
"""

import json
import math
from itertools import pairwise
from pathlib import Path

import pyro
import pytest
import torch
from gradient_pairs import (
    GUIDE,
    START,
    X,
    bound,
    coin_gradients,
    coin_tuples,
    errors,
    estimates,
    exact_gradients,
    programs,
    start,
)
from pyro import poutine

import inference
from inference.objectives.weights import (
    log_mean,
    log_weight,
    stopped_log_weight,
    with_gradient_of,
)
from inference.stopped import FixedDraws, HeldStill

STANDARD_ERRORS = 5
ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("kind", ["one", "two", "vamp", "auxiliary"])
def test_quadrature_has_converged(kind):
    value = bound(inference.IWAE(num_particles=2))
    nodes = 40 if kind in ("one", "vamp") else 12
    fine, coarse = (exact_gradients(kind, value, nodes=n) for n in (nodes + 4, nodes))
    for name in fine:
        # A standard error of the estimates below is about 2e-3.
        torch.testing.assert_close(fine[name], coarse[name], rtol=0, atol=1e-4)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("one", inference.ELBO(num_particles=2)),
        ("one", inference.ELBO(num_particles=2, kl="analytic")),
        ("two", inference.ELBO(num_particles=2, kl="analytic")),
        ("one", inference.STL(num_particles=2)),
        ("two", inference.STL(num_particles=2)),
        ("vamp", inference.STL(num_particles=2)),
        ("one", inference.IWAE(num_particles=2)),
        ("two", inference.IWAE(num_particles=2)),
        ("one", inference.Renyi(num_particles=2, alpha=0.5)),
        ("one", inference.Renyi(num_particles=2, alpha=-1.0)),
        ("one", inference.DReG(num_particles=2)),
        ("two", inference.DReG(num_particles=2)),
        ("vamp", inference.DReG(num_particles=2)),
        ("auxiliary", inference.IWAE(num_particles=2)),
        ("auxiliary", inference.STL(num_particles=2)),
        ("auxiliary", inference.DReG(num_particles=2)),
    ],
    ids=str,
)
def test_estimators_are_unbiased(kind, objective, vectorize):
    if kind == "two" and getattr(objective, "kl", "sampled") == "analytic":
        # The model draws z2 before z1, the guide after: no level has a KL given the others.
        with pytest.raises(inference.PairError, match=r"site 'z\d': no closed form"):
            estimates(kind, objective, repeats=1, rows=4)
        return
    found = estimates(kind, objective, vectorize=vectorize)
    exact = exact_gradients(kind, bound(objective))
    off = errors(found, exact)
    assert max(off.values()) < STANDARD_ERRORS, off
    for name, grads in found.items():  # not vague: some per cent of the gradient
        error = grads.std(0) / math.sqrt(len(grads))
        assert float(error.max()) < 0.02, name


class OneFactor(inference.DReG):
    """Wrong: the guide's paths weighed by w~, not by w~^2."""

    def value(self, record, rows, beta):
        log_w = stopped_log_weight(record, self.name)
        weight = log_w.detach().softmax(0)
        return rows.mean((weight * log_w).sum(0))


class SquaredAll(inference.DReG):
    """Wrong: w~^2 for all of log w, parameters in p among it."""

    def value(self, record, rows, beta):
        log_w = stopped_log_weight(record, self.name)
        weight = log_w.detach().softmax(0).square()
        return rows.mean((weight * log_w).sum(0))


class ScoreKept(inference.DReG):
    """Wrong: w~^2 with the guide's parameters not held still."""

    def value(self, record, rows, beta):
        log_w = log_weight(record, self.name)
        weight = log_w.detach().softmax(0)
        record.scale_taps(weight)
        return rows.mean((weight * log_w).sum(0))


@pytest.mark.parametrize(
    ("kind", "twin", "wrong", "right"),
    [
        ("one", OneFactor, {"m", "c", "s"}, {"w", "b"}),
        ("one", ScoreKept, {"s"}, {"w", "b"}),
        ("vamp", SquaredAll, {"u", "w", "b"}, set()),
        ("one", SquaredAll, {"w", "b"}, {"m", "c", "s"}),
    ],
)
def test_wrong_twins_are_caught(kind, twin, wrong, right):
    objective = twin(num_particles=2)
    off = errors(estimates(kind, objective), exact_gradients(kind, bound(objective)))
    assert min(off[name] for name in wrong) > STANDARD_ERRORS, off
    assert all(off[name] < STANDARD_ERRORS for name in right), off


def exact_posterior(kind):
    """The parameters with the guide at p(z|x)."""
    at = dict(START[kind])
    if kind == "one":
        precision = 1 + at["w"] ** 2 / 0.49
        at["m"] = at["w"] / 0.49 / precision
        at["c"] = -at["w"] * at["b"] / 0.49 / precision
        at["s"] = -0.5 * math.log(precision)
        return at
    spread = at["u"] ** 2 + 0.64  # of z1
    precision = 1 / spread + at["w"] ** 2 / 0.49
    at["m"], at["s"] = at["w"] / 0.49 / precision, -0.5 * math.log(precision)
    precision = 1 + at["u"] ** 2 / 0.64
    at["a"], at["c"], at["t"] = at["u"] / 0.64 / precision, 0.0, -0.5 * math.log(precision)
    return at


@pytest.mark.parametrize("kind", ["one", "two"])
def test_stl_has_no_variance_where_the_guide_is_the_posterior(kind):
    """And the ELBO's own gradient has, with the same mean: 0."""
    values, settings = exact_posterior(kind), {"rows": 1, "repeats": 50}
    for objective, noisy in ((inference.STL(), False), (inference.ELBO(), True)):
        found = estimates(kind, objective, values=values, **settings)
        for name in GUIDE & found.keys():
            largest = float(found[name].abs().max())
            assert largest > 0.05 if noisy else largest < 1e-12, (objective.name, name, largest)
    # DReG's, too, vanishes there: log w is the same wherever z is.
    found = estimates(kind, inference.DReG(num_particles=3), values=values, **settings)
    assert all(float(found[name].abs().max()) < 1e-12 for name in GUIDE & found.keys())


def all_detached(guide, handed, arguments, reduce, factors):
    """Wrong: q(z2|z1) scored with all that it is made of detached, z1 among it."""
    with FixedDraws(), HeldStill(list(pyro.get_param_store()._params.values())):
        trace = poutine.trace(poutine.replay(guide, trace=handed)).get_trace(*arguments)
    return {
        name: reduce({**trace.nodes[name], "value": handed.nodes[name]["value"]}, latent=False)[0]
        for name in ("z1", "z2")
    }


def test_of_a_hierarchy_parameters_are_held_still_and_not_the_draws(monkeypatch):
    """All detached, DReG's mean is wrong. That of STL is right, but its noise does not vanish."""
    dreg = inference.DReG(num_particles=2)
    exact = exact_gradients("two", bound(dreg))
    assert max(errors(estimates("two", dreg), exact).values()) < STANDARD_ERRORS
    monkeypatch.setattr("inference.particles.rescored", all_detached)
    off = errors(estimates("two", dreg), exact)
    assert min(off["m"], off["s"]) > STANDARD_ERRORS, off
    assert max(off[name] for name in ("a", "c", "t", "w", "u")) < STANDARD_ERRORS, off
    values = exact_posterior("two")
    found = estimates("two", inference.STL(), values=values, rows=1, repeats=50)
    assert float(found["m"].abs().max()) > 0.05


# Without differentiated draws --------------------------------------------------------------------


def wake(p, q):
    """The gradients of reweighted wake-sleep, as the paper has them."""
    share = (p - q).detach().exp()
    share = share / share.sum(0)
    return (share * p).sum(0) + (share * q).sum(0)


def thermodynamic(points):
    """E_b[d log w] + E_b[log w d path] - E_b[log w] E_b[d path], by K reweighted draws."""

    def value(p, q):
        total = 0.0
        for low, high in pairwise(points):
            log_w = p - q
            share = (low * log_w.detach()).exp()
            share = share / share.sum(0)
            path = (1 - low) * q + low * p
            mean = (share * log_w.detach()).sum(0)
            covariance = (share * log_w.detach() * path).sum(0) - mean * (share * path).sum(0)
            total = total + (high - low) * ((share * log_w).sum(0) + covariance)
        return total

    return value


THERMODYNAMIC = inference.Thermodynamic(num_particles=3, partitions=3, first=0.1)
FIXED = [
    (inference.ReweightedWakeSleep(num_particles=3), wake),
    (THERMODYNAMIC, thermodynamic([0.0, 0.1, 0.1**0.5, 1.0])),
]


@pytest.mark.parametrize(("objective", "value"), FIXED, ids=["wake", "thermodynamic"])
@pytest.mark.parametrize("kind", ["coin", "coins"])
def test_with_discrete_draws_the_mean_is_that_of_all_tuples(kind, objective, value):
    exact = coin_gradients(kind, value, 3)
    off = errors(estimates(kind, objective), exact)
    assert max(off.values()) < STANDARD_ERRORS, off
    once = errors(estimates(kind, objective, vectorize=False, seed=1), exact)
    assert max(once.values()) < STANDARD_ERRORS, once


@pytest.mark.parametrize(("objective", "value"), FIXED, ids=["wake", "thermodynamic"])
@pytest.mark.parametrize("kind", ["one", "two", "vamp", "auxiliary"])
def test_continuous_draws_are_held_fixed(kind, objective, value):
    objective = objective.model_copy(update={"num_particles": 2})
    exact = exact_gradients(kind, value, fixed=True)
    off = errors(estimates(kind, objective), exact)
    assert max(off.values()) < STANDARD_ERRORS, off


class Paths(inference.ReweightedWakeSleep):
    """Wrong: the draws are differentiated."""

    scoring = "paths"


class Descending(inference.ReweightedWakeSleep):
    """Wrong: the guide moves along the gradient of the bound, away from where weights are high."""

    def value(self, record, rows, beta):
        log_w = log_weight(record, self.name)
        weight = log_w.detach().softmax(0)
        return with_gradient_of(rows.mean(log_mean(log_w)), rows.mean((weight * log_w).sum(0)))


@pytest.mark.parametrize("twin", [Paths, Descending])
def test_wrong_twins_of_wake_sleep_are_caught(twin):
    exact = exact_gradients("one", wake, fixed=True)
    off = errors(estimates("one", twin(num_particles=2)), exact)
    assert max(off[name] for name in ("m", "c", "s")) > STANDARD_ERRORS, off
    assert off["w"] < STANDARD_ERRORS


def test_their_bias_falls_with_the_number_of_draws():
    """Towards the gradients of log p(x), -KL(p(z|x) || q) and the path's Riemann sum."""
    p = start("coin")
    log_p, log_q, _ = coin_tuples("coin", p, 1)
    log_p, log_q = log_p[0], log_q[0]
    posterior = (log_p - log_p.logsumexp(0)).exp()
    exact = {"wake": log_p.logsumexp(0) + (posterior.detach() * log_q).sum()}
    points = [0.0, 0.1, 0.1**0.5, 1.0]
    area = torch.zeros(())
    for low, high in pairwise(points):
        on_path = ((1 - low) * log_q + low * log_p).softmax(0)
        area = area + (high - low) * (on_path * (log_p - log_q)).sum()
    exact["thermodynamic"] = area
    for name, value in (("wake", wake), ("thermodynamic", thermodynamic(points))):
        wanted = torch.autograd.grad(exact[name], list(p.values()), retain_graph=True)
        bias = []
        for particles in (2, 8, 32, 128):
            found = coin_gradients("coin", value, particles)
            off = [float((found[n] - w).abs()) for n, w in zip(p, wanted, strict=True)]
            bias.append(max(off))
        # Of order 1/K: four times the draws, about a fourth of the bias.
        assert bias[0] > 0.02, name
        assert bias[3] < 0.3 * bias[2] < 0.3 * 0.35 * bias[1], (name, bias)


def test_the_table_of_variances(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT)
    from benchmarks import gradients

    gradients.main(["--draws", "3", "--epochs", "1", "--out", str(tmp_path / "found.json")])
    kept = json.loads((ROOT / "benchmarks" / "results" / "gradients.json").read_text())
    found = json.loads((tmp_path / "found.json").read_text())
    assert list(found) == list(kept)
    names = {name.split(" ")[0] for rows in kept["stages"].values() for name in rows}
    assert names == set(inference.OBJECTIVES) - {"m2", "reconstruction"}  # labels, points
    assert all(name in capsys.readouterr().out for name in ("dreg",))
    # What the table is for: the guide's gradients of `dreg` are less noisy than those of `iwae`.
    for rows in kept["stages"].values():
        assert rows["dreg"]["guide_variance"] < rows["iwae"]["guide_variance"]
        assert rows["stl"]["model_variance"] == pytest.approx(rows["elbo"]["model_variance"])


def test_values_are_the_bounds(own_store):
    """Of `reweighted_wake_sleep` and `dreg` that of `iwae`; of `stl` that of `elbo`."""
    x = torch.full((6,), X, dtype=torch.float64)

    def value(objective):
        traced = inference.trace(*programs("one"), x, objective=objective)
        torch.manual_seed(3)
        return -float(traced(traced.parameters, x).detach())

    many = {"num_particles": 4}
    iwae = value(inference.IWAE(**many))
    elbo = value(inference.ELBO(**many))
    assert iwae > elbo + 0.01
    for objective in (inference.DReG(**many), inference.ReweightedWakeSleep(**many)):
        assert value(objective) == pytest.approx(iwae, abs=1e-12)
    assert value(inference.Renyi(alpha=0.0, **many)) == pytest.approx(iwae, abs=1e-12)
    assert value(inference.Renyi(alpha=1.0, **many)) == pytest.approx(elbo, abs=1e-12)
    assert value(inference.STL(**many)) == pytest.approx(elbo, abs=1e-12)
    one = inference.Thermodynamic(partitions=1, **many)
    assert value(one) == pytest.approx(elbo, abs=1e-12)
    assert elbo < value(inference.Thermodynamic(partitions=8, **many)) < iwae + 0.05
