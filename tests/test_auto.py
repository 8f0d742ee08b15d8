"""Importance sampling where a first look finds it good, chains elsewhere."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from inference.evidence import auto
from tests.exact_models import agrees, linear_gaussian


def half_good(seed=1):
    """The exact guide for one half of the data, one far too narrow for the other."""
    pair = linear_gaussian(seed=seed, D=8, L=3)
    x = pair.sample(60, seed=4)
    narrow = torch.zeros(60)
    narrow[::2] = 1.0

    def guide(x, narrow):
        scale = (1 - 0.75 * narrow).double()
        root = torch.linalg.cholesky(pair.V)
        with pyro.plate("data", len(x)):
            pyro.sample(
                "z",
                dist.MultivariateNormal(
                    pair.mean(x), scale_tril=scale[:, None, None] * root.expand(len(x), 3, 3)
                ),
            )

    return pair, lambda x, narrow: pair.model(x), guide, x, narrow


QUICK = inference.Auto(
    importance=inference.Importance(num_samples=500), chains=inference.AIS(num_temperatures=150)
)


def run(model, guide, data, estimator=QUICK, **options):
    return inference.log_marginal(
        model, guide, data, estimator=estimator, progress=False, **options
    )


def test_each_datum_goes_where_it_is_served():
    pair, model, guide, x, narrow = half_good()
    found = run(model, guide, (x, narrow))
    assert torch.equal(found.by, narrow.long())
    assert found.num_by_chains == 30
    truth = pair.log_px(x)
    assert agrees(found.value, truth, found.std_error.clamp_min(0.02), ceiling=0.4)
    assert found.summary()["num_by_ais"] == 30
    assert "30 data and ais with 16 chains of 150 temperatures for 30" in str(found)
    lower, upper = found.interval()
    assert bool((lower <= found.value).all() & (found.value <= upper).all())
    with pytest.raises(inference.RequestError, match=r"intervals of 0\.95"):
        found.interval(0.5)


def test_the_look_is_not_what_is_reported(monkeypatch):
    """Draws of the report and those of the look have different seeds."""
    seeds = []
    real = inference.Importance.run

    def spy(self, request):
        found = real(self, request)
        seeds.append((self.num_samples, request.seed, found.value))
        return found

    monkeypatch.setattr(inference.Importance, "run", spy)
    pair = linear_gaussian(seed=1, D=8, L=3)
    x = pair.sample(20, seed=1)
    same = QUICK.model_copy(update={"look": 500})
    found = run(pair.model, replace(pair, S=1.2 * pair.V).guide, x, same)
    assert [count for count, *_ in seeds] == [500, 500]
    assert seeds[0][1] != seeds[1][1]
    assert torch.equal(found.value, seeds[1][2])
    assert not torch.equal(found.value, seeds[0][2])


def test_where_there_are_no_chains_all_stay():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(4 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.0005 + 0 * x))

    x = torch.tensor([4.0, 5.0, 4.5, -1.0])
    found = run(model, guide, x)
    assert found.num_by_chains == 0
    assert "No chains for" in str(found)
    assert "discrete" in str(found)


def test_one_joint_evidence():
    pair = linear_gaussian(seed=1, D=3, L=2)
    x = pair.sample(4, seed=1)
    found = run(pair.model, replace(pair, S=0.1 * pair.V).guide, x, plate=None)
    assert found.is_joint
    assert len(found.value) == 1
    assert found.num_by_chains == 1


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="look"):
        inference.Auto(look=10)
    assert inference.ESTIMATORS["auto"] is auto.Auto


def test_a_guide_with_parameters_for_each_datum(own_store):
    """Such a pair takes all of its data at once, and no part of them."""
    x = torch.cat([torch.zeros(4), torch.full((4,), 3.0)])
    scale = torch.cat([torch.full((4,), 0.7071), torch.full((4,), 0.1)])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", x / 2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale))

    found = run(model, guide, x)
    assert found.by.tolist() == [0] * 4 + [1] * 4
    truth = dist.Normal(0.0, 2**0.5).log_prob(x).double()
    assert agrees(found.value, truth, found.std_error.clamp_min(0.02), ceiling=0.4)


def test_a_precision_that_chains_do_not_take_is_refused_at_once(monkeypatch):
    monkeypatch.setattr(inference.Importance, "run", None)
    pair = linear_gaussian(seed=1)
    with pytest.raises(inference.RequestError, match="auto takes float32 or float64"):
        run(pair.model, pair.guide, pair.sample(3), precision="bfloat16")
