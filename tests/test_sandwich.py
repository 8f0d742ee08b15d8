"""Two-sided bounds on simulated data: both sides right, and what they reveal."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_annealing import Exact, poor
from test_proposals import two_modes

import inference
from inference.evidence.sandwich import retraced
from inference.evidence.simulate import simulate
from tests.exact_models import agrees, linear_gaussian


def sandwich(pair, x, num_temperatures, num_data=300, **chains):
    chains = inference.AIS(num_temperatures=num_temperatures, **chains)
    estimator = inference.Sandwich(num_data=num_data, chains=chains)
    return inference.log_marginal(pair.model, pair.guide, x, estimator=estimator, progress=False)


def simulated_truth(pair, x, num_data):
    """log p(x) of the very data that the sandwich makes."""
    from inference.isolation import derived_seed

    rows = x[torch.arange(num_data) % len(x)]
    return pair.log_px(simulate(pair.model, (rows,), derived_seed("simulated", 0)).arguments[0])


def test_data_are_simulated_from_the_model():
    pair = linear_gaussian(seed=1, L=2)
    x = pair.sample(5)
    made = simulate(pair.model, (x[torch.arange(20_000) % 5],), seed=0)
    ((found,), z) = made.arguments, made.latents["z"]
    covariance = pair.W @ pair.W.T + torch.diag(pair.psi)
    root = torch.linalg.cholesky(covariance)
    white = torch.linalg.solve_triangular(root, (found - pair.mu).T, upper=False).T
    for part, truth in ((white, 0.0), (white.square(), 1.0)):
        assert agrees(part.mean(0), truth, part.std(0) / math.sqrt(len(part)), ceiling=0.02)
    residual = (found - pair.mu - z @ pair.W.T) / pair.psi.sqrt()
    assert agrees(residual.square().mean(0), 1.0, math.sqrt(2 / len(found)) * torch.ones(5))


def test_covariates_are_kept_and_hidden_data_refused():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x + z, 0.1), obs=y)

    x, y = torch.linspace(0, 9, 10), torch.zeros(10)
    made = simulate(model, (x, y), seed=0)
    assert torch.equal(made.arguments[0], x)
    assert torch.allclose(made.arguments[1], x + made.latents["z"], atol=0.6)

    def hidden(x, y):
        model(x, 2 * y + 1)

    with pytest.raises(inference.PairError, match=r"site 'y' observes .* none of the arguments"):
        simulate(hidden, (x, y), seed=0)


def test_chains_that_go_back_are_unbiased_from_above():
    """E[1/w] = 1/p(x), with exact steps; one temperature early it is not."""
    pair = linear_gaussian(seed=2, L=2)
    x = pair.sample(40, seed=1)
    torch.manual_seed(0)

    class Walk(Exact):
        def begin_at(self, u, data):
            return self.chains(u)

    walk, truth = Walk(pair, x), pair.log_px(x)
    betas = (torch.linspace(0, 1, 31, dtype=torch.float64) ** 4).unsqueeze(1).expand(-1, len(x))
    log_w = retraced(walk, (), None, betas, walk.draw(1.0, 1), 3000)
    ratio = (truth - log_w).exp().flatten()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(ratio)), ceiling=0.02)
    chains, wrong = walk.begin_at(walk.draw(1.0, 3000), ()), torch.zeros(3000, len(x)).double()
    for i in range(len(betas) - 1, 0, -1):
        chains = walk.move(chains, betas[i - 1], None, ()).chains
        wrong = wrong + (betas[i] - betas[i - 1]) * chains.log_ratio
    ratio = (truth - wrong).exp().flatten()
    assert not agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(ratio)))


@pytest.mark.parametrize("start", ["guide", "gaussian"])
def test_both_sides_hold_log_px(start):
    pair = poor()
    x = pair.sample(5)
    gaps = {}
    for steps in (3, 60):
        found = sandwich(pair, x, steps, start=start)
        truth = simulated_truth(pair, x, 300)
        below, above = truth - found.value, found.upper - truth
        for side in (below, above):
            assert float(side.mean()) > -3 * float(side.std()) / math.sqrt(300)
        gaps[steps] = found.gap
        assert found.gap == pytest.approx(float((below + above).mean()))
    assert 0 < gaps[60] < 0.25 * gaps[3]
    assert "a gap of" in str(found)


def test_a_missed_mode_shows_as_a_gap():
    """Half of the simulated data come from the mode that the guide misses."""
    pair = two_modes()
    found = sandwich(pair, torch.zeros(4, 2, dtype=torch.float64), 50, num_data=100)
    assert found.gap > 3 * found.gap_std_error
    assert found.gap > 0.1
    truth = simulated_truth(pair, torch.zeros(4, 2, dtype=torch.float64), 100)
    assert float((found.upper - truth).mean()) > -0.05
    assert float((truth - found.value).mean()) > 0.5


def test_requests_that_make_no_sense_are_refused():
    pair = linear_gaussian(seed=1)
    with pytest.raises(inference.RequestError, match="sandwich: simulated data"):
        inference.log_marginal(
            pair.model, pair.guide, pair.sample(3), estimator="sandwich", plate=None
        )
    with pytest.raises(ValueError, match="chains are of AIS, from the guide or a gaussian"):
        inference.Sandwich(chains=inference.AIS(start="prior"))
