"""Importance draws from elsewhere than the guide: right, and what each of them reveals."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent

import inference
from inference.evidence.proposals import Defensive, Widened
from inference.pair import examine
from inference.particles import Scorer
from tests.exact_models import agrees, linear_gaussian, mixture_log_px

PROPOSALS = [
    {"proposal": "prior"},
    {"proposal": "defensive"},
    {"proposal": "defensive", "guide_share": 0.9},
    {"proposal": "widened", "width": 1.3},
]


def log_px(pair, x, K, **settings):
    estimator = inference.Importance(num_samples=K, **settings)
    return inference.log_marginal(pair.model, pair.guide, x, estimator=estimator, progress=False)


@pytest.mark.parametrize("settings", PROPOSALS, ids=lambda s: " ".join(map(str, s.values())))
def test_unbiased_on_the_weight_scale(settings):
    pair = linear_gaussian(seed=1, stretch=0.8)
    x = pair.sample(400, seed=3)
    truth = pair.log_px(x)
    found = log_px(pair, x, 2000, **settings)
    ratio = (found.value - truth).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.02)
    assert agrees(found.mean, float(truth.mean()), found.mc_std_error, ceiling=0.02)


def defensive_record(pair, x, K, share=0.5):
    arguments = (x,)
    scorer = Scorer(examine(pair.model, pair.guide, arguments, "data"), arguments)
    return Defensive(scorer, share, arguments)(arguments, K)


@pytest.mark.parametrize("share", [0.5, 0.8])
def test_defensive_weights_are_bounded(share):
    """w <= p(x|z) / (1 - a), whatever the guide: the plain weights of a narrow one are not."""
    pair = linear_gaussian(seed=1, stretch=0.2)
    x = pair.sample(50, seed=3)
    torch.manual_seed(0)
    record = defensive_record(pair, x, 1000, share)
    bound = record.log_likelihood - math.log(1 - share)
    assert bool((record.log_weight <= bound + 1e-9).all())
    plain = inference.log_weights(pair.model, pair.guide, x, num_particles=1000)
    drawn = pair.prior().sample((1000, len(x)))
    log_w = pair.prior().log_prob(drawn) - pair.q(x).log_prob(drawn)
    assert bool((log_w > -math.log(1 - share)).any())
    assert plain.log_weight.shape == record.log_weight.shape


def test_shares_are_kept_and_one_draw_is_of_either():
    pair = linear_gaussian(seed=1, delta=50.0)
    x = pair.sample(3)
    torch.manual_seed(0)
    for share, count in ((0.5, 10), (0.8, 16)):
        record = defensive_record(pair, x, 20, share)
        near = pair.q(x).log_prob(record.latents["z"]) > -100
        assert near.sum(0).tolist() == [count] * 3
    ones = [defensive_record(pair, x, 1).latents["z"] for _ in range(40)]
    near = torch.cat([pair.q(x).log_prob(one) > -100 for one in ones]).double()
    assert 0.2 < float(near.mean()) < 0.8


def two_modes(distance=9.0, L=2):
    """z ~ 1/2 N(-d, 1) + 1/2 N(d, 1) in L dimensions, seen through noise so wide that both stay;
    the guide knows one."""
    means = torch.zeros(2, L, dtype=torch.float64)
    means[:, 0] = torch.tensor([-distance, distance])
    eye = torch.eye(L, dtype=torch.float64)
    weights = torch.tensor([0.5, 0.5], dtype=torch.float64)
    psi = torch.full((L,), 400.0, dtype=torch.float64)

    class Pair:
        @staticmethod
        def model(x):
            parts = (
                dist.Categorical(weights),
                Independent(torch.distributions.Normal(means, 1.0), 1),
            )
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.MixtureSameFamily(*parts))
                pyro.sample("x", dist.Normal(z, psi.sqrt()).to_event(1), obs=x)

        @staticmethod
        def guide(x):
            variance = 1 / (1 + 1 / psi)
            loc = variance * (means[1] + x / psi)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, variance.sqrt()).to_event(1))

        @staticmethod
        def log_px(x):
            covariances = eye.expand(2, L, L)
            return mixture_log_px(x, weights, means, covariances, eye, torch.zeros(L), psi)

    return Pair


def test_a_far_missed_mode_is_seen_by_the_defensive_proposal_alone():
    pair = two_modes()
    x = torch.zeros(20, 2, dtype=torch.float64)
    truth = pair.log_px(x)
    plain = log_px(pair, x, 2000)
    assert bool((plain.khat < 0).all())  # the weights look perfect
    assert torch.allclose(plain.value, truth - math.log(2), atol=0.01)
    defensive = log_px(pair, x, 2000, proposal="defensive")
    assert agrees(defensive.value, truth, defensive.std_error, ceiling=0.05)
    annealed = inference.log_marginal(
        pair.model, pair.guide, x, estimator=inference.AIS(num_temperatures=50), progress=False
    )
    assert annealed.num_flagged == 0  # nor do chains from the guide see it
    assert torch.allclose(annealed.value, truth - math.log(2), atol=0.05)


def widened(fn, width):
    def guide(x):
        pyro.sample("z", fn)

    trace = pyro.poutine.trace(Widened(width)(guide)).get_trace(None)
    return trace.nodes["z"]["fn"]


def test_widened_guides():
    loc, tril = torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 0.0], [0.5, 2.0]])
    z = torch.randn(7, 2)
    wide = dist.MultivariateNormal(loc, scale_tril=3 * tril)
    for fn, truth in (
        (dist.Normal(loc, 0.5).to_event(1), dist.Normal(loc, 1.5).to_event(1)),
        (dist.MultivariateNormal(loc, scale_tril=tril), wide),
        (
            dist.LowRankMultivariateNormal(loc, tril[:, :1], torch.ones(2)),
            dist.LowRankMultivariateNormal(loc, 3 * tril[:, :1], 9 * torch.ones(2)),
        ),
        (dist.StudentT(4.0, loc, 1.0).to_event(1), dist.StudentT(4.0, loc, 3.0).to_event(1)),
    ):
        assert torch.allclose(widened(fn, 3.0).log_prob(z), truth.log_prob(z), atol=1e-5)
    flow = dist.TransformedDistribution(
        dist.Normal(loc, 0.5).to_event(1), [dist.transforms.ExpTransform()]
    )
    truth = dist.TransformedDistribution(
        dist.Normal(loc, 1.5).to_event(1), [dist.transforms.ExpTransform()]
    )
    assert torch.allclose(widened(flow, 3.0).log_prob(z.exp()), truth.log_prob(z.exp()), atol=1e-5)
    with pytest.raises(inference.PairError, match="site 'z' of the guide draws from Gamma"):
        widened(dist.Gamma(torch.ones(2), 1.0).to_event(1), 2.0)


@pytest.mark.parametrize("kind", ["AutoNormal", "AutoMultivariateNormal"])
def test_guides_known_at_their_own_draws_only_are_refused(kind, own_store):
    """An autoguide draws beside its latents: scored elsewhere its density would be 0."""
    import pyro.infer.autoguide as autoguide

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.randn(6)
    guide = getattr(autoguide, kind)(model)
    guide(x)
    own = {"plate": None, "progress": False}
    with pytest.raises(inference.PairError, match=r"its own draws only.*proposal 'guide'"):
        inference.log_marginal(
            model, guide, x, estimator=inference.Importance(proposal="defensive"), **own
        )


@pytest.mark.parametrize(
    ("share", "count", "of_guide"), [(0.95, 10, 9), (0.05, 10, 1), (0.5, 2, 1)]
)
def test_of_both_at_least_one(share, count, of_guide):
    pair = linear_gaussian(seed=1, delta=50.0)
    x = pair.sample(3)
    record = defensive_record(pair, x, count, share)
    near = pair.q(x).log_prob(record.latents["z"]) > -100
    assert near.sum(0).tolist() == [of_guide] * 3


def test_widened_transforms_keep_their_support():
    """LogNormal is a transformed Gaussian with a constructor of its own."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(torch.tensor(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.LogNormal(torch.tensor(-0.3), 0.5))

    x = torch.tensor([0.5, 1.0, 2.0])
    estimators = (
        inference.Importance(proposal="widened", width=2.0, num_samples=20_000),
        inference.Quadrature(),
    )
    found, truth = (
        inference.log_marginal(model, guide, x, estimator=each, progress=False)
        for each in estimators
    )
    assert agrees(found.value, truth.value, found.std_error, ceiling=0.05)
