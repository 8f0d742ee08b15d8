"""What is no number is blamed on its site and datum by every estimator, and nothing else is."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from inference.evidence.blame import blame, first_wrong
from tests.exact_models import agrees

ESTIMATORS = [
    inference.Importance(num_samples=100),
    inference.AIS(num_temperatures=10),
    inference.AIS(num_temperatures=10, space="latent"),
    inference.AIS(num_temperatures=10, start="gaussian"),
    inference.SMC(num_temperatures=5),
    inference.Quadrature(),
]


def log_px(model, guide, x, estimator, **options):
    return inference.log_marginal(model, guide, x, estimator=estimator, progress=False, **options)


def plain(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def prior(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0 * x, 1.0))


def one_odd(odd, num=20):
    """Data of which one, beyond those that a pair is looked at with, is odd."""
    x = torch.ones(num)
    x[13] = odd
    return x


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_a_model_that_is_no_number_for_one_datum(estimator, monkeypatch):
    """In a tile that is not the first."""
    from inference import tiles

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, (x + 5).sqrt()), obs=x)

    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 700)
    with pytest.raises(inference.NonFiniteError, match=r"datum 13 .* site 'x' of the model .* NaN"):
        log_px(model, prior, one_odd(-6.0), estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_a_guide_that_is_no_number_for_one_datum(estimator):
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, (x + 5).sqrt()))

    with pytest.raises(inference.NonFiniteError, match=r"datum 13 .* site 'z' of the guide .* NaN"):
        log_px(plain, guide, one_odd(-6.0), estimator)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_an_infinite_density_is_blamed(estimator):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("pole", torch.where(x > 5, math.inf, 0 * z))

    match = r"datum 13 .* site 'pole' of the model has an infinite \(inf\)"
    with pytest.raises(inference.NonFiniteError, match=match):
        log_px(model, prior, one_odd(6.0), estimator)


def test_one_joint_evidence():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("odd", torch.where(z > 1.9, math.nan, 0.0))

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, 1.0))

    chains = inference.AIS(num_chains=200)
    for estimator in (inference.Importance(num_samples=1000), chains, "quadrature"):
        with pytest.raises(inference.NonFiniteError, match=r"datum 0 .* site 'odd' of the model"):
            log_px(model, guide, torch.ones(9), estimator, plate=None)


def test_a_density_of_zero_is_none_of_these():
    """z ~ N(0, 1), x within 1 of it: half of the draws have no weight, and chains leave there."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            height = torch.where((x - z).abs() < 1, math.log(0.5), -math.inf)
            pyro.factor("x", height)

    x = torch.linspace(-1.0, 1.0, 60).double()
    normal = torch.distributions.Normal(0.0, 1.0)
    truth = ((normal.cdf(x + 1) - normal.cdf(x - 1)) / 2).log()
    for estimator in (
        inference.AIS(num_temperatures=50),
        inference.AIS(num_temperatures=50, start="gaussian"),
        inference.SMC(num_temperatures=25),
    ):
        found = log_px(model, prior, x, estimator)
        ratio = (found.value - truth).exp()
        assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.05)


def test_a_grid_sees_what_the_guide_s_draws_do_not():
    """No number where 7% of the weight lies."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(0 * z, 1 + 0 * (1.5 - z).sqrt()), obs=x)

    def narrow(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x - 1, 0.3))

    x = torch.zeros(3)
    assert bool(
        log_px(model, narrow, x, inference.Importance(num_samples=50)).value.isfinite().all()
    )
    with pytest.raises(inference.NonFiniteError, match=r"datum 0 .* site 'x' of the model"):
        log_px(model, narrow, x, "quadrature")


def test_far_from_all_weight_a_grid_may_overflow():
    """exp(30 u) is beyond float32 from u = 3 on, where counts of inf - inf are no number."""
    spread = 30.0

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.LogNormal(torch.tensor(0.0), spread))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal(0 * x, spread))

    u = torch.linspace(-150, 150, 600_001, dtype=torch.float64).unsqueeze(1)
    x = torch.arange(1.0, 4.0)
    height = dist.Normal(0.0, spread).log_prob(u) + dist.Poisson(u.exp()).log_prob(x.double())
    truth = height.nan_to_num(nan=-math.inf).logsumexp(0) + math.log(300 / 600_000)
    found = log_px(model, guide, x, inference.Quadrature(tolerance=1e-4))
    assert torch.allclose(found.value, truth, atol=1e-3, rtol=0)


def test_a_grid_that_has_no_end_is_refused():
    """Draws that are all the same have no spread for a grid to begin with."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(100.0 + 0 * x, 1e-9))

    with pytest.raises(inference.PairError, match="no grid can be laid for datum 0"):
        log_px(plain, guide, torch.ones(3), "quadrature")


def test_enumeration_blames_the_site_too():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, (x + 5).sqrt()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5 + 0 * x))

    with pytest.raises(inference.NonFiniteError, match=r"datum 13 .* site 'x' of the model"):
        log_px(model, guide, one_odd(-6.0), "enumerate")


def test_the_datum_is_the_first_that_is_wrong():
    log_weight = torch.tensor([[0.0, -math.inf, 1.0], [0.0, 2.0, math.nan]])
    assert first_wrong(log_weight) == 2
    assert first_wrong(log_weight[:1]) is None
    x = torch.tensor([0.3, 0.4])
    record = inference.log_weights(plain, prior, x, num_particles=2)
    assert "datum 8 is NaN or infinite, though no site's" in blame(record, 1, first=7)
