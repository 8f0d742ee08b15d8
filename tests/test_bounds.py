"""Latents between bounds that are tensors, and may be each datum's own: exact answers."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from inference.diagnostics.reference import reference
from inference.evidence.simulate import simulate
from inference.isolation import derived_seed
from tests.exact_models import agrees

NOISE = 0.3


def data(num=40):
    """Widths of intervals, and what is seen of a number from each."""
    generator = torch.Generator().manual_seed(0)
    wide = 3 * torch.rand(num, generator=generator, dtype=torch.float64)
    z = (1 + wide) * torch.rand(num, generator=generator, dtype=torch.float64)
    return wide, z + NOISE * torch.randn(num, generator=generator, dtype=torch.float64)


def model(wide, x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(0.0, 1 + wide))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def guide(wide, x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Uniform(0.0, 1 + wide))


def cdf(x):
    return torch.distributions.Normal(0.0, 1.0).cdf(x)


def truth(wide, x):
    """log of int_0^h N(x; z, s^2) dz / h, h = 1 + wide."""
    high = 1 + wide
    return (cdf((high - x) / NOISE) - cdf(-x / NOISE)).log() - high.log()


def log_px(pair, x, estimator, **options):
    return inference.log_marginal(*pair, x, estimator=estimator, progress=False, **options)


ESTIMATORS = [
    inference.AIS(num_temperatures=50),
    inference.AIS(num_temperatures=50, start="prior"),
    inference.AIS(num_temperatures=50, start="gaussian"),
    inference.SMC(num_temperatures=25),
]


def unbiased(found, wanted):
    ratio = (found.value - wanted).exp()
    return agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(ratio)), ceiling=0.04)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=str)
def test_bounds_of_each_datum_s_own(estimator):
    wide, x = data(200)
    assert unbiased(log_px((model, guide), (wide, x), estimator), truth(wide, x))


def test_auto_has_chains_for_them():
    """Of an interval that is much wider than the noise, few draws from all of it count."""
    wide = torch.tensor([0.5] * 30 + [19.0] * 30).double()
    x = torch.linspace(0.2, 1.5, 60).double()
    estimator = inference.Auto(look=100, chains=inference.AIS(num_temperatures=50))
    found = log_px((model, guide), (wide, x), estimator)
    assert 20 < found.num_by_chains < 40
    assert unbiased(found, truth(wide, x))


def test_quadrature_between_bounds_of_each_datum_s_own(monkeypatch):
    from inference.evidence import quadrature

    wide, x = data()
    whole = log_px((model, guide), (wide, x), "quadrature")
    monkeypatch.setattr(quadrature, "HEIGHTS_AT_ONCE", 3 * whole.num_samples)
    split = log_px((model, guide), (wide, x), "quadrature")
    for found in (whole, split):
        assert torch.allclose(found.value, truth(wide, x), atol=1e-6, rtol=0)


def test_both_sides_of_simulated_data():
    wide, x = data()
    estimator = inference.Sandwich(num_data=200, by=inference.AIS(num_temperatures=60))
    found = log_px((model, guide), (wide, x), estimator)
    rows = tuple(a[torch.arange(200) % len(x)] for a in (wide, x))
    made = simulate(model, rows, derived_seed("simulated", 0)).arguments
    for side in (truth(*made) - found.value, found.upper - truth(*made)):
        assert float(side.mean()) > -3 * float(side.std()) / math.sqrt(200)
    assert found.gap < 0.2


def test_draws_of_the_posterior():
    """Means of a normal that is cut off at both ends."""
    wide, x = (a[:6].float() for a in data())
    found = reference(model, guide, (wide, x), num_draws=60, progress=False)
    z = torch.linspace(0, 1, 20_001, dtype=torch.float64).unsqueeze(1) * (1 + wide)
    weight = (-0.5 * ((x - z) / NOISE).square()).softmax(0)
    assert agrees(found.mean[:, 0], (weight * z).sum(0), found.mean_std_error[:, 0], ceiling=0.05)


@pytest.mark.slow
def test_compiled_chains_are_the_eager_ones():
    estimator = inference.AIS(num_temperatures=10, num_chains=4)
    eager, compiled = (
        log_px((model, guide), data(), estimator, engine=engine, precision="float64")
        for engine in ("eager", "compiled")
    )
    assert compiled.engine == "compiled"
    assert torch.allclose(eager.value, compiled.value, atol=1e-6)


def constant_model(x):
    """The same bounds for all data, as tensors with one number each."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(torch.zeros(len(x)), torch.ones(len(x))))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def constant_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Beta(1 + x.clamp(0, 1), 2 - x.clamp(0, 1)))


def test_bounds_with_a_number_for_each_datum(monkeypatch):
    """Tiles at the edge are filled up, and have their own bounds, too."""
    from inference import tiles

    x = torch.linspace(-0.3, 1.3, 50)
    wanted = truth(torch.zeros(50).double(), x.double())
    found = log_px((constant_model, constant_guide), x, "quadrature")
    assert torch.allclose(found.value, wanted, atol=1e-4, rtol=0)
    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 16 * 11)
    found = log_px((constant_model, constant_guide), x, inference.AIS(num_temperatures=50))
    assert found.tile[0] < 50
    assert unbiased(found, wanted)


def pareto_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Pareto(1.0, 3.0))
        pyro.sample("x", dist.Normal(z, NOISE), obs=x)


def pareto_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Pareto(1.0, 2.5))


def test_half_a_line():
    x = torch.linspace(0.8, 3.0, 60, dtype=torch.float64)
    z = torch.linspace(1, 12, 200_001, dtype=torch.float64).unsqueeze(1)
    height = 3 * z**-4 * dist.Normal(z, NOISE).log_prob(x).exp()
    wanted = torch.trapezoid(height, z, dim=0).log()
    pair = pareto_model, pareto_guide
    found = log_px(pair, x, "quadrature")
    assert torch.allclose(found.value, wanted, atol=1e-6, rtol=0)
    assert unbiased(log_px(pair, x, inference.AIS(num_temperatures=80)), wanted)


def events(view):
    """Two numbers of each datum; with `view` for networks that take no dimension of particles."""

    def model(wide, x):
        with pyro.plate("data", len(x)):
            high = torch.stack([1 + wide, 2 + wide], -1)
            z = pyro.sample("z", dist.Uniform(torch.zeros_like(high), high).to_event(1))
            total = z.sum(-1).view(len(x)) if view else z.sum(-1)
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    def guide(wide, x):
        with pyro.plate("data", len(x)):
            high = torch.stack([1 + wide, 2 + wide], -1)
            pyro.sample("z", dist.Uniform(0 * high, high).to_event(1))

    return model, guide


@pytest.mark.parametrize("view", [False, True])
def test_events_and_repeated_data(view):
    wide, x = data(100)
    low, high = torch.zeros(2).double(), torch.stack([1 + wide, 2 + wide], -1)
    grid = (torch.arange(400).double() + 0.5) / 400
    a, b = (low[i] + grid.unsqueeze(1) * high[:, i] for i in (0, 1))
    wanted = dist.Normal(a.unsqueeze(0) + b.unsqueeze(1), 1.0).log_prob(x).flatten(0, 1)
    wanted = wanted.logsumexp(0) - 2 * math.log(400)
    found = log_px(events(view), (wide[:8], x[:8]), inference.Quadrature(tolerance=1e-5))
    assert torch.allclose(found.value, wanted[:8], atol=3e-5, rtol=0)  # the sum's own error
    found = log_px(events(view), (wide, x), inference.AIS(num_temperatures=20))
    assert unbiased(found, wanted)


def test_bounds_that_depend_on_other_latents_are_refused():
    def between(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Uniform(0.0, 1 + 1e-3 * a.sigmoid()))
            pyro.sample("x", dist.Normal(a + b, 0.02), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(0 * x, 2.0))
            pyro.sample("b", dist.Uniform(0 * x, 1.01))

    x = torch.linspace(0.0, 2.0, 6)
    for estimator in ("ais", "smc", "quadrature"):
        with pytest.raises(inference.PairError, match="'b' has a support that depends on other"):
            log_px((between, guide), x, estimator)
    chains = inference.Auto(look=100, importance=inference.Importance(num_samples=100))
    found = log_px((between, guide), x, chains)
    assert found.num_by_chains == 0
    assert "depends on other latents" in str(found)


def test_a_guide_that_draws_beyond_a_later_datum_s_bounds_is_refused():
    """Its chains would begin at other points than f_0 has."""
    wide, x = data()
    wide[30] = 10.0

    def beyond(wide, x):
        with pyro.plate("data", len(x)):
            high = 1 + wide
            pyro.sample("z", dist.Uniform(0.0, torch.where(high > 10, 3 * high, high)))

    with pytest.raises(inference.PairError, match="'z': the guide drew a value above the model's"):
        log_px((model, beyond), (wide, x), inference.AIS(num_temperatures=20))
