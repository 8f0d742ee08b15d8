"""SVI reaches what is known exactly: probabilistic PCA, its bound, and the mean-field gap."""

import functools
import math

import pyro
import pytest
import torch
from small_pairs import fit
from torch import nn

import inference
import pyro_vae as pv

LATENTS = 8


@functools.cache
def digits(principal=True):
    """The 1797 digits of 64 pixels, centred, in units of their overall spread.

    `principal` rotates them to their principal axes: log p(x) stays as it is, and Adam, which
    scales each coordinate by itself, needs a third of the steps.
    """
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    x = torch.tensor(load_digits().data)
    x = (x - x.mean(0)) / x.std()
    if principal:
        x = x @ torch.linalg.eigh(torch.cov(x.T)).eigenvectors
    return x.float()


def marginal(weight, mean, sigma):
    """p(x) = N(mean, W W' + sigma^2 I), float64."""
    weight, mean = weight.detach().double(), mean.detach().double()
    covariance = (
        weight @ weight.T
        + float(torch.as_tensor(sigma).detach()) ** 2 * torch.eye(len(mean)).double()
    )
    return torch.distributions.MultivariateNormal(mean, covariance)


def maximum_likelihood(x, latents):
    """The largest mean log p(x) of probabilistic PCA (Tipping and Bishop 1999, eq. 15)."""
    x = x.double()
    values = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0).clamp_min(0)
    rest = values[latents:].mean()
    dim = len(values)
    log_det = values[:latents].log().sum() + (dim - latents) * rest.log()
    return -0.5 * float(dim * math.log(2 * math.pi) + log_det + dim)


def sklearn_value(x, latents):
    """The same by scikit-learn, whose covariance divides by N - 1."""
    decomposition = pytest.importorskip("sklearn.decomposition")
    pca = decomposition.PCA(latents, svd_solver="full").fit(x.double().numpy())
    return float(pca.score_samples(x.double().numpy()).mean())


def ppca(guide, x):
    torch.manual_seed(0)
    vae = pv.VAE(
        data_shape=(64,), latent_dim=LATENTS, guide=guide, encoder="linear", decoder="linear",
        likelihood=pv.likelihoods.Gaussian(sigma="learned", floor=1e-3),
    )  # fmt: skip
    return vae.initialize(x)


def log_p(vae, x):
    """Mean log p(x) of the weights at hand, in closed form."""
    layer = vae.decoder.body[-1]
    p = marginal(layer.weight, layer.bias, vae.likelihood.fitted_sigma())
    return float(p.log_prob(x.double()).mean())


def train_ppca(model, guide, x, epochs, learning_rate):
    cosine = inference.Cosine(final_fraction=0)
    settings = {"epochs": epochs, "batch_size": 100, "learning_rate": learning_rate}
    fit(model, guide, x, schedule=cosine, **settings)


def test_two_sources_agree_on_the_maximum():
    """scikit-learn's N - 1 moves its mean by O(1/N^2) only: the maximum is flat."""
    x = digits()
    assert maximum_likelihood(x, LATENTS) == pytest.approx(sklearn_value(x, LATENTS), abs=1e-4)
    raw = digits(principal=False)
    assert maximum_likelihood(raw, LATENTS) == pytest.approx(sklearn_value(x, LATENTS), abs=1e-4)
    assert maximum_likelihood(x, LATENTS + 1) > sklearn_value(x, LATENTS) + 0.5


QUICKLY = 80, 0.04  # epochs and learning rate that suffice in principal axes


@functools.cache
def trained_weights(principal, epochs, learning_rate):
    x = digits(principal)
    vae = ppca("full_rank", x)
    assert log_p(vae, x) < maximum_likelihood(x, LATENTS) - 10  # far from it at the start
    train_ppca(vae.model, vae.guide, x, epochs, learning_rate)
    return vae.state_dict()


def trained_ppca(principal, epochs, learning_rate):
    vae = ppca("full_rank", digits(principal))
    vae.load_state_dict(trained_weights(principal, epochs, learning_rate))
    return vae


@pytest.mark.parametrize(
    ("principal", "epochs", "learning_rate", "largest_gap"),
    [
        (True, *QUICKLY, 0.1),
        pytest.param(False, 400, 0.02, 0.2, marks=pytest.mark.slow),
    ],
)
def test_probabilistic_pca_reaches_the_maximum_and_full_rank_closes_the_gap(
    principal, epochs, learning_rate, largest_gap
):
    x = digits(principal)
    best = maximum_likelihood(x, LATENTS)
    vae = trained_ppca(principal, epochs, learning_rate)
    reached = log_p(vae, x)
    assert reached < best + 1e-6  # a maximum it is
    assert best - reached < 0.01
    assert reached == pytest.approx(sklearn_value(x, LATENTS), abs=0.01)
    few = x[::6]
    bound = inference.bound(vae.model, vae.guide, few, num_samples=100)
    assert bound.elbo_std_error < 0.015
    gap = log_p(vae, few) - bound.elbo
    assert -3 * bound.elbo_std_error < gap < largest_gap
    estimate = inference.log_marginal(
        vae.model, vae.guide, few, estimator=inference.Importance(num_samples=100), progress=False
    )
    assert estimate.mean == pytest.approx(log_p(vae, few), abs=0.01)


def test_a_kl_weight_of_two_leaves_the_maximum():
    """The same check refuses a wrong objective, even one that starts from the optimum."""
    x = digits()
    best = maximum_likelihood(x, LATENTS)
    right = trained_ppca(True, *QUICKLY)
    train_ppca(right.model, right.guide, x, 15, 0.01)
    assert best - log_p(right, x) < 0.01
    wrong = trained_ppca(True, *QUICKLY)

    def twice(x):
        """Latents count double, here and in the guide."""
        pyro.module("decoder", wrong.decoder)
        pyro.module("likelihood", wrong.likelihood)
        plate = pyro.plate("data", len(x))
        with plate, pyro.poutine.scale(scale=2.0):
            z = pyro.sample("z", wrong.prior.distribution())
        with plate:
            pyro.sample("x", wrong.likelihood(wrong.decoder(z)), obs=x)

    train_ppca(twice, pyro.poutine.scale(wrong.guide, scale=2.0), x, 15, 0.01)
    assert best - log_p(wrong, x) > 0.05


# A fixed, non-orthogonal W ---------------------------------------------------------------------


class Fixed(nn.Module):
    """x = W z + noise with W fixed; a linear guide, mean field or full rank."""

    def __init__(self, weight, sigma, full_rank):
        super().__init__()
        dim, latents = weight.shape
        self.weight, self.sigma = weight, sigma
        self.loc = nn.Linear(dim, latents)
        self.log_scale = nn.Parameter(torch.zeros(latents))
        self.below = nn.Parameter(torch.zeros(latents, latents)) if full_rank else None

    def model(self, x):
        with pyro.plate("data", len(x)):
            zero = x.new_zeros(len(x), self.weight.shape[1])
            z = pyro.sample("z", pyro.distributions.Normal(zero, 1.0).to_event(1))
            loc = z @ self.weight.T
            pyro.sample("x", pyro.distributions.Normal(loc, self.sigma).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("fixed", self)
        with pyro.plate("data", len(x)):
            loc, scale = self.loc(x), self.log_scale.exp()
            if self.below is None:
                q = pyro.distributions.Normal(loc, scale).to_event(1)
            else:
                tril = scale.diag() + self.below.tril(-1)
                q = pyro.distributions.MultivariateNormal(loc, scale_tril=tril)
            pyro.sample("z", q)

    def exact_bound(self, x):
        """The guide's ELBO in closed form, mean over x, float64."""
        x, weight = x.double(), self.weight.double()
        loc, scale = self.loc(x.float()).detach().double(), self.log_scale.exp().detach().double()
        tril = scale.diag()
        if self.below is not None:
            tril = tril + self.below.detach().double().tril(-1)
        covariance = tril @ tril.T
        fit_error = (x - loc @ weight.T).square().sum(1) + (weight.T @ weight @ covariance).trace()
        dim, latents = weight.shape
        likelihood = -0.5 * dim * math.log(2 * math.pi * self.sigma**2)
        likelihood = likelihood - 0.5 * fit_error / self.sigma**2
        kl = 0.5 * (covariance.trace() + loc.square().sum(1) - latents)
        return float((likelihood - kl + scale.log().sum()).mean())


@functools.cache
def linear_data():
    """W with correlated columns, 600 data from its model; the mean-field gap in nats."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 3, generator=generator)
    weight[:, 1] += 0.8 * weight[:, 0]
    sigma = 0.9
    z = torch.randn(600, 3, generator=generator)
    x = z @ weight.T + sigma * torch.randn(600, 5, generator=generator)
    precision = torch.eye(3).double() + (weight.T @ weight).double() / sigma**2
    gap = 0.5 * (precision.diagonal().log().sum() - precision.logdet())
    return weight, sigma, x, float(gap)


QUICK = {"epochs": 80, "batch_size": 100, "learning_rate": 0.05}


@functools.cache
def trained_gap(full_rank, kl_weight=1.0):
    weight, sigma, x, _ = linear_data()
    torch.manual_seed(0)
    pair = Fixed(weight, sigma, full_rank)
    model, guide = pair.model, pair.guide
    if kl_weight != 1:
        # beta * KL is a likelihood tempered by 1/beta, up to the scale of the whole.
        tempered = Fixed(weight, sigma * kl_weight**0.5, full_rank)
        model = tempered.model
    cosine = inference.Cosine(final_fraction=0)
    fit(model, guide, x, objective=inference.ELBO(num_particles=8), schedule=cosine, **QUICK)
    exact = float(marginal(weight, torch.zeros(5), sigma).log_prob(x.double()).mean())
    return exact - pair.exact_bound(x), pair


def test_mean_field_lands_on_the_gap_formula():
    """1/2 (sum ln A_ii - ln |A|), the same for every x, with S = diag(1/A_ii)."""
    weight, sigma, _, formula = linear_data()
    assert formula > 0.25  # non-orthogonal indeed
    gap, pair = trained_gap(False)
    assert gap == pytest.approx(formula, abs=0.01)
    assert gap > formula - 1e-5  # nothing in the family is better
    precision = 1 + weight.square().sum(0) / sigma**2
    assert torch.allclose(pair.log_scale.exp(), precision.rsqrt(), rtol=0.03)


def test_full_rank_has_no_gap_there():
    gap, _ = trained_gap(True)
    assert -1e-5 < gap < 0.01


@pytest.mark.parametrize("full_rank", [False, True])
def test_a_kl_weight_of_two_misses_both(full_rank):
    gap, _ = trained_gap(full_rank, kl_weight=2.0)
    assert abs(gap - linear_data()[3] * (not full_rank)) > 0.03


def test_the_bound_of_the_trained_pair_is_its_closed_form():
    _, pair = trained_gap(False)
    x = linear_data()[2]
    bound = inference.bound(pair.model, pair.guide, x, num_samples=200)
    assert bound.elbo_std_error < 0.02
    assert bound.elbo == pytest.approx(pair.exact_bound(x), abs=5 * bound.elbo_std_error)
