"""SingleOptimizer: one torch optimizer behind Pyro's interface, with global clipping."""

import inspect

import pyro
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from small_pairs import Tutorial, fit, line_data, line_guide, line_model, patterns

import inference
from inference import NonFiniteError, RequestError, SingleOptimizer


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def seeded_vae():
    torch.manual_seed(0)
    return Tutorial()


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def by_hand(optimizer, steps=5, clip_norm=None):
    """Updates of a VAE's weights by a bare torch optimizer, and the gradient norms."""
    pyro.clear_param_store()
    vae, x = seeded_vae(), patterns()
    named = sorted(
        [(f"decoder.{n}", p) for n, p in vae.decoder.named_parameters()]
        + [(f"encoder.{n}", p) for n, p in vae.encoder.named_parameters()]
    )
    parameters = [p for _, p in named]
    torch_optimizer, norms = optimizer(parameters), []
    torch.manual_seed(1)
    for _ in range(steps):
        torch_optimizer.zero_grad()
        Trace_ELBO().differentiable_loss(vae.model, vae.guide, x).div(len(x)).backward()
        total = torch.stack([p.grad.square().sum() for p in parameters]).sum().sqrt()
        norms.append(float(total))
        if clip_norm is not None:
            for p in parameters:
                p.grad *= min(1.0, clip_norm / (float(total) + 1e-6))
        torch_optimizer.step()
    return weights(vae), norms


def by_svi(optimizer, steps=5):
    """The same by `pyro.infer.SVI`."""
    pyro.clear_param_store()
    vae, x = seeded_vae(), patterns()
    model, guide = (pyro.poutine.scale(f, scale=1 / len(x)) for f in (vae.model, vae.guide))
    svi, norms = SVI(model, guide, optimizer, Trace_ELBO()), []
    torch.manual_seed(1)
    for _ in range(steps):
        svi.step(x)
        norms.append(optimizer.grad_norm)
    return weights(vae), norms


OPTIMIZERS = {
    "adam": {"betas": (0.8, 0.99)},
    "Adamax": {},
    "adamw": {"weight_decay": 0.1},
    "sgd": {"momentum": 0.9},
    "rmsprop": {"momentum": 0.5, "centered": True},
    "nadam": {},
    "RAdam": {},
    "adagrad": {},
    "adadelta": {},
    "asgd": {},
    "rprop": {},
    "adafactor": {},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_torch_optimizer_updates_as_it_does_alone(name):
    options = OPTIMIZERS[name]
    cls = next(c for n, c in vars(torch.optim).items() if n.lower() == name.lower())
    expected, norms = by_hand(lambda p: cls(p, lr=0.01, **options))
    got, our_norms = by_svi(SingleOptimizer(name, 0.01, options))
    assert our_norms == pytest.approx(norms, rel=1e-4)
    start = weights(seeded_vae())
    for key, value in expected.items():
        assert torch.allclose(got[key], value, rtol=1e-4, atol=2e-6), key
        assert not torch.equal(got[key], start[key]), key


def test_every_optimizer_that_torch_has_is_offered_or_set_apart():
    with pytest.raises(RequestError) as caught:
        SingleOptimizer("adm")
    offered = set(str(caught.value).partition("Choices: ")[2].split(", "))
    every = {
        name.lower()
        for name, cls in vars(torch.optim).items()
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer)
    }
    assert every - offered == {"lbfgs", "sparseadam", "optimizer"}
    assert "adam" in offered
    assert "'adm' is unknown" in str(caught.value)


@pytest.mark.parametrize("name", ["lbfgs", "Optimizer", "sparseadam"])
def test_optimizers_that_need_more_than_gradients_are_refused(name):
    with pytest.raises(RequestError, match="unknown"):
        SingleOptimizer(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("adam", {"beta1": 0.9}, "'beta1' is unknown to adam. Choices: amsgrad, betas,"),
        ("adam", {"lr": 0.9}, "'lr' is given as learning_rate"),
        ("sgd", {"betas": (0.9, 0.9)}, "'betas' is unknown to sgd. Choices: .*momentum"),
        ("adam", {"betas": (2.0, 0.9)}, "optimizer 'adam': Invalid beta"),
        ("sgd", {"momentum": -1.0}, "optimizer 'sgd': Invalid momentum"),
    ],
)
def test_bad_options_are_refused_with_the_choices(name, options, message):
    with pytest.raises(RequestError, match=message):
        SingleOptimizer(name, 0.1, options)


@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"amsgrad": True}])
def test_options_that_choose_an_implementation_are_honoured(options):
    expected, _ = by_hand(lambda p: torch.optim.Adam(p, lr=0.01, **options))
    got, _ = by_svi(SingleOptimizer("adam", 0.01, options))
    for key, value in expected.items():
        assert torch.allclose(got[key], value, rtol=1e-4, atol=2e-6), key


# Clipping ------------------------------------------------------------------------------------


def test_clipping_is_by_the_global_norm():
    clip = 0.05
    free, norms = by_hand(lambda p: torch.optim.SGD(p, lr=0.1))
    assert min(norms) > 2 * clip  # it bites
    expected, _ = by_hand(lambda p: torch.optim.SGD(p, lr=0.1), clip_norm=clip)
    got, our_norms = by_svi(SingleOptimizer("sgd", 0.1, clip_norm=clip))
    start = weights(seeded_vae())
    moved = torch.stack([(got[k] - start[k]).square().sum() for k in got]).sum().sqrt()
    assert moved <= 0.1 * clip * 5 * 1.001
    assert our_norms[0] == pytest.approx(norms[0], rel=1e-5)  # the norm before clipping
    for key, value in expected.items():
        assert torch.allclose(got[key], value, rtol=1e-4, atol=1e-7), key
    assert not all(torch.allclose(got[k], free[k], rtol=1e-4, atol=1e-7) for k in free)


def test_clipping_per_tensor_would_be_something_else():
    clip = 0.05

    def per_tensor(parameters):
        class Clipped(torch.optim.SGD):
            def step(self):
                for p in parameters:
                    p.grad *= min(1.0, clip / (float(p.grad.norm()) + 1e-6))
                super().step()

        return Clipped(parameters, lr=0.1)

    wrong, _ = by_hand(per_tensor)
    got, _ = by_svi(SingleOptimizer("sgd", 0.1, clip_norm=clip))
    assert not all(torch.allclose(got[k], wrong[k], rtol=1e-4, atol=1e-7) for k in wrong)


def test_a_generous_norm_clips_nothing():
    free, _ = by_svi(SingleOptimizer("sgd", 0.1))
    clipped, _ = by_svi(SingleOptimizer("sgd", 0.1, clip_norm=1e6))
    assert all(torch.equal(free[k], clipped[k]) for k in free)


def test_the_gradient_norm_in_the_history_is_the_one_before_clipping(params):
    data, settings = line_data(), {"epochs": 1, "batch_size": 40, "optimizer": "sgd"}
    free = fit(line_model, line_guide, data, **settings).history[0]["grad_norm"]
    params.clear()
    clipped = fit(line_model, line_guide, data, clip_norm=1e-3, **settings).history[0]["grad_norm"]
    assert free == clipped > 1e-2


# State ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_state_taken_over_continues_exactly(name):
    """Five steps, and two steps and then three of a fresh optimizer that takes the state."""
    x = patterns()

    def run(vae, optimizer, seeds):
        model, guide = (pyro.poutine.scale(f, scale=1 / len(x)) for f in (vae.model, vae.guide))
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        for seed in seeds:
            torch.manual_seed(seed)
            svi.step(x)

    def make():
        return SingleOptimizer(name, 0.01, OPTIMIZERS[name])

    straight = seeded_vae()
    run(straight, make(), range(5))
    pyro.clear_param_store()
    broken, first, second = seeded_vae(), make(), make()
    run(broken, first, range(2))
    state = first.get_state()
    assert set(state) == set(pyro.get_param_store())
    second.set_state(state)
    run(broken, second, range(2, 5))
    assert all(torch.equal(a, weights(broken)[k]) for k, a in weights(straight).items())

    pyro.clear_param_store()  # and it is the state that does it, not the weights alone
    forgetful = seeded_vae()
    run(forgetful, make(), range(2))
    run(forgetful, make(), range(2, 5))
    assert not all(torch.equal(a, weights(forgetful)[k]) for k, a in weights(straight).items())


def test_a_gradient_that_is_not_finite_is_named_and_touches_nothing():
    vae, x = seeded_vae(), patterns()
    optimizer = SingleOptimizer("adam", 0.01)
    svi = SVI(vae.model, vae.guide, optimizer, Trace_ELBO())
    svi.step(x)
    before = weights(vae)
    vae.decoder[2].bias.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(NonFiniteError, match=r"parameter 'decoder\$\$\$2.bias' is not finite"):
        svi.step(x)
    assert all(torch.equal(value, weights(vae)[name]) for name, value in before.items())


def test_names_of_optimizers_ignore_case(params):
    results = []
    for name in ("adam", "Adam", "ADAM"):
        params.clear()
        fit(line_model, line_guide, line_data(), optimizer=name)
        results.append(params["slope"].item())
    assert len(set(results)) == 1
    assert results[0] != 0


def test_fit_refuses_an_unknown_optimizer_before_anything_happens(params, tmp_path):
    with pytest.raises(inference.RequestError, match=r"'adma' is unknown\. Choices: "):
        fit(line_model, line_guide, line_data(), optimizer="adma", checkpoint=tmp_path / "c")
    assert not params
    assert not (tmp_path / "c").exists()
