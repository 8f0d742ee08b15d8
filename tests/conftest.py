"""What every test runs under: one thread, a fixed seed, and a check that it leaves no traces."""

import functools
import os
import sys

import pyro
import pytest
import torch

import inference
import pyro_vae as pv
from inference.diagnostics import local_fit

# Two threads wait for each other when anything else runs; children (kernels of notebooks, commands
# of the README) take theirs from the environment.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


def global_state():
    """What a library must leave as it found it, beside the random state."""
    return {
        "parameter store": sorted(pyro.get_param_store().keys()),
        "default dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        # Validation of distributions, inference and handlers are among these.
        **{f"pyro.settings {name}": value for name, value in pyro.settings.get().items()},
    }


@pytest.fixture(autouse=True)
def no_traces():
    """Seed torch, and fail a test that changes Pyro's or torch's global state.

    A test that trains with `pyro.infer.SVI` itself, and so fills the parameter store on purpose,
    asks for `own_store`. Tests may draw from torch's global generator; that library code leaves
    it alone is the business of tests of their own.
    """
    pyro.clear_param_store()
    before = global_state()
    random_state = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    after = global_state()
    torch.set_rng_state(random_state)
    pyro.clear_param_store()
    torch.set_default_dtype(before["default dtype"])
    torch.set_grad_enabled(before["gradients"])
    if after["deterministic algorithms"] != before["deterministic algorithms"]:
        torch.use_deterministic_algorithms(before["deterministic algorithms"])
    pyro.settings.set(**{name: before[f"pyro.settings {name}"] for name in pyro.settings.get()})
    changed = {k: (before[k], after[k]) for k in before if before[k] != after[k]}
    assert not changed, f"the test left global state changed (before, after): {changed}"


@pytest.fixture
def own_components():
    """Components and objectives that a test defines, or imports, are forgotten afterwards."""
    held = [cls.registry._all() for cls in (pv.Prior, pv.Guide, pv.Likelihood, pv.Network)]
    held.append(inference.OBJECTIVES)
    before, modules = [dict(members) for members in held], set(sys.modules)
    yield
    own = [
        cls
        for members, kept in zip(held, before, strict=True)
        for cls in members.values()
        if cls not in kept.values()
    ]
    for members, kept in zip(held, before, strict=True):
        members.clear()
        members.update(kept)
    for name in {cls.__module__ for cls in own} - modules:
        sys.modules.pop(name, None)


@pytest.fixture
def own_store():
    """A parameter store of the test's own."""
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


@pytest.fixture
def short_diagnosis(monkeypatch):
    """Few steps: how good the answers are is the business of other tests."""
    monkeypatch.setattr(local_fit, "LEVELS", (0.05,))
    monkeypatch.setattr(local_fit, "MOST_ROUNDS", 1)
    chains = inference.AIS(num_chains=4, num_temperatures=5, pilot_temperatures=4)
    settings = {"num_draws": 20, "warmup": 20, "thin": 1, "chains": chains}
    monkeypatch.setattr(inference, "reference", functools.partial(inference.reference, **settings))
    fewer = functools.partial(inference.calibration, num_data=60)
    monkeypatch.setattr(inference, "calibration", fewer)
