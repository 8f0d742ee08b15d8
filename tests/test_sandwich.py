"""Two-sided bounds on simulated data: both sides right, and what they reveal."""

import math
from argparse import Namespace
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from test_annealing import Exact, poor
from test_coverage import funnel
from test_proposals import two_modes

import inference
from inference.evidence.ais import anneal
from inference.evidence.sandwich import above, retraced
from inference.evidence.simulate import simulate
from inference.isolation import derived_seed
from tests.exact_models import agrees, linear_gaussian


def sandwich(pair, x, num_temperatures, num_data=300, **chains):
    chains = inference.AIS(num_temperatures=num_temperatures, **chains)
    estimator = inference.Sandwich(num_data=num_data, by=chains)
    return inference.log_marginal(pair.model, pair.guide, x, estimator=estimator, progress=False)


def simulated_truth(pair, x, num_data):
    """log p(x) of the very data that the sandwich makes."""
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


def test_a_few_chains_back_are_a_tighter_bound():
    """E[1/p^] = 1/p(x) for one and for four of them; their plain mean is another bound."""
    pair = linear_gaussian(seed=2, L=2)
    x = pair.sample(4000, seed=1)
    torch.manual_seed(0)

    class Walk(Exact):
        def begin_at(self, u, data):
            return self.chains(u)

    walk, truth = Walk(pair, x), pair.log_px(x)
    betas = (torch.linspace(0, 1, 9, dtype=torch.float64) ** 4).unsqueeze(1).expand(-1, len(x))
    forth, _, _ = anneal(walk, (), None, betas, 4)
    back = retraced(walk, (), None, betas, walk.draw(1.0, 1), 4)
    whole, one = above(forth, back), torch.stack([above(forth, b[None]) for b in back])
    for upper in (whole, *one):
        assert is_upper_weight(upper, truth)
    assert bool((whole <= one.mean(0) + 1e-12).all())
    assert float((whole - truth).mean()) < 0.95 * float((one - truth).mean())
    assert torch.allclose(
        above(forth, back[:1]), torch.cat([back[:1], forth[1:]]).logsumexp(0) - math.log(4)
    )


@pytest.mark.parametrize("start", ["guide", "gaussian", "prior"])
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
    assert found.start in str(found)
    assert start in found.summary()["start"].lower()
    assert not found.crossed


@pytest.mark.parametrize("num_latents", [2, 10])
def test_a_missed_mode_shows_as_a_gap(num_latents):
    """Half of the simulated data come from the mode that the guide misses."""
    pair = two_modes(L=num_latents)
    x = torch.zeros(4, num_latents, dtype=torch.float64)
    found = sandwich(pair, x, 50, num_data=100)
    assert found.gap > 3 * found.gap_std_error
    assert found.gap > 0.1
    truth = simulated_truth(pair, x, 100)
    assert float((found.upper - truth).mean()) > -0.05
    assert float((truth - found.value).mean()) > 0.5
    assert "Sandwich(by=AIS(start='prior')) closes it" in str(found)


def test_chains_from_the_prior_close_it():
    """They begin in both modes, of which the guide knows one."""
    pair = two_modes()
    x = torch.zeros(4, 2, dtype=torch.float64)
    missed = sandwich(pair, x, 50, num_data=100)
    found = sandwich(pair, x, 50, num_data=100, start="prior")
    assert found.gap < 0.03 < 0.1 * missed.gap
    truth = simulated_truth(pair, x, 100)
    for side in (truth - found.value, found.upper - truth):
        assert float(side.mean()) > -3 * float(side.std()) / math.sqrt(100)
    assert "from the prior" in str(found)
    wide = replace(found, upper=found.value + 1)  # a gap, but no other place to begin at
    assert "Take more temperatures or samples." in str(wide)


def test_chains_from_the_prior_find_the_neck_of_a_funnel():
    """With enough temperatures; from a guide without the neck as many leave a gap."""
    model, guide, _ = funnel(torch.zeros(1, 4).double())
    pair, x = Namespace(model=model, guide=guide), torch.zeros(4, 4).double()
    gaps = [sandwich(pair, x, steps, num_data=100, start="prior").gap for steps in (20, 100)]
    assert gaps[1] < 0.5 * gaps[0]
    assert gaps[1] < 0.2 * sandwich(pair, x, 100, num_data=100).gap


def test_bounds_that_crossed_are_told():
    """A distribution that draws otherwise than it scores: no bound holds."""

    class Narrow(dist.Normal):
        def log_prob(self, value):
            return dist.Normal(self.loc, 0.3 * self.scale).log_prob(value)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", Narrow(z, torch.ones(())), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 1.09, 0.3))

    for by in (
        inference.Importance(num_samples=4),
        inference.AIS(num_chains=4, num_temperatures=3),
    ):
        estimator = inference.Sandwich(num_data=100, by=by)
        found = inference.log_marginal(
            model, guide, torch.zeros(5), estimator=estimator, progress=False
        )
        assert found.crossed
        assert found.summary()["crossed"] is True
        assert "The bounds have crossed" in str(found)
    level = replace(found, upper=found.value - 1e-6)  # rounding
    assert not level.crossed
    assert "crossed" not in str(level)
    few = {name: tensor[:5] for name, tensor in found.arrays().items()}
    assert not replace(found, **few).crossed  # too few to tell


def test_requests_that_make_no_sense_are_refused():
    pair = linear_gaussian(seed=1)
    with pytest.raises(inference.RequestError, match="sandwich: simulated data"):
        inference.log_marginal(
            pair.model, pair.guide, pair.sample(3), estimator="sandwich", plate=None
        )
    with pytest.raises(inference.RequestError, match="float32 or float64"):
        inference.log_marginal(
            pair.model, pair.guide, pair.sample(3), estimator="sandwich", precision="tf32"
        )


# By importance weights --------------------------------------------------------------------------


def cheap(pair, x, K, num_data=400, **settings):
    by = inference.Importance(num_samples=K, **settings)
    estimator = inference.Sandwich(num_data=num_data, by=by)
    return inference.log_marginal(pair.model, pair.guide, x, estimator=estimator, progress=False)


def is_upper_weight(upper, truth) -> bool:
    """E[exp(log p(x) - upper)] = 1, where the true latent stands for one of the K draws."""
    ratio = (truth - upper).exp()
    return agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(ratio)), ceiling=0.03)


PROPOSALS = [{}, {"proposal": "widened", "width": 1.3}, {"proposal": "prior"}]


@pytest.mark.parametrize("settings", PROPOSALS, ids=str)
def test_true_latents_among_the_draws(settings):
    pair = poor()
    x = pair.sample(5)
    K, num_data = 8, 1500
    found = cheap(pair, x, K, num_data, **settings)
    truth = simulated_truth(pair, x, num_data)
    for side in (truth - found.value, found.upper - truth):
        assert float(side.mean()) > 3 * float(side.std()) / math.sqrt(num_data)
    assert is_upper_weight(found.upper, truth)
    ratio = (found.value - truth).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(num_data), ceiling=0.06)
    assert f"sandwich with {K} importance samples" in str(found)
    assert found.summary()["num_temperatures"] is None


def test_wrong_places_of_the_true_latent_are_caught():
    """Counted beside K draws whose mean is still taken over K, and forgotten."""
    pair = poor()
    x = pair.sample(5)
    K, num_data = 8, 1500
    found = cheap(pair, x, K, num_data)
    truth = simulated_truth(pair, x, num_data)
    weight, lower = found.upper.exp() * K, found.value.exp() * K  # w* + rest; w_1 + rest
    assert is_upper_weight((weight / K).log(), truth)
    alone = cheap(pair, x, 1, num_data)  # w* itself
    rest = (weight - alone.upper.exp()).clamp_min(1e-300)
    assert not is_upper_weight(((alone.upper.exp() + lower) / K).log(), truth)
    assert not is_upper_weight((rest / (K - 1)).log(), truth)
    assert not is_upper_weight(found.value, truth)
    # One more draw and one more in the mean is the right thing again, for K + 1.
    assert is_upper_weight(((alone.upper.exp() + lower) / (K + 1)).log(), truth)


def test_more_draws_close_the_gap():
    pair = poor(shift=0.3)
    x = pair.sample(5)
    gaps = [cheap(pair, x, K).gap for K in (3, 30, 3000)]
    assert gaps[0] > 4 * gaps[1] > 16 * gaps[2] > 0
    assert gaps[2] < 0.005


def test_a_missed_mode_shows_as_a_gap_of_weights():
    """With the prior's own draws it closes: they meet both modes."""
    pair = two_modes()
    x = torch.zeros(4, 2, dtype=torch.float64)
    found = cheap(pair, x, 2000, 200)
    assert found.gap > 3 * found.gap_std_error
    assert found.gap > 1
    truth = simulated_truth(pair, x, 200)
    assert float((truth - found.value).mean()) > 0.5
    assert cheap(pair, x, 2000, 200, proposal="prior").gap < 0.01


def test_pieces_give_what_the_whole_gives(monkeypatch):
    pair = poor()
    x = pair.sample(5)
    monkeypatch.setitem(inference.tiles.TILE_NUMBERS, "cpu", 100 * x.shape[1])
    whole = cheap(pair, x, 430, 20)
    monkeypatch.setattr("inference.evidence.importance.WEIGHTS_AT_ONCE", 150)
    parts = cheap(pair, x, 430, 20)
    for name, expected in whole.arrays().items():
        assert torch.allclose(parts.arrays()[name], expected, atol=1e-10, rtol=0)


def test_cheap_bounds_of_any_pair():
    """A positive latent and a discrete one, two plates deep; and networks that take one batch."""
    table = torch.tensor([0.5, 2.0])

    def model(x):
        with pyro.plate("data", len(x)):
            kind = pyro.sample("kind", dist.Bernoulli(torch.tensor(0.3)))
            with pyro.plate("parts", 2, dim=-2):
                rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
                pyro.sample("x", dist.Poisson(rate * table[kind.long()]), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("kind", dist.Bernoulli(torch.full((len(x),), 0.4)))
            with pyro.plate("parts", 2, dim=-2):
                pyro.sample("rate", dist.Gamma(2.0 + x.T, 2.5))

    def folding(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z.view(len(x), 2) @ torch.ones(2, 3)  # no dimension of samples
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def centre(x):
        with pyro.plate("data", len(x)):
            loc = x.mean(1, keepdim=True).expand(-1, 2) / 3
            pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))

    def counts(x):
        """A Poisson of a Gamma's rate is negative binomial; its kind is summed over."""
        parts = [
            dist.GammaPoisson(3.0, 2.0 / scale).log_prob(x).sum(-1) + math.log(share)
            for scale, share in zip(table, (0.7, 0.3), strict=True)
        ]
        return torch.stack(parts).logsumexp(0)

    def gaussian(x):
        covariance = 2 * torch.ones(3, 3) + torch.eye(3)
        return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)

    for pair, x, truth in (
        ((model, guide), torch.ones(3, 2), counts),
        ((folding, centre), torch.ones(3, 3), gaussian),
    ):
        rows = x[torch.arange(1500) % 3]
        made = simulate(pair[0], (rows,), derived_seed("simulated", 0)).arguments[0]
        exact, gaps = truth(made).double(), []
        for K in (4, 400):
            by = inference.Importance(num_samples=K)
            estimator = inference.Sandwich(num_data=1500, by=by)
            found = inference.log_marginal(*pair, x, estimator=estimator, progress=False)
            gaps.append(found.gap)
            assert found.gap > -2 * found.gap_std_error
            assert is_upper_weight(found.upper, exact)
        assert torch.allclose(found.value.mean(), exact.mean(), atol=0.05)
        assert gaps[1] < 0.2 * gaps[0]
        assert gaps[1] < 0.05


def test_settings_by_name_and_by_value():
    default = inference.Sandwich()
    assert default.by.name == "ais"
    assert default.by.space == "latent"
    cheap = inference.Sandwich(by="importance")
    assert cheap.by == inference.Importance()
    assert inference.Sandwich.model_validate(cheap.model_dump()) == cheap
    assert inference.Sandwich(by={"num_temperatures": 30}).by.num_temperatures == 30
    with pytest.raises(ValueError, match="take 'guide', 'prior' or 'widened'"):
        inference.Sandwich(by=inference.Importance(proposal="defensive"))
    for wrong in ("smc", inference.SMC(), {"name": "smc"}, 3):
        with pytest.raises(ValueError, match="Choices: ais, importance"):
            inference.Sandwich(by=wrong)
    with pytest.raises(ValueError, match="num_samples"):
        inference.Sandwich(by={"name": "ais", "num_samples": 3})


def test_pairs_whose_true_latents_have_no_weight():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    planar = dist.transforms.Planar(2)

    def flow(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(x / 2, 0.7).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [planar]))

    def auxiliary(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(x / 2 + 0 * a[..., None], 0.7).to_event(1))

    estimator = inference.Sandwich(num_data=5, by=inference.Importance(num_samples=10))
    for guide, match in ((flow, "known at its own draws only .*gaussian"), (auxiliary, "site 'a'")):
        with pytest.raises(inference.PairError, match=match):
            inference.log_marginal(
                model, guide, torch.zeros(3, 2), estimator=estimator, progress=False
            )


def test_the_observed_argument_is_found_by_its_memory():
    """Two arguments of equal values: the one that the model observes is simulated."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    x, y = torch.zeros(5), torch.zeros(5)
    made = simulate(model, (x, y), 0).arguments
    assert torch.equal(made[0], x)
    assert bool((made[1] != 0).all())

    def copied(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y.clone())

    with pytest.raises(inference.PairError, match="2 of the arguments alike"):
        simulate(copied, (x, y), 0)
    assert bool((simulate(copied, (x, y + 1), 0).arguments[1] != 1).all())


def test_a_decoder_that_is_fed_with_x_is_refused():
    """p(x_t | x_<t, z) by teacher forcing: a run without the data is no draw from the model."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            before = torch.cat([torch.zeros(len(x), 1), x[:, :1]], 1)
            pyro.sample("x", dist.Normal(z + before, 1.0).to_event(1), obs=x)

    x = torch.randn(5, 2)
    with pytest.raises(inference.PairError, match=r"site 'x': its distribution looks at the data"):
        simulate(model, (x,), 0)


def test_a_pair_of_all_its_data_needs_as_many():
    loc = torch.zeros(6)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", loc), 1.0))

    with pytest.raises(inference.RequestError, match="give num_data=6"):
        inference.log_marginal(model, guide, torch.randn(6), estimator="sandwich", progress=False)


@pytest.mark.slow
def test_compiled_chains_go_both_ways_as_eager_ones(monkeypatch):
    """There and back are two kernels, for unlike numbers of chains; the last tile is not full."""
    pair = poor()
    x = pair.sample(5)
    monkeypatch.setitem(inference.tiles.TILE_NUMBERS, "cpu", 5 * 8 * 7)
    chains = inference.AIS(num_chains=8, num_temperatures=8, pilot_temperatures=6)
    estimator = inference.Sandwich(num_data=19, by=chains)
    eager, compiled = (
        inference.log_marginal(
            pair.model, pair.guide, x, estimator=estimator, engine=engine, progress=False
        )
        for engine in ("eager", "compiled")
    )
    assert compiled.engine == "compiled"
    for name, tensor in eager.arrays().items():
        assert torch.allclose(tensor, compiled.arrays()[name], atol=1e-9), name
