"""The ELBO and its KL terms against closed forms and against Monte Carlo."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn

import inference
import pyro_vae as pv
from tests.exact_models import agrees, linear_gaussian


def randn(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def tril(*shape):
    """Well-conditioned lower triangular factors `[*shape]`."""
    t = 0.4 * randn(*shape).tril(-1)
    return t + torch.diag_embed((0.3 * randn(*shape[:-1])).exp())


FAMILIES = {
    "univariate": lambda: (
        dist.Normal(randn(3), randn(3).exp()),
        dist.Normal(randn(3), randn(3).exp()),
    ),
    "diagonal": lambda: (
        dist.Normal(randn(3, 4), randn(3, 4).exp()).to_event(1),
        dist.Normal(randn(3, 4), randn(3, 4).exp()).to_event(1),
    ),
    "full covariance": lambda: (
        dist.MultivariateNormal(randn(3, 4), scale_tril=tril(3, 4, 4)),
        dist.MultivariateNormal(randn(3, 4), scale_tril=tril(3, 4, 4)),
    ),
    "full against diagonal": lambda: (
        dist.MultivariateNormal(randn(3, 4), scale_tril=tril(3, 4, 4)),
        dist.Normal(randn(3, 4), randn(3, 4).exp()).to_event(1),
    ),
    "diagonal against full": lambda: (
        dist.Normal(randn(3, 4), randn(3, 4).exp()).to_event(1),
        dist.MultivariateNormal(randn(3, 4), scale_tril=tril(3, 4, 4)),
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_analytic_kl_against_monte_carlo(family):
    torch.manual_seed(0)
    q, p = FAMILIES[family]()
    exact = inference.analytic_kl(q, p)
    z = q.sample((100_000,))
    ratio = q.log_prob(z) - p.log_prob(z)
    error = ratio.std(0) / math.sqrt(len(z))
    assert exact.shape == q.batch_shape
    assert agrees(ratio.mean(0), exact, error, ceiling=0.05 * float(exact.max()) + 0.05)
    # Wrong: the other direction.
    assert not agrees(ratio.mean(0), inference.analytic_kl(p, q), error)


def test_kl_by_hand():
    """ln(s_p/s_q) + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2."""
    found = inference.analytic_kl(dist.Normal(1.0, 0.5), dist.Normal(0.0, 2.0))
    assert float(found) == pytest.approx(math.log(4) + (0.25 + 1) / 8 - 0.5)


def test_kinds_without_a_closed_form():
    mixture = dist.MixtureSameFamily(
        dist.Categorical(logits=torch.zeros(2)), dist.Normal(torch.zeros(2), 1.0)
    )
    assert inference.analytic_kl(dist.Normal(0.0, 1.0), mixture) is None
    # A point mass: Pyro's form would leave out its log_density.
    point = dist.Delta(torch.tensor(0.3), log_density=torch.tensor(2.0))
    assert inference.analytic_kl(point, dist.Normal(0.0, 1.0)) is None


PAIRS = {
    "wide": {"stretch": 1.6},
    "shifted": {"stretch": 1.3, "delta": 0.6},
    "narrow": {"stretch": 0.3},
}


@pytest.mark.parametrize("name", PAIRS)
def test_elbo_is_log_px_minus_the_exact_kl(name):
    pair = linear_gaussian(seed=1, **PAIRS[name])
    x = pair.sample(400)
    found = inference.bound(pair.model, pair.guide, x, num_samples=50)
    truth = float(pair.log_px(x).mean()) - pair.kl()
    assert found.kl_kind == {"z": "analytic"}
    assert agrees(found.elbo, truth, found.elbo_std_error, ceiling=0.05)
    assert found.elbo == pytest.approx(found.reconstruction - sum(found.kl.values()))
    assert found.per_datum.shape == (400,)
    assert float(found.per_datum.mean()) == pytest.approx(found.elbo)
    # Wrong: log p(x) itself, or a KL counted twice.
    assert not agrees(found.elbo, truth + pair.kl(), found.elbo_std_error)
    assert not agrees(found.elbo - found.kl["z"], truth, found.elbo_std_error)
    # The KL itself, in closed form: every datum has its own.
    q = pair.q(x)
    assert found.kl["z"] == pytest.approx(
        float(inference.analytic_kl(q, pair.prior().expand(q.batch_shape)).mean())
    )
    assert "KL(z)" in str(found)
    assert "(analytic)" in str(found)


def test_its_error_is_the_spread_over_seeds():
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(20)
    runs = [inference.bound(pair.model, pair.guide, x, num_samples=8, seed=s) for s in range(40)]
    spread = torch.tensor([r.elbo for r in runs]).std()
    claimed = torch.tensor([r.elbo_std_error for r in runs]).mean()
    assert float(spread) == pytest.approx(float(claimed), rel=0.3)


def test_one_sample_has_no_error():
    pair = linear_gaussian(seed=1, stretch=1.6)
    found = inference.bound(pair.model, pair.guide, pair.sample(5), num_samples=1)
    assert math.isfinite(found.elbo)
    assert math.isnan(found.elbo_std_error)


@pytest.mark.parametrize("num_samples", [0, -1, 2.5, True, None])
def test_numbers_of_samples_that_are_none(num_samples):
    pair = linear_gaussian(seed=1, stretch=1.6)
    with pytest.raises(inference.RequestError, match=f"num_samples: got {num_samples}; expected"):
        inference.bound(pair.model, pair.guide, pair.sample(5), num_samples=num_samples)


def test_a_model_that_observes_nothing_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(inference.PairError, match="the model observes no site") as caught:
        inference.bound(model, guide, torch.zeros(5))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("prior", "guide", "kind"),
    [
        ("standard_normal", "mean_field", "analytic"),
        ("standard_normal", "full_rank", "analytic"),
        ("gaussian_mixture", "mean_field", "Monte Carlo"),
        ("vamp", "full_rank", "Monte Carlo"),
        ("standard_normal", "iaf", "Monte Carlo"),
    ],
)
def test_kl_kinds_of_declared_models(prior, guide, kind):
    torch.manual_seed(0)
    if prior == "vamp":
        prior = pv.priors.VampPrior(components=5, init="noise")
    vae = pv.VAE(data_shape=(6,), latent_dim=3, prior=prior, guide=guide)
    x = torch.bernoulli(torch.full((30, 6), 0.5))
    found = inference.bound(vae.model, vae.guide, x, num_samples=200)
    assert found.kl_kind == {"z": kind}
    assert kind in str(found)
    # The mean log-weight is the same bound by another route.
    weights = inference.log_marginal(
        vae.model,
        vae.guide,
        x,
        estimator=inference.Importance(num_samples=400),
        seed=1,
        progress=False,
    )
    assert found.elbo == pytest.approx(weights.elbo_mean, abs=0.15)
    assert found.elbo < weights.mean


def hierarchical():
    """z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1): x ~ N(0, 3)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(0.0, 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, math.sqrt(2 / 3)))
            pyro.sample("z2", dist.Normal(z1 / 2, math.sqrt(1 / 2)))

    return model, guide


def test_two_levels_sampled_in_opposite_order():
    """KL(q(z1|x) || p(z1|z2)) in closed form would hold z2 fixed, which the guide draws from z1."""
    model, guide = hierarchical()
    torch.manual_seed(0)
    x = math.sqrt(3) * torch.randn(300)
    found = inference.bound(model, guide, x, num_samples=100)
    assert found.kl_kind == {"z1": "Monte Carlo", "z2": "analytic"}
    truth = torch.distributions.Normal(0.0, math.sqrt(3)).log_prob(x.double()).mean()
    # The guide is the exact posterior, so the bound is log p(x); its terms still have noise.
    assert agrees(found.elbo, truth, found.elbo_std_error, ceiling=0.02)


def test_two_levels_sampled_in_the_same_order():
    model, _ = hierarchical()

    def guide(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x / 3, math.sqrt(2 / 3)))
            pyro.sample("z1", dist.Normal((x + z2) / 2, math.sqrt(1 / 2)))

    torch.manual_seed(0)
    x = math.sqrt(3) * torch.randn(300)
    found = inference.bound(model, guide, x, num_samples=100)
    assert found.kl_kind == {"z1": "analytic", "z2": "analytic"}
    truth = torch.distributions.Normal(0.0, math.sqrt(3)).log_prob(x.double()).mean()
    assert agrees(found.elbo, truth, found.elbo_std_error, ceiling=0.02)


def test_a_masked_latent_costs_nothing():
    """poutine.mask switches a site off; its closed form must follow."""

    def pair(fn, keep):
        def run(x):
            with pyro.plate("data", len(x)):
                with poutine.mask(mask=keep[: len(x)]):
                    z = pyro.sample("z", fn(x))
                if fn is prior:
                    pyro.sample("x", dist.Normal(0.0 * z, 1.0), obs=x)

        return run

    def prior(x):
        return dist.Normal(torch.zeros(len(x)), 1.0)

    def posterior(x):
        return dist.Normal(x, 0.1)

    x = torch.linspace(-1, 1, 10)
    keep = torch.arange(10) % 2 == 0
    # Fixed masks belong to fixed data: this pair runs on all ten only.
    found = inference.bound(pair(prior, keep), pair(posterior, keep), x, num_samples=4)
    every = inference.bound(pair(prior, keep | True), pair(posterior, keep | True), x)
    kl = inference.analytic_kl(posterior(x), prior(x))
    assert every.kl["z"] == pytest.approx(float(kl.mean()), rel=1e-5)
    assert found.kl["z"] == pytest.approx(float(torch.where(keep, kl, 0.0).mean()), rel=1e-5)


def test_a_pair_that_cannot_take_particles_keeps_its_closed_form():
    """Convolutions by hand: each datum is repeated, and the KL is analytic all the same."""
    torch.manual_seed(0)
    decoder = nn.Linear(2, 6)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = decoder(z.view(len(x), 2)).view(len(x), 6)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    def friendly(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 0.2).to_event(1))

    x = torch.randn(12, 6)
    a = inference.bound(model, guide, x, num_samples=200)
    b = inference.bound(friendly, guide, x, num_samples=200, seed=1)
    assert a.kl_kind == b.kl_kind == {"z": "analytic"}
    assert a.kl["z"] == pytest.approx(b.kl["z"], rel=1e-5)
    assert agrees(a.elbo, b.elbo, math.hypot(a.elbo_std_error, b.elbo_std_error), ceiling=0.1)
    kl = inference.analytic_kl(
        dist.Normal(x[:, :2], 0.2).to_event(1),
        dist.Normal(torch.zeros(12, 2), 1.0).to_event(1),
    )
    # Datum by datum: repeats of one datum are not mixed up with other data.
    assert agrees(a.per_datum, b.per_datum, 0.1)
    assert a.kl["z"] == pytest.approx(float(kl.mean()), rel=1e-5)


def test_joint_bound():
    """plate=None: one bound on the joint evidence."""
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(6)
    found = inference.bound(pair.model, pair.guide, x, num_samples=400, plate=None)
    truth = float(pair.log_px(x).sum()) - 6 * pair.kl()
    assert found.per_datum.shape == (1,)
    assert agrees(found.elbo, truth, found.elbo_std_error, ceiling=0.5)
