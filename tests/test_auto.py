"""Importance sampling where a first look finds it good, chains elsewhere."""

import math
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
    # A look of 1000 draws meets z = 1 half a time, which then has nearly all of the weight.
    seeds = [run(model, guide, x, seed=seed) for seed in range(8)]
    flagged = torch.stack([found.flagged for found in seeds])
    assert bool(flagged[:, :3].any(0).all())
    assert not flagged[:, 3].any()
    for found in seeds:
        assert ("No chains for" in str(found)) <= bool(found.num_flagged)


def two_states(share):
    """z ~ Bernoulli(0.3), x ~ N(4z, 1), exact log p(x), and a guide with q(z = 1) = `share`."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(4 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(share + 0 * x))

    def truth(x):
        each = [math.log(p) + dist.Normal(m, 1.0).log_prob(x) for p, m in ((0.7, 0.0), (0.3, 4.0))]
        return torch.logaddexp(*each).double()

    return model, guide, truth


def test_what_looks_bad_and_has_no_chains_is_flagged():
    model, guide, truth = two_states(0.02)  # of 1000 draws some 20 have z = 1
    x = torch.tensor([4.0, 5.0, 4.5, -1.0, 0.0])
    found = run(model, guide, x)
    assert found.flagged.tolist() == [True, True, True, False, False]
    said = str(found)
    assert "No datum is flagged" not in said
    assert "No chains for 3 data: site 'z' is discrete" in said
    assert "k-hat above 0.3, or none, or an effective sample size below 10%" in said
    assert "'enumerate' where latents are few" in said
    assert "For 3 data the weights' k-hat is too large or unknown" in said
    whole = run(model, guide, x, inference.Enumerate())
    assert torch.allclose(whole.value, truth(x), atol=1e-5)


def test_a_good_guide_of_discrete_latents_is_not_flagged():
    """Its few distinct weights have no k-hat, and no chains are asked for."""
    model, guide, truth = two_states(0.5)
    x = torch.linspace(0.5, 3.5, 20)
    found = run(model, guide, x)
    assert agrees(found.value, truth(x), found.std_error, ceiling=0.1)
    assert not found.flagged.any()
    assert "No chains" not in str(found)
    assert "No datum is flagged" in str(found)


def auxiliary(scale):
    """One z ~ N(0, 1) of all data; its guide makes z of a draw that no Gaussian noise makes."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        sd = (1 + len(x)) ** -0.5
        at = dist.Laplace(x.sum() * sd**2, scale * sd)
        value = pyro.sample("raw", at, infer={"is_auxiliary": True})
        pyro.sample("z", dist.Delta(value))

    def truth(x):
        spread = torch.eye(len(x), dtype=torch.float64) + 1
        return dist.MultivariateNormal(torch.zeros(len(x)).double(), spread).log_prob(x.double())

    return model, guide, truth


def test_the_refusal_names_chains_that_fit():
    model, guide, truth = auxiliary(0.1)
    x = torch.tensor([0.3, -1.0, 2.0, 0.5])
    found = run(model, guide, x, plate=None)
    assert found.flagged.tolist() == [True]
    said = str(found)
    assert "auxiliary site 'raw' of the guide" in said
    assert "Auto(chains=AIS(start='gaussian')) has chains for this pair" in said
    for start in ("gaussian", "prior"):
        chains = inference.AIS(start=start, num_temperatures=150)
        found = run(model, guide, x, QUICK.model_copy(update={"chains": chains}), plate=None)
        assert found.num_by_chains == 1
        assert found.notes == ()
        assert agrees(found.value, truth(x)[None], found.std_error, ceiling=0.3)


def test_particles_are_called_by_their_name():
    """`SMC` is an `AIS` with settings of its own."""
    settings = {"num_chains": 128, "num_temperatures": 50, "resample_below": 0.7}
    estimator = inference.Auto(
        importance=QUICK.importance, chains=inference.SMC.model_validate(settings)
    )
    held = estimator.model_dump()["chains"]
    assert held["name"] == "smc"
    assert held["resample_below"] == 0.7
    assert inference.Auto.model_validate(estimator.model_dump()) == estimator
    assert inference.Auto(chains={"num_chains": 4}).chains == inference.AIS(num_chains=4)
    pair, model, guide, x, narrow = half_good()
    found = run(model, guide, (x, narrow), estimator)
    assert "for 30 data and smc with 128 chains of 50 temperatures for 30" in str(found)
    assert found.summary()["num_by_smc"] == 30
    assert agrees(found.value, pair.log_px(x), found.std_error.clamp_min(0.02), ceiling=0.4)
    with pytest.raises(ValueError, match="'importance' found using 'name' does not match"):
        inference.Auto(chains=inference.Importance())


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
