"""Posteriors by chains against exact ones; what tells that chains have not mixed."""

import math
import warnings
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from inference.diagnostics.chains import effective_size, split_rhat
from inference.diagnostics.reference import CHAINS
from inference.evidence.hmc import Moved
from inference.evidence.tempering import Walk
from tests.exact_models import agrees, linear_gaussian, z_scores_are_normal

PAIR = linear_gaussian(seed=8, L=3)
X = PAIR.sample(4, seed=3)
SD = PAIR.A.diagonal().rsqrt()
SHIFT, SHARE = 0.8, 0.7  # of the guide, in units of SD
QUICK = CHAINS.model_copy(update={"num_chains": 32, "num_temperatures": 20})


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(PAIR.mean(x) + SHIFT * SD, SHARE * SD).to_event(1))


def drawn(model=PAIR.model, guide=guide, x=X, **settings):
    settings = {"num_draws": 40, "warmup": 40, "thin": 3, "chains": QUICK, **settings}
    return inference.reference(model, guide, x, progress=False, **settings)


def holds(found, x=X):
    sd = PAIR.V.diagonal().sqrt()
    parts = (
        (found.mean, PAIR.mean(x), found.mean_std_error, 0.1),
        (found.sd, sd, found.sd_std_error, 0.1),
        (found.shift, SHIFT * SD / sd, found.shift_std_error, 0.15),
        (found.sd_ratio, SHARE * SD / sd, found.sd_ratio_std_error, 0.1),
    )
    # 48 comparisons at 5 standard errors, whose own errors are a tenth of them.
    return all(agrees(value, truth, error, ceiling=c) for value, truth, error, c in parts)


@pytest.mark.parametrize(
    "chains",
    [QUICK, QUICK.model_copy(update={"start": "gaussian"})],
    ids=["noise", "gaussian"],
)
def test_moments_are_exact(chains):
    found = drawn(chains=chains)
    assert holds(found)
    assert found.draws.shape == (32, 40, 4, 3)
    assert found.names == ("z[0]", "z[1]", "z[2]")
    assert float(found.rhat.max()) < 1.05
    assert 0.6 < float(found.acceptance.min()) <= 1


@pytest.mark.slow
def test_errors_have_the_size_they_claim():
    x, sd = PAIR.sample(150, seed=5), PAIR.V.diagonal().sqrt()
    found = drawn(x=x, num_draws=100)
    for value, truth, error in (
        (found.mean, PAIR.mean(x), found.mean_std_error),
        (found.sd, sd, found.sd_std_error),
        (found.shift, SHIFT * SD / sd, found.shift_std_error),
        (found.sd_ratio, SHARE * SD / sd, found.sd_ratio_std_error),
    ):
        assert z_scores_are_normal((value - truth) / error)


def test_chains_that_stay_with_the_guide_are_caught(monkeypatch):
    """A twin whose chains never move: its moments are the guide's, and it is flagged."""

    def stay(self, chains, beta, tuned, data):
        return Moved(chains, torch.ones_like(chains.start))

    monkeypatch.setattr(Walk, "move", stay)
    found = drawn()
    assert not holds(found)
    assert found.flagged.all()
    assert "Do not trust 4 of the 4" in str(found)


def test_too_few_draws_are_flagged():
    found = drawn(x=X[:1], num_draws=20, thin=1)
    assert found.flagged.all()
    trusted = replace(
        found, rhat=torch.ones_like(found.rhat), ess=torch.full_like(found.ess, 500.0)
    )
    assert not trusted.flagged.any()
    assert "A mode that no chain has met" in str(trusted)
    summary, arrays = found.summary(), found.arrays()
    assert summary["num_flagged"] == 1
    assert summary["max_rhat"] == float(found.rhat.max())
    assert arrays["shift"].shape == arrays["shift.std_error"].shape == (1, 3)


def test_positive_latents_of_two_sites():
    """Gamma-Poisson and Normal-Normal: each posterior is known."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(3.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.LogNormal((x + 3).log(), 0.5))
            pyro.sample("z", dist.Normal(0.6 * y, 0.6).to_event(1))

    x, y = torch.tensor([0.0, 4.0]), torch.tensor([[0.5, -1.0], [2.0, 0.0]])
    found = drawn(model, guide, (x, y))
    assert found.names == ("rate", "z[0]", "z[1]")
    gamma = torch.distributions.Gamma(x.double() + 3, 2.0)
    mean = torch.cat([gamma.mean.unsqueeze(1), 0.8 * y.double()], 1)
    sd = torch.stack([gamma.stddev, *[torch.full((2,), 0.2**0.5).double()] * 2], 1)
    assert agrees(found.mean, mean, found.mean_std_error, ceiling=0.1)
    assert agrees(found.sd, sd, found.sd_std_error, ceiling=0.1)


def autoregressive(share, num_draws, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(4, num_draws, 2, 3, generator=generator, dtype=torch.float64)
    found = [noise[:, 0]]
    for i in range(1, num_draws):
        found.append(share * found[-1] + math.sqrt(1 - share**2) * noise[:, i])
    return torch.stack(found, 1)


@pytest.mark.parametrize("share", [0.0, 0.6, 0.9, -0.5])
def test_rhat_and_effective_size_are_arviz(share):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import arviz as az
    draws = autoregressive(share, 2000)
    draws[0, :, 1, 2] += 1.0  # a chain apart
    draws[1, :, 1, 1] *= 3.0  # one that is wider
    rhat, ess = split_rhat(draws), effective_size(draws)
    for n in range(2):
        for d in range(3):
            one = draws[:, :, n, d].numpy()
            assert float(rhat[n, d]) == pytest.approx(float(az.rhat(one)), rel=1e-6)
            assert float(ess[n, d]) == pytest.approx(float(az.ess(one, method="mean")), rel=1e-6)
    assert float(rhat[1, 2]) > 1.05
    assert float(rhat[1, 1]) > 1.05
    # n (1 - r) / (1 + r) for such a chain, and at most n log10 n.
    exact = min(8000 * (1 - share) / (1 + share), 8000 * math.log10(8000))
    assert float(ess[0, 0]) == pytest.approx(exact, rel=0.25)


def test_draws_that_are_all_equal():
    draws = torch.ones(4, 20, 2, dtype=torch.float64)
    assert split_rhat(draws).isnan().all()
    assert effective_size(draws).isnan().all()


def test_nothing_is_left_behind():
    before = torch.get_rng_state()
    first, second = (drawn(x=X[:1], num_draws=20, warmup=20, thin=1) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.draws, second.draws)
    assert len(pyro.get_param_store()) == 0


def test_requests_that_are_wrong():
    with pytest.raises(inference.RequestError, match="num_draws: got 4"):
        drawn(num_draws=4)
    with pytest.raises(inference.RequestError, match="start 'prior'"):
        drawn(chains=inference.AIS(start="prior"))
    for wrong, told in ((inference.SMC(), "'smc'"), ("ais", "'ais'"), (None, "None")):
        with pytest.raises(inference.RequestError, match=f"chains: got {told}; expected .* AIS"):
            drawn(chains=wrong)

    def discrete(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def of_discrete(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.3).expand([len(x)]))

    with pytest.raises(inference.PairError, match="site 'z' is discrete"):
        drawn(discrete, of_discrete, torch.zeros(3))
