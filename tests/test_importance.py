"""Importance-weighted log p(x) against closed forms; each check also meets a wrong estimator.

Statistical checks use fixed seeds and 5 standard errors: about 7,000 comparisons in all, so the
chance that a right estimator failed at a fresh seed is about 4e-3 with normal errors.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import inference
import pyro_vae as pv
from inference import tiles
from inference.evidence import streaming
from tests.exact_models import (
    LinearGaussian,
    agrees,
    all_binary,
    linear_gaussian,
    mixture_log_px,
    z_scores_are_normal,
)


def log_px(model, guide, x, K, seed=0, **options):
    return inference.log_marginal(
        model,
        guide,
        x,
        estimator=inference.Importance(num_samples=K),
        seed=seed,
        progress=False,
        **options,
    )


# Exact k <= 0.3 and exact ESS >= K/10, each judged by its closed form, never by its estimate.
GUIDES = {
    "wide": {"stretch": 1.6},
    "shifted": {"stretch": 1.2, "delta": 0.6},
    "narrow": {"stretch": 0.8, "delta": 0.2},
    "five latents": {"stretch": 1.5, "L": 5, "D": 7},
}


@pytest.mark.parametrize("name", GUIDES)
def test_matches_the_closed_form_with_honest_errors(name):
    pair = linear_gaussian(seed=1, **GUIDES[name])
    assert pair.khat() <= 0.3
    assert pair.ess_share() >= 0.1
    x = pair.sample(1000, seed=2)
    truth, K = pair.log_px(x), 400
    found = log_px(pair.model, pair.guide, x, K)
    # The population's error is sqrt((1/ESS share - 1) / K): the estimate's own is near it.
    claimed = math.sqrt(pair.chi_square() / K)
    assert agrees(found.value, truth, found.std_error, ceiling=3 * claimed)
    assert z_scores_are_normal((found.value - truth) / found.std_error)
    assert agrees(found.mean, float(truth.mean()), found.mc_std_error, ceiling=0.01)
    assert float(found.ess.mean()) == pytest.approx(K * pair.ess_share(), rel=0.1)
    assert found.elbo_mean == pytest.approx(float(truth.mean()) - pair.kl(), abs=0.02)
    # Unbiasedness lives on the weight scale.
    ratio = (found.value - truth).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.005)


def weights_of(pair, x, K, seed=0):
    torch.manual_seed(seed)
    return inference.log_weights(pair.model, pair.guide, x, num_particles=K)


@pytest.fixture(scope="module")
def ordinary():
    """A pair, data, their true log p(x), and log w `[K, N]`."""
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(300, seed=3)
    return pair, x, pair.log_px(x), weights_of(pair, x, 400)


def judge(log_weight, truth) -> bool:
    """The checks above, on a bare matrix of log-weights `[N, K]`."""
    rounding = torch.zeros(len(log_weight), dtype=torch.float64)
    state = streaming.update(streaming.init(*log_weight.shape), log_weight, rounding)
    found = streaming.finish(state)
    ratio = (found["value"] - truth).exp()
    return (
        agrees(found["value"], truth, found["std_error"], ceiling=0.1)
        and z_scores_are_normal((found["value"] - truth) / found["std_error"])
        and agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(truth)), ceiling=0.01)
    )


def test_the_checks_accept_the_right_weights(ordinary):
    _, _, truth, record = ordinary
    assert judge(record.log_weight.T, truth)


def test_a_dropped_constant_is_caught(ordinary):
    _, x, truth, record = ordinary
    without_2pi = record.log_weight + 0.5 * x.shape[1] * math.log(2 * math.pi)
    assert not judge(without_2pi.T, truth)


def test_dividing_by_another_number_of_samples_is_caught(ordinary):
    _, _, truth, record = ordinary
    assert not judge(record.log_weight.T + math.log(400 / 500), truth)


def test_one_weight_for_the_whole_batch_is_caught(ordinary):
    """Weights multiplied over the batch, as in Pyro's own importance routines."""
    _, _, truth, record = ordinary
    joint = record.log_weight.sum(1) - truth.sum() + truth.mean()
    assert not judge(joint.expand(len(truth), -1), truth)


def test_scaled_log_probs_are_caught(ordinary):
    """A plate that declares 3,000 data scales each site tenfold; evidence must not."""
    pair, x, truth, _ = ordinary

    def model(x):
        with pyro.plate("data", 10 * len(x), subsample_size=len(x)):
            pyro.sample("x", pair.likelihood(pyro.sample("z", pair.prior())), obs=x)

    def guide(x):
        with pyro.plate("data", 10 * len(x), subsample_size=len(x)):
            pyro.sample("z", pair.q(x))

    torch.manual_seed(0)
    rows = []
    for _ in range(50):
        q = poutine.trace(guide).get_trace(x)
        p = poutine.trace(poutine.replay(model, trace=q)).get_trace(x)
        p.compute_log_prob()
        q.compute_log_prob()
        rows.append(p.nodes["z"]["log_prob"] + p.nodes["x"]["log_prob"] - q.nodes["z"]["log_prob"])
    assert not judge(torch.stack(rows, 1), truth)
    found = log_px(model, guide, x, 400)
    assert agrees(found.value, truth, found.std_error, ceiling=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_exact_posterior_is_exact(dtype):
    pair = linear_gaussian(D=20, L=4, seed=5, dtype=dtype)
    x = pair.sample(50)
    for K in (2, 300):
        found = log_px(pair.model, pair.guide, x, K)
        assert found.value.dtype == torch.float64
        assert torch.allclose(found.value, pair.log_px(x), atol=1e-4, rtol=0)
        assert torch.equal(found.std_error, torch.zeros(50).double())
        assert bool((found.khat == -math.inf).all())
        assert torch.allclose(found.ess, torch.full((50,), float(K)).double())


def test_a_guide_a_little_off_is_not_called_exact():
    pair = linear_gaussian(D=20, L=4, seed=5, stretch=1.02)
    found = log_px(pair.model, pair.guide, pair.sample(50), 300)
    assert bool((found.std_error > 0).all())
    assert not bool((found.khat == -math.inf).any())


def many_terms(log_scale, count):
    """One joint evidence of `count` data far from 0, with a guide `log_scale` nats off."""

    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0 * z, 1e-3), obs=x)

    def guide(x):
        pyro.sample("z", dist.Normal(0.0, math.exp(log_scale)))

    return model, guide, 0.1 + torch.zeros(count)


def test_rounding_hides_no_bad_guide():
    """log p = -5e3 of each datum: a sum of moduli would let weights differ by tens of nats."""
    model, guide, x = many_terms(0.5, 10_000)
    found = log_px(model, guide, x, 500, plate=None)
    assert float(found.std_error) > 0.01
    assert float(found.khat) > -math.inf
    assert "Rounding of about" in str(found)
    assert "float64" in found.notes[0]
    # In float64 there is nothing to note.
    found = log_px(model, guide, x.double(), 500, plate=None)
    assert found.notes == ()
    assert float(found.std_error) > 0.01


def test_a_joint_sum_is_kept_in_float64():
    """Ten thousand terms whose float32 sum has steps of 4 nats."""
    model, guide, x = many_terms(0.0, 10_000)
    found = log_px(model, guide, x, 50, plate=None)
    each = torch.distributions.Normal(0.0, 1e-3).log_prob(x[:1])
    assert float(found.value) == pytest.approx(10_000 * float(each), abs=0.01)


def test_what_cannot_be_known_is_said_and_why():
    """p(x) = 0 under every draw; ties; too few samples; one joint evidence."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(0.5 * z, 1.0), obs=x)
            pyro.factor("f", torch.where(x > 3, -math.inf, 0.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.5 + 0 * x))

    x = torch.tensor([0.0, 1.0, 2.0, 4.0])
    said = str(log_px(model, guide, x[:3], 400))
    assert "unknown for 3 data: too many of the largest weights are equal (ties)" in said
    assert "too few" not in said
    assert "unknown for 3 data: too few samples" in str(log_px(model, guide, x[:3], 10))
    said = str(log_px(model, guide, x, 400))
    assert "nan" not in said
    assert "standard error and bias are unknown" in said
    assert "unknown for 1 data: every weight is 0" in said
    joint = str(log_px(model, guide, x[:3], 1, plate=None))
    assert joint.startswith("joint log p(x) = ")
    assert "per datum" not in joint
    assert "by importance with 1 sample from the guide." in joint
    assert "with 1 sample from the guide each." in str(log_px(model, guide, x[:3], 1))


def test_more_samples_raise_the_expected_value():
    """The bias is about -1/2 s^2: visible at K = 2, where it is -chi^2/4 to leading order."""
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(4000, seed=4)
    few, more = (log_px(pair.model, pair.guide, x, K) for K in (2, 64))
    gap = few.value - pair.log_px(x)
    assert float(gap.mean()) < -5 * float(gap.std()) / math.sqrt(len(x))
    assert few.mean < more.mean
    assert agrees(more.mean, float(pair.log_px(x).mean()) + more.bias_estimate, more.mc_std_error)


@pytest.mark.parametrize(("at_once", "shape"), [(150, (1, 86)), (200, (1, 172)), (1500, (3, 430))])
def test_samples_come_in_tiles_and_none_is_lost(at_once, shape, monkeypatch):
    """What the estimate is made of, seen on its way: small pieces, each datum's in its place."""
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(70)
    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 100 * x.shape[1])
    pieces = []
    update = streaming.update

    def spy(state, log_weight, rounding):
        pieces.append(log_weight.clone())  # its memory is used again
        return update(state, log_weight, rounding)

    monkeypatch.setattr(streaming, "update", spy)
    monkeypatch.setattr("inference.evidence.importance.WEIGHTS_AT_ONCE", at_once)
    found = log_px(pair.model, pair.guide, x, 430)
    assert found.tile == (1, 86)
    assert pieces[0].shape == shape
    blocks, held = [[]], 0
    for piece in pieces:
        blocks[-1].append(piece)
        held += piece.shape[1]
        if held == 430:
            blocks, held = [*blocks, []], 0
    assert blocks.pop() == []
    log_weight = torch.cat([torch.cat(block, 1) for block in blocks])
    assert log_weight.shape == (70, 430)
    expected = log_weight.logsumexp(1) - math.log(430)
    assert torch.allclose(found.value, expected, atol=1e-10, rtol=0)
    assert torch.allclose(found.elbo, log_weight.mean(1), atol=1e-10, rtol=0)
    assert torch.allclose(found.khat, inference.pareto_khat(log_weight), atol=1e-10, rtol=0)
    assert agrees(found.value, pair.log_px(x), found.std_error, ceiling=0.1)


# Mixture priors ----------------------------------------------------------------------------


def mixture_pair(C=3, L=2, D=4, seed=0):
    """A hand-written pair with a MixtureSameFamily prior, and its log p(x)."""
    g = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    logits, means, scales = randn(C), 2 * randn(C, L), 0.5 * randn(C, L).exp()
    W, mu, psi = randn(D, L), randn(D), 0.5 + randn(D).square()

    def prior():
        parts = dist.Normal(means, scales).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=logits), parts)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z @ W.T + mu, psi.sqrt()).to_event(1), obs=x)

    # The posterior under the prior that forgets its components, and wider.
    broad = torch.diag((means.square() + scales.square()).mean(0))
    V = torch.linalg.inv(torch.linalg.inv(broad) + W.T @ (W / psi[:, None]))

    def guide(x):
        loc = ((x - mu) / psi) @ W @ V
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, 1.5 * V))

    def sample(count):
        torch.manual_seed(seed)
        z = prior().sample((count,))
        return z @ W.T + mu + psi.sqrt() * torch.randn(count, D, dtype=torch.float64)

    def truth(x):
        covariances = torch.diag_embed(scales.square())
        return mixture_log_px(x, logits.softmax(0), means, covariances, W, mu, psi)

    return model, guide, sample, truth


def test_mixture_prior_against_its_closed_form():
    model, guide, sample, truth = mixture_pair()
    x = sample(200)
    found = log_px(model, guide, x, 1000)
    assert agrees(found.value, truth(x), found.std_error, ceiling=0.3)
    assert agrees(found.mean, float(truth(x).mean()), found.mc_std_error, ceiling=0.01)
    # Wrong: another component's density is not this model's.
    assert not agrees(found.mean, float(truth(x).mean()) + 0.1, found.mc_std_error)


def linear_vae(prior, guide="mean_field", D=5, L=2, sigma=0.7, seed=0):
    """A VAE with linear networks; its decoder's W `[D, L]` and mu `[D]`."""
    torch.manual_seed(seed)
    vae = pv.VAE(
        data_shape=(D,),
        latent_dim=L,
        prior=prior,
        guide=guide,
        likelihood=pv.likelihoods.Gaussian(sigma="fixed", scale=sigma),
        encoder="linear",
        decoder="linear",
    )
    zero = torch.zeros(L)
    with torch.no_grad():
        mu = vae.decoder(zero)
        W = (vae.decoder(torch.eye(L)) - mu).T
    return vae, W, mu, torch.full((D,), sigma**2)


def fit_guide(vae, x, epochs=40):
    """Only the guide learns: the model's parameters are hidden from the optimizer."""
    inference.fit(
        poutine.block(vae.model, hide_types=["param"]),
        vae.guide,
        x,
        epochs=epochs,
        batch_size=len(x),
        learning_rate=0.03,
        progress=False,
        device="cpu",
    )


def test_gaussian_mixture_vae_against_its_closed_form():
    vae, W, mu, psi = linear_vae(pv.priors.GaussianMixture(components=3, spread=1.5))
    torch.manual_seed(1)
    with torch.no_grad():
        x = vae.decode(vae.prior.distribution().expand([200]).sample()).sample()
    parts = vae.prior.distribution().components.base_dist
    truth = mixture_log_px(
        x,
        vae.prior.logits.softmax(0),
        parts.loc,
        torch.diag_embed(parts.scale.detach().square()),
        W,
        mu,
        psi,
    )
    found = log_px(vae.model, wide_guide(vae, W, mu, psi), x, 1000)
    assert agrees(found.value, truth, found.std_error, ceiling=0.3)
    assert agrees(found.mean, float(truth.mean()), found.mc_std_error, ceiling=0.02)
    # Wrong: a standard normal prior in place of the mixture.
    one = torch.ones(1), torch.zeros(1, 2), torch.eye(2).unsqueeze(0)
    assert not agrees(found.value, mixture_log_px(x, *one, W, mu, psi), found.std_error)


@pytest.mark.parametrize("guide", ["mean_field", "full_rank"])
def test_vamp_prior_vae_is_the_mixture_it_says(guide):
    vae, W, mu, psi = linear_vae(pv.priors.VampPrior(components=4, init="noise"), guide)
    torch.manual_seed(1)
    with torch.no_grad():
        vae.prior.pseudo_inputs.normal_(std=1.5)
        x = vae.decode(vae.prior.distribution().expand([200]).sample()).sample()
        q = vae.encode(vae.prior.pseudo_inputs)
        means = q.mean
        tril = q.scale_tril if guide == "full_rank" else torch.diag_embed(q.base_dist.scale)
        covariances = tril.double() @ tril.double().mT
    truth = mixture_log_px(x, torch.full((4,), 0.25), means, covariances, W, mu, psi)
    found = log_px(vae.model, wide_guide(vae, W, mu, psi), x, 1000)
    assert agrees(found.value, truth, found.std_error, ceiling=0.3)
    assert agrees(found.mean, float(truth.mean()), found.mc_std_error, ceiling=0.02)
    # Wrong: components at the guide's means only, without their spread.
    points = mixture_log_px(x, torch.full((4,), 0.25), means, 0.01 * covariances, W, mu, psi)
    assert not agrees(found.value, points, found.std_error)


def wide_guide(vae, W, mu, psi):
    """A guide that misses no mode: the posterior under the mixture's mean and covariance, wider."""
    with torch.no_grad():
        mixture = vae.prior.distribution()
        draws = mixture.expand([2000]).sample()
        center, spread = draws.mean(0), torch.cov(draws.T)
        precision = torch.linalg.inv(spread)
        V = torch.linalg.inv(precision + W.T @ (W / psi[:, None]))

    def guide(x):
        loc = (((x - mu) / psi) @ W + center @ precision) @ V
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, 2.0 * V))

    return guide


# Discrete data: probabilities sum to one ---------------------------------------------------


@pytest.mark.parametrize("latent_dim", [1, 2])
def test_bernoulli_probabilities_sum_to_one(latent_dim):
    torch.manual_seed(0)
    vae = pv.VAE(data_shape=(8,), latent_dim=latent_dim, decoder="linear", encoder="linear")
    x = all_binary(8)
    fit_guide(vae, x, epochs=60)
    found = log_px(vae.model, vae.guide, x, 2000)
    p = found.value.exp()
    error = float((p * found.std_error).square().sum().sqrt())
    assert agrees(p.sum(), 1.0, error, ceiling=0.01)
    # Wrong: a continuous Bernoulli's constant (at least ln 2 a pixel) left in.
    assert not agrees((p * 2**8).sum(), 1.0, error * 2**8)
    # A grid over the latents says the same, datum by datum.
    grid = grid_log_px(vae, x, latent_dim, points=81)
    finer = grid_log_px(vae, x, latent_dim, points=161)
    assert torch.allclose(grid, finer, atol=1e-6)
    assert float(finer.exp().sum()) == pytest.approx(1.0, abs=1e-6)
    assert agrees(found.value, finer, found.std_error, ceiling=0.3)


def grid_log_px(vae, x, latent_dim, points):
    axis = torch.linspace(-7, 7, points, dtype=torch.float64)
    z = torch.cartesian_prod(*[axis] * latent_dim).reshape(-1, latent_dim)
    with torch.no_grad():
        logits = vae.decoder(z.float()).double()  # [G, D]
        log_x = -torch.nn.functional.softplus(logits).sum(-1) + x.double() @ logits.T
        log_z = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
    return torch.logsumexp(log_x + log_z, 1) + latent_dim * math.log(float(axis[1] - axis[0]))


# Numbers that cannot be weights ------------------------------------------------------------


def test_a_nan_density_is_named():
    pair = linear_gaussian()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            # NaN for data beyond the first look only.
            loc = (z @ pair.W.T) * torch.where(x[:, :1] > 100, math.nan, 1.0)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    x = pair.sample(20)
    x[11] = 200.0
    with pytest.raises(inference.NonFiniteError, match=r"datum 11 .*site 'x' of the model"):
        log_px(model, pair.guide, x, 10)


def test_an_infinite_density_is_no_estimate():
    pair = linear_gaussian()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", pair.prior())
            pyro.sample("x", pair.likelihood(z), obs=x)
            pyro.factor("f", torch.where(x[:, 0] > 100, math.inf, 0.0))

    x = pair.sample(20)
    x[7] = 200.0
    with pytest.raises(inference.NonFiniteError, match=r"datum 7 .*site 'f'.*inf"):
        log_px(model, pair.guide, x, 10)


def test_requests_are_checked():
    pair = linear_gaussian()
    x = pair.sample(5)
    with pytest.raises(ValueError, match="num_samples"):
        inference.Importance(num_samples=0)
    with pytest.raises(ValueError, match="samples"):
        inference.Importance(samples=10)
    with pytest.raises(inference.RequestError, match=r"'aIs' is unknown\. Choices: importance"):
        inference.log_marginal(pair.model, pair.guide, x, estimator="aIs")


def test_exact_formulas_agree_with_sampling():
    """The closed forms of `exact_models` themselves, by an independent route."""
    pair = linear_gaussian(seed=3, stretch=1.4, delta=0.5)
    x = pair.sample(1, seed=1)
    joint = torch.distributions.MultivariateNormal(
        pair.mu, pair.W @ pair.W.T + torch.diag(pair.psi)
    )
    assert torch.allclose(pair.log_px(x), joint.log_prob(x))
    posterior = torch.distributions.MultivariateNormal(pair.mean(x), pair.V)
    torch.manual_seed(0)
    q = pair.q(x)
    log_ratio = lambda z: posterior.log_prob(z) - q.log_prob(z)  # noqa: E731
    z = q.sample((200_000,))
    for n in (1, 2):
        ratio = (n * log_ratio(z)).exp()
        assert agrees(ratio.mean(), pair.moment(n), ratio.std() / math.sqrt(len(z)), ceiling=0.02)
    gap = -log_ratio(z)
    assert agrees(gap.mean(), pair.kl(), gap.std() / math.sqrt(len(z)), ceiling=0.01)
    narrow = LinearGaussian(pair.W, pair.mu, pair.psi, S=0.4 * pair.V)
    assert narrow.khat() == pytest.approx(0.6)
    assert narrow.moment(2) == math.inf


# Discrete latents ----------------------------------------------------------------------------


def states_pair(num_states, noise, seed=0):
    """z of some states, x ~ N(z, 1), log p(x) by enumeration, and a guide that is `noise` off."""
    g = torch.Generator().manual_seed(seed)
    prior = torch.randn(num_states, generator=g, dtype=torch.float64).log_softmax(0)
    off = noise * torch.randn(num_states, generator=g, dtype=torch.float64)
    places = torch.arange(num_states, dtype=torch.float64)

    def joint(x):
        return prior + dist.Normal(places, 1.0).log_prob(x[:, None])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=prior))
            pyro.sample("x", dist.Normal(z.double(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=joint(x) + off))

    x = torch.linspace(-1, num_states, 100, dtype=torch.float64)
    return model, guide, x, joint(x).logsumexp(1)


@pytest.mark.parametrize("num_states", [2, 3, 9, 30])
def test_few_distinct_weights_are_judged_by_their_effective_sample_size(num_states):
    """k-hat says nothing of ties: at most 5% of good data may be flagged."""
    model, guide, x, truth = states_pair(num_states, 0.5)
    found = log_px(model, guide, x, 2000)
    assert float(found.ess.min()) > 0.5 * 2000
    assert agrees(found.value, truth, found.std_error.clamp_min(1e-12), ceiling=0.05)
    assert found.num_khat_unknown > 90
    assert found.num_khat_bad == 0
    assert found.num_flagged <= 5
    said = str(found)
    assert "k-hat exceeds" not in said
    assert "at least" not in said
    assert "the effective sample size tells: it is 10% of the samples or more" in said
    assert found.flag == "k-hat is too large"  # what a flag would stand for


def rare_state(share):
    """Half of p(z|x) lies in a state that the guide gives `share`."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.2, 0.5])))
            pyro.sample("x", dist.Normal(0.0 * z, 1.0), obs=x)

    def guide(x):
        probs = torch.tensor([0.6 * (1 - share), 0.4 * (1 - share), share])
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(probs.expand(len(x), 3)))

    return model, guide, torch.zeros(60)


def test_a_state_that_the_guide_gives_too_little_is_flagged_where_it_is_drawn():
    """Of 5000 draws some five are there: weights of 500, and an effective sample size near ten."""
    model, guide, x = rare_state(1e-3)
    found = log_px(model, guide, x, 5000)
    drawn = found.value > math.log(0.51) + float(dist.Normal(0.0, 1.0).log_prob(x[0]))
    assert 55 <= int(drawn.sum()) <= 60  # exp(-5) of 60 data have no such draw
    assert torch.equal(found.flagged, drawn)
    said = str(found)
    assert f"for {int(drawn.sum())} data it is below 10% of the samples" in said
    assert "standard error at least" in said
    assert "exceeds" not in said
    assert found.flag == found.summary()["flag"] == "k-hat is unknown"


def test_a_state_that_is_never_drawn_is_not_seen():
    """As the docstring says: log 2 of evidence are missing, and nothing tells."""
    model, guide, x = rare_state(1e-12)
    found = log_px(model, guide, x, 5000)
    truth = torch.distributions.Normal(0.0, 1.0).log_prob(x).double()
    assert torch.allclose(found.value, truth - math.log(2), atol=1e-4)
    assert not found.flagged.any()
    assert "never drawn is not seen" in " ".join(inference.Importance.__doc__.split())


def test_a_flag_says_which_of_its_reasons_holds():
    pair = linear_gaussian(seed=1, stretch=0.1)
    bad = log_px(pair.model, pair.guide, pair.sample(20), 500)
    assert bad.num_flagged == bad.num_khat_bad > 0
    assert bad.flag == "k-hat is too large"
    few = log_px(pair.model, pair.guide, pair.sample(20), 15)
    assert bool(few.flagged.all())
    assert few.flag == "k-hat is unknown"
    assert "effective sample size tells" not in str(few)
