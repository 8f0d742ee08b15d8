"""Twelve pairs that are no autoencoders, each with a closed form, by several estimators."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import inference
from tests.exact_models import agrees
from tests.small_pairs import (
    chain_model,
    line_data,
    line_guide,
    line_model,
    nested_guide,
    nested_model,
)

IMPORTANCE = inference.Importance(num_samples=4000)
AIS = inference.AIS(num_temperatures=30)
SMC = inference.SMC(num_temperatures=15)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def gaussian(covariance, x):
    zero = torch.zeros(len(covariance)).double()
    return torch.distributions.MultivariateNormal(zero, covariance).log_prob(x)


def regression():
    """z_n ~ N(0, 1), y_n ~ N(slope x_n + z_n, noise), everything in `pyro.param`s, trained."""
    x, y = line_data(200)
    inference.fit(
        line_model, line_guide, (x, y), epochs=20, batch_size=50, learning_rate=0.05, progress=False
    )
    slope, noise = (pyro.param(name).detach().double() for name in ("slope", "noise"))
    assert float(slope) == pytest.approx(2.0, abs=0.4)
    truth = dist.Normal(slope * x.double(), (1 + noise**2).sqrt()).log_prob(y.double())
    return line_model, line_guide, (x, y), truth, (IMPORTANCE, AIS, "quadrature")


def views():
    """z_n, and w_nv for each of three views: x_nv = z_n + noise of w and x."""
    pyro.param("lean", double(0.7).squeeze())
    x = torch.randn(150, 3).double() + torch.randn(150, 1).double()
    covariance = torch.ones(3, 3).double() + (1 + 0.25) * torch.eye(3).double()
    truth = gaussian(covariance, x - 0.1)
    return nested_model, nested_guide, x, truth, (IMPORTANCE, AIS, SMC)


def gamma_poisson():
    """Counts whose rates have a Gamma prior are negative binomial."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(double(3.0).squeeze(), 2.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        shape = pyro.param("shape", double(2.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(shape + 0.9 * x, 2.5))

    x = torch.arange(8).double().repeat(20)
    truth = torch.distributions.NegativeBinomial(3.0, probs=double(1 / 3)).log_prob(x)
    return model, guide, x, truth, (IMPORTANCE, AIS, SMC, "quadrature")


def beta_binomial():
    """Successes of 9, whose probability has a Beta prior."""
    a, b = double(0.8, 2.0)

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Beta(a, b))
            pyro.sample("x", dist.Binomial(9, p), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Beta(0.7 + 0.9 * x, 1.8 + 0.9 * (9 - x)))

    x = torch.arange(10).double().repeat(15)
    truth = dist.BetaBinomial(a, b, 9).log_prob(x)
    return model, guide, x, truth, (IMPORTANCE, AIS, SMC, "quadrature")


def dirichlet_multinomial():
    """Counts of three kinds whose shares lie in a simplex."""
    alpha = double(0.9, 1.5, 2.0)

    def model(x):
        with pyro.plate("data", len(x)):
            shares = pyro.sample("shares", dist.Dirichlet(alpha))
            pyro.sample("x", dist.Multinomial(7, shares, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("shares", dist.Dirichlet(1.0 + 0.8 * x))

    x = double(*((a, b, 7 - a - b) for a in range(8) for b in range(8 - a)))
    truth = dist.DirichletMultinomial(alpha, 7).log_prob(x)
    assert float(truth.exp().sum()) == pytest.approx(1.0)
    return model, guide, x, truth, (IMPORTANCE, AIS, SMC, "quadrature")


def uniform():
    """z ~ Uniform(-1, 2) and noise: a difference of two error functions."""
    low, high, noise = -1.0, 2.0, 0.7

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(double(low).squeeze(), high))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(0.7 * (x - 0.5), 1.2)
            onto = torch.distributions.biject_to(constraints.interval(low, high))
            pyro.sample("z", dist.TransformedDistribution(base, [onto]))

    x = torch.linspace(-2, 3, 150, dtype=torch.float64)
    phi = torch.distributions.Normal(0.0, 1.0)
    share = phi.cdf((x - low) / noise) - phi.cdf((x - high) / noise)
    truth = share.log() - math.log(high - low)
    return model, guide, x, truth, (IMPORTANCE, AIS, SMC, "quadrature")


def scale_mixture():
    """A variance with an inverse-gamma prior: Student's t."""
    degrees = double(5.0).squeeze()

    def model(x):
        with pyro.plate("data", len(x)):
            v = pyro.sample("v", dist.InverseGamma(degrees / 2, degrees / 2))
            pyro.sample("x", dist.Normal(0.3, v.sqrt()), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("v", dist.LogNormal(((2.0 + 0.5 * (x - 0.3) ** 2) / 3).log(), 0.8))

    x = torch.linspace(-4, 5, 150, dtype=torch.float64)
    truth = dist.StudentT(degrees, 0.3, 1.0).log_prob(x)
    return model, guide, x, truth, (IMPORTANCE, AIS, "quadrature")


def masked():
    """Three noisy looks at z, some of them missing: those are no part of log p(x)."""
    noise = double(0.5, 1.0, 2.0)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        x = torch.randn(120, 1).double() + noise * torch.randn(120, 3).double()
        seen = torch.rand(120, 3) < 0.6

    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(double(0.0).squeeze(), 1.0))
            each = dist.Normal(z.unsqueeze(-1), noise).mask(seen)
            pyro.sample("x", each.to_event(1), obs=x)

    def guide(x, seen):
        weight = seen / noise**2
        precision = 1 + weight.sum(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.9 * (weight * x).sum(-1) / precision, 1.1))

    truth = []
    for row, here in zip(x, seen, strict=True):
        covariance = torch.ones(3, 3).double() + torch.diag(noise**2)
        both = covariance[here][:, here]
        truth.append(gaussian(both, row[here]) if bool(here.any()) else double(0.0).squeeze())
    return model, guide, (x, seen), torch.stack(truth), (IMPORTANCE, AIS, "quadrature")


def hidden_markov():
    """Two hidden states over four steps, each with a symbol: by the forward recursion."""
    start, step = double(0.6, 0.4), double([0.8, 0.2], [0.3, 0.7])
    emit = double([0.5, 0.4, 0.1], [0.1, 0.2, 0.7])

    def model(x):
        with pyro.plate("data", len(x)):
            for t in range(4):
                shares = start if t == 0 else step[state]  # noqa: F821  (of the step before)
                state = pyro.sample(f"state{t}", dist.Categorical(shares))
                pyro.sample(f"x{t}", dist.Categorical(emit[state]), obs=x[:, t])

    def guide(x):
        with pyro.plate("data", len(x)):
            for t in range(4):
                odds = torch.stack([1.5 - 0.5 * x[:, t], 0.5 + 0.5 * x[:, t]], -1).double()
                pyro.sample(f"state{t}", dist.Categorical(odds))

    x = torch.tensor(list(itertools.product(range(3), repeat=4)))
    forward = start * emit[:, x[:, 0]].T
    for t in range(1, 4):
        forward = (forward @ step) * emit[:, x[:, t]].T
    truth = forward.sum(-1).log()
    assert float(truth.exp().sum()) == pytest.approx(1.0)
    return model, guide, x, truth, (IMPORTANCE, "enumerate")


def clusters():
    """A class and a number: p(x) is a mixture of two Gaussians. The guide draws both."""
    shares, centres = double(0.3, 0.7), double(-1.0, 2.0)

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(shares))
            z = pyro.sample("z", dist.Normal(centres[c], 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            odds = torch.stack([torch.ones_like(x), (1.5 * x - 0.5).exp().clamp(0.05, 20)], -1)
            c = pyro.sample("c", dist.Categorical(odds))
            pyro.sample("z", dist.Normal(0.75 * x + 0.25 * centres[c], 0.6))

    x = torch.linspace(-4, 5, 120, dtype=torch.float64)
    each = dist.Normal(centres, 1.25**0.5).log_prob(x.unsqueeze(1))
    truth = (each + shares.log()).logsumexp(1)
    others = inference.Importance(num_samples=4000, proposal="prior")
    return model, guide, x, truth, (IMPORTANCE, others)


def random_walk():
    """All data are one: z_t of a walk, one joint evidence."""
    x = line_data(12)[1].double().cumsum(0)
    pyro.param("step", double(0.5).squeeze(), constraint=constraints.positive)
    ones = torch.tril(torch.ones(12, 12)).double()
    covariance = 0.25 * ones @ ones.T + torch.eye(12).double()
    joint = torch.linalg.inv(4 * torch.eye(12).double() + ones.T @ ones)
    mean, scale = joint @ ones.T @ x, 1.2 * joint.diagonal().sqrt()

    def guide(x):
        pyro.sample("z", dist.Normal(mean, scale).to_event(1))

    truth = gaussian(covariance, x).reshape(1)
    return chain_model, guide, x, truth, (inference.Importance(num_samples=50_000), AIS, SMC)


def bayesian_regression():
    """A slope for all data: one joint evidence, y ~ N(0, x x' + noise^2)."""
    x, y = (a.double() for a in line_data(30))

    def model(x, y):
        slope = pyro.sample("slope", dist.Normal(double(0.0).squeeze(), 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.1), obs=y)

    precision = 1 + (x @ x) / 1.21

    def guide(x, y):
        pyro.sample("slope", dist.Normal(x @ y / 1.21 / precision + 0.1, 1.3 * precision**-0.5))

    truth = gaussian(torch.outer(x, x) + 1.21 * torch.eye(30).double(), y).reshape(1)
    return model, guide, (x, y), truth, (IMPORTANCE, AIS, SMC, "quadrature")


JOINT = (random_walk, bayesian_regression)
PAIRS = (
    regression, views, gamma_poisson, beta_binomial, dirichlet_multinomial, uniform, scale_mixture,
    masked, hidden_markov, clusters, *JOINT,
)  # fmt: skip


@pytest.mark.parametrize("make", PAIRS, ids=lambda make: make.__name__)
def test_estimators_agree_with_the_closed_form(make, own_store):
    model, guide, data, truth, estimators = make()
    plate = None if make in JOINT else "data"
    assert len(estimators) >= 2
    for estimator in estimators:
        found = inference.log_marginal(
            model, guide, data, estimator=estimator, plate=plate, progress=False,
            precision="float64",
        )  # fmt: skip
        assert found.value.shape == truth.shape
        assert found.is_joint == (plate is None)
        if found.estimator in ("quadrature", "enumerate"):
            assert torch.allclose(found.value, truth, atol=1e-6, rtol=0), estimator
        elif plate is None:
            assert agrees(found.value, truth, found.std_error, ceiling=0.2), estimator
        else:
            ratio = (found.value - truth).exp()
            error = ratio.std() / math.sqrt(len(truth))
            assert agrees(ratio.mean(), 1.0, error, ceiling=0.02), estimator
            moved = (found.value + 0.15 - truth).exp()
            assert not agrees(moved.mean(), 1.0, moved.std() / math.sqrt(len(truth))), estimator
