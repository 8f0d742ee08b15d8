"""trace: a pair as a pure function of tensors, equal to the handlers' own evaluation."""

import contextlib
import itertools
import random

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
from torch import nn

import inference
import pyro_vae as pv
from inference import ELBO, PairError, RequestError, Untraceable, trace
from inference.engines.scaled import PerDatum
from inference.isolation import derived_seed, modes, modules_of, validation
from inference.pair import GivenSubsample, as_arguments, examine
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


COMBINATIONS = [
    one
    for one in itertools.product(members(pv.Prior), members(pv.Guide), members(pv.Likelihood))
    if fits(*one)
]


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
    assert len(COMBINATIONS) >= 40


@pytest.mark.parametrize("combination", COMBINATIONS, ids=label)
def test_every_vae_traced_is_the_vae(combination, own_store):
    vae = build(*combination)
    x = pixels()
    vae.initialize(x)
    pair = look(vae.model, vae.guide, (x,))
    particles, vectorize = ((1, False), (3, True), (3, False))[COMBINATIONS.index(combination) % 3]
    traced, _ = agree(pair, (x,), particles, vectorize=vectorize)
    assert len(traced.parameters) == len(list(vae.parameters()))


@pytest.mark.parametrize(
    ("particles", "vectorize"), [(1, False), (3, False), (3, True)], ids=["1", "3 loop", "3 plate"]
)
@pytest.mark.parametrize("name", PAIRS)
def test_every_other_pair_traced_is_the_pair(name, particles, vectorize, params):
    if name == "joint" and vectorize:
        pytest.skip("a pair without plates takes its particles one by one")
    torch.manual_seed(0)
    (model, guide), data = PAIRS[name]()
    data = as_arguments(data)
    pair = look(model, guide, data, plate_of(name))
    traced, batch = agree(pair, data, particles, vectorize=vectorize)
    assert traced.parameters
