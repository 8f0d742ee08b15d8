"""log p(x | global draws): fixed draws of what stands outside the plate, and their mean density."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import nn

import inference
from tests.exact_models import agrees

NOISE = 0.5


def model(x, y):
    """w ~ N(0, 1) for all data; z_n ~ N(0, 1), y_n = w x_n + z_n + noise: y | w ~ N(w x, 1.25)."""
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(w * x + z, NOISE), obs=y)


def guide(x, y):
    w = pyro.sample("w", dist.Normal(1.8, 0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.8 * (y - w * x) + 0.1, 0.5))


def data(num=60):
    x = torch.randn(num, dtype=torch.float64)
    return x, 2 * x + 1.25**0.5 * torch.randn(num, dtype=torch.float64)


def truth(x, y, w):
    """log p(y_n | w_s), `[N, S]`."""
    return dist.Normal(w.double() * x.unsqueeze(1), 1.25**0.5).log_prob(y.unsqueeze(1))


def predictive(*pair, **settings):
    return inference.log_predictive(*pair, progress=False, **settings)


@pytest.mark.parametrize("estimator", [
    "importance", inference.AIS(num_temperatures=20), inference.SMC(num_temperatures=10),
], ids=str)  # fmt: skip
def test_every_estimator_integrates_what_is_left(estimator):
    x, y = data(300)
    draws = inference.global_draws(model, guide, (x, y), num_draws=4)
    found = predictive(model, guide, (x, y), draws=draws, estimator=estimator)
    assert found.quantity == "log p(x | global draws)"
    exact = truth(x, y, draws["w"])
    assert found.given.shape == (300, 4)
    ratio = (found.given - exact).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(ratio.numel()), ceiling=0.02)
    joint = exact.logsumexp(1) - math.log(4)
    assert agrees(found.value, joint, found.std_error, ceiling=0.2)
    # The mean of logs is another number, and so is the log of the mean over other data.
    assert not agrees(found.value, exact.mean(1), found.std_error)


def test_both_errors_are_told_apart():
    """Quadrature has none of its own: what is left is that of the draws, for one draw unknown."""
    x, y = data()
    w = 1.8 + 0.3 * torch.randn(400, dtype=torch.float64)
    found = predictive(model, guide, (x, y), draws={"w": w[:100]}, estimator="quadrature")
    exact = truth(x, y, w[:100])
    assert torch.allclose(found.given, exact, atol=1e-7)
    assert bool((found.std_error < 1e-7).all())
    spread = exact.exp().std(1) / exact.exp().mean(1) / 10
    assert torch.allclose(found.draws_std_error, spread, rtol=1e-5)
    # int q(w) p(y | w) dw = N(1.8 x, 1.25 + 0.09 x^2): a normal error, of the size it claims.
    limit = dist.Normal(1.8 * x, (1.25 + 0.09 * x**2).sqrt()).log_prob(y)
    assert agrees(found.value, limit, found.draws_std_error, ceiling=0.1)
    means = truth(x, y, w).reshape(len(x), 4, 100).logsumexp(2).mean(0)
    assert 0.3 < float(means.std()) / found.mean_draws_std_error < 2.5
    assert found.summary()["num_draws"] == 100
    assert "Others would move it by" in str(found)
    one = predictive(model, guide, (x, y), draws=1, estimator="quadrature")
    assert math.isnan(one.mean_draws_std_error)
    assert "Others" not in str(one)


def test_a_pair_at_given_values_is_any_pair():
    x, y = data()
    fixed = inference.given_globals(model, guide, {"w": torch.tensor(1.5)})
    exact = truth(x, y, torch.tensor([1.5]))[:, 0]
    found = inference.log_marginal(*fixed, (x, y), estimator="quadrature", progress=False)
    assert found.quantity == "log p(x | global draws)"
    assert torch.allclose(found.value, exact, atol=1e-7)
    sandwich = inference.Sandwich(num_data=200, by=inference.AIS(num_temperatures=20))
    found = inference.log_marginal(*fixed, (x, y), estimator=sandwich, progress=False)
    assert found.gap < 0.05
    record = inference.log_weights(*fixed, x, y, num_particles=5)
    assert set(record.latents) == {"z"}


class Layer(PyroModule):
    """Regression whose layer's weights are latents (PyroSample), drawn outside the plate."""

    def __init__(self):
        super().__init__()
        self.layer = PyroModule[nn.Linear](1, 1, bias=False)
        self.layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))

    def forward(self, x, y):
        mean = self.layer(x[:, None]).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.25**0.5), obs=y)


@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_modules_and_autoguides(precision):
    """An autoguide draws through auxiliary sites; without local latents the weights are exact."""
    x, y = (a.float() for a in data())
    pair = Layer()
    auto = AutoNormal(pair)
    draws = inference.global_draws(pair, auto, (x, y), num_draws=3)
    assert draws["layer.weight"].shape == (3, 1, 1)
    assert len(draws["layer.weight"].unique()) == 3
    few = inference.Importance(num_samples=2)
    found = predictive(pair, auto, (x, y), draws=draws, estimator=few, precision=precision)
    exact = truth(x.double(), y.double(), draws["layer.weight"].flatten())
    assert torch.allclose(found.given, exact, atol=1e-5 if precision == "float32" else 1e-7)
    assert bool((found.std_error == 0).all())


def test_draws_follow_the_seed_and_leave_the_caller_s_alone():
    x, y = data()
    state = torch.get_rng_state()
    first, again, other = (
        inference.global_draws(model, guide, (x, y), num_draws=3, seed=s)["w"] for s in (0, 0, 1)
    )
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    one, two = (predictive(model, guide, (x, y), draws=2, seed=5) for _ in range(2))
    assert torch.equal(one.value, two.value)


def test_what_does_not_fit_is_refused():
    x, y = data(8)
    with pytest.raises(inference.PairError, match=r"site 'w' stands .*inference.log_predictive"):
        inference.log_marginal(model, guide, (x, y), progress=False)
    with pytest.raises(inference.RequestError, match="site 'w' is missing"):
        predictive(model, guide, (x, y), draws={})
    with pytest.raises(inference.RequestError, match="'v' is no latent outside the plate"):
        predictive(model, guide, (x, y), draws={"w": torch.ones(2), "v": torch.ones(2)})
    with pytest.raises(inference.RequestError, match=r"expected \[S, ...\] with one S"):
        predictive(model, guide, (x, y), draws={"w": torch.tensor(1.0)})
    with pytest.raises(inference.RequestError, match="num_draws"):
        predictive(model, guide, (x, y), draws=0)
    with pytest.raises(inference.RequestError, match="plate: None"):
        predictive(model, guide, (x, y), plate=None)
    with pytest.raises(inference.RequestError, match=r"'sandwich' simulates .*estimator='ais'"):
        predictive(model, guide, (x, y), estimator="sandwich")
    local = inference.given_globals(model, guide, {"w": torch.tensor(1.5)})
    with pytest.raises(inference.PairError, match="every latent stands in plate 'data'"):
        predictive(*local, (x, y))
