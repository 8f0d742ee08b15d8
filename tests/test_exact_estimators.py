"""Quadrature and enumeration: equal to closed forms, and refusals that name what fits."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.distributions import Independent

import inference
from tests.exact_models import all_binary, linear_gaussian, mixture_log_px


def log_px(model, guide, x, estimator, **options):
    return inference.log_marginal(model, guide, x, estimator=estimator, progress=False, **options)


@pytest.mark.parametrize(("L", "settings"), [
    (1, {}), (2, {}), (2, {"stretch": 0.2}), (2, {"stretch": 9.0}), (2, {"delta": 3.0}),
])  # fmt: skip
def test_quadrature_of_a_linear_model(L, settings):
    """Whatever the guide: too narrow, too wide, beside the posterior."""
    pair = linear_gaussian(seed=1, L=L, **settings)
    x = pair.sample(30)
    found = log_px(pair.model, pair.guide, x, "quadrature")
    assert torch.allclose(found.value, pair.log_px(x), atol=1e-6, rtol=0)
    assert bool((found.std_error <= 1e-7).all())
    assert "quadrature" in str(found)


def test_quadrature_of_a_mixture_whose_modes_are_apart():
    means = torch.tensor([[-3.0, 1.0], [4.0, 0.0]], dtype=torch.float64)
    weights, eye = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.eye(2).double()

    def model(x):
        parts = dist.Categorical(weights), Independent(torch.distributions.Normal(means, 1.0), 1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MixtureSameFamily(*parts))
            pyro.sample("x", dist.Normal(z, 2.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    x = torch.randn(20, 2, dtype=torch.float64)
    truth = mixture_log_px(
        x, weights, means, eye.expand(2, 2, 2), eye, torch.zeros(2), torch.full((2,), 4.0)
    )
    assert torch.allclose(log_px(model, guide, x, "quadrature").value, truth, atol=1e-6, rtol=0)


def test_quadrature_on_a_bounded_support():
    """A rate with a Gamma prior and Poisson counts is negative binomial."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("rate", dist.Gamma(3.0 + x, 2.5))

    x = torch.arange(8.0)
    truth = torch.distributions.NegativeBinomial(3.0, probs=torch.tensor(1 / 3)).log_prob(x)
    found = log_px(model, guide, x.double(), "quadrature")
    assert torch.allclose(found.value, truth.double(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("degrees", [1.0, 3.0, 8.0])
def test_the_grid_grows_to_where_the_tails_end(degrees):
    """Student's t, seen through much noise: 8 standard deviations miss 1e-3 nat of 3 degrees."""
    t = torch.tensor(degrees, dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.StudentT(t, 0.0, 1.0))
            pyro.sample("x", dist.Normal(0.01 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.StudentT(5.0 + 0 * x, 0.0, 1.0))

    # z = tan(a): smooth and periodic in a.
    a = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000 * math.pi - math.pi / 2
    z, x = a.tan(), torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    log_f = dist.StudentT(t, 0.0, 1.0).log_prob(z) - 2 * a.cos().log()
    log_f = log_f + dist.Normal(0.01 * z, 1.0).log_prob(x.unsqueeze(1))
    truth = log_f.logsumexp(1) + math.log(math.pi / 200_000)
    found = log_px(model, guide, x, "quadrature")
    assert torch.allclose(found.value, truth, atol=1e-6, rtol=0)


def test_a_small_far_peak_counts():
    """A peak of weight 1e-4 beyond what the first grid is refined around is not dropped."""
    weights = torch.tensor([1 - 1e-4, 1e-4], dtype=torch.float64)
    means = torch.tensor([0.0, 9.0], dtype=torch.float64)

    def model(x):
        parts = dist.Categorical(weights), torch.distributions.Normal(means, 0.5)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MixtureSameFamily(*parts))
            pyro.sample("x", dist.Normal(z, 20.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x, 2.0))

    x = torch.linspace(-20, 20, 5, dtype=torch.float64)
    each = dist.Normal(means, 400.25**0.5).log_prob(x.unsqueeze(1))
    truth = (each + weights.log()).logsumexp(1)
    found = log_px(model, guide, x, "quadrature")
    assert torch.allclose(found.value, truth, atol=1e-7, rtol=0)
    without = each[:, 0] + weights[0].log()
    assert not torch.allclose(without, truth, atol=1e-5, rtol=0)


def test_float32_ends_where_its_rounding_begins():
    """500 pixels in float32: log p(x) as far as the arithmetic goes, and an error that says so."""
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(1, 500, generator=generator)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1).to(x), 1.0).to_event(1))
            logits = (z @ W.to(x)).tanh()
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0 * x[:, :1], 1.0).to_event(1))

    x = (torch.rand(20, 500) < 0.5).float()
    single, double = (
        log_px(model, guide, x, "quadrature", precision=p) for p in ("float32", "float64")
    )
    assert bool((double.std_error < 1e-7).all())
    assert bool((single.std_error > 1e-6).all())
    assert bool(((single.value - double.value).abs() < 10 * single.std_error).all())


def test_large_tiles_are_split(monkeypatch):
    """Where points times data would not fit, some data at a time: the same result."""
    from inference.evidence import quadrature

    pair = linear_gaussian(seed=1, L=2, delta=4.0)
    x = pair.sample(9)
    whole = log_px(pair.model, pair.guide, x, "quadrature")
    monkeypatch.setattr(quadrature, "HEIGHTS_AT_ONCE", 3 * whole.num_samples)
    split = log_px(pair.model, pair.guide, x, "quadrature")
    for found in (whole, split):
        assert torch.allclose(found.value, pair.log_px(x), atol=1e-6, rtol=0)


def test_three_latents_are_refused():
    pair = linear_gaussian(seed=1, L=3)
    with pytest.raises(inference.PairError, match=r"3 latent numbers.*use estimator='ais'"):
        log_px(pair.model, pair.guide, pair.sample(3), "quadrature")


LOGITS = torch.tensor([0.3, -0.5, 0.2, 0.0])
TABLE = torch.randn(3, 2, 2, 4, generator=torch.Generator().manual_seed(0))


def discrete_model(x):
    """A categorical and two binary latents, four binary pixels."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Categorical(logits=LOGITS[:3]))
        b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.2, 0.6])).to_event(1))
        index = b.long()
        pyro.sample(
            "x", dist.Bernoulli(logits=TABLE[a, index[..., 0], index[..., 1]]).to_event(1), obs=x
        )


def discrete_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Categorical(logits=torch.zeros(len(x), 3)))
        pyro.sample("b", dist.Bernoulli(0.5 * torch.ones(len(x), 2)).to_event(1))


def discrete_truth(x):
    total = []
    for a, b, c in itertools.product(range(3), (0, 1), (0, 1)):
        log_p = LOGITS[:3].log_softmax(0)[a]
        for value, p in ((b, 0.2), (c, 0.6)):
            log_p = log_p + math.log(p if value else 1 - p)
        total.append(log_p + dist.Bernoulli(logits=TABLE[a, b, c]).to_event(1).log_prob(x))
    return torch.stack(total).logsumexp(0).double()


def test_enumeration():
    x = all_binary(4)
    found = log_px(discrete_model, discrete_guide, x, "enumerate")
    assert torch.allclose(found.value, discrete_truth(x), atol=1e-6, rtol=0)
    assert float(found.value.logsumexp(0)) == pytest.approx(0.0, abs=1e-6)
    assert found.num_samples == 12
    assert bool((found.std_error == 0).all())
    # Marks for enumeration, and the guide, do not matter.
    marked = pyro.infer.config_enumerate(discrete_model)
    again = log_px(marked, discrete_guide, x, "enumerate")
    assert torch.equal(again.value, found.value)


def test_importance_agrees_with_enumeration():
    x = all_binary(4)
    found = log_px(discrete_model, discrete_guide, x, inference.Importance(num_samples=20_000))
    assert bool(((found.value - discrete_truth(x)).abs() < 5 * found.std_error).all())


@pytest.mark.parametrize("estimator", ["ais", "smc", "quadrature"])
def test_discrete_latents_are_refused_where_gradients_lead(estimator):
    with pytest.raises(inference.PairError, match=r"site 'a' is discrete.*use estimator="):
        log_px(discrete_model, discrete_guide, all_binary(4), estimator)


def test_what_cannot_be_enumerated_is_refused():
    pair = linear_gaussian(seed=1)
    with pytest.raises(inference.PairError, match=r"site 'z' draws from Normal .* no finite set"):
        log_px(pair.model, pair.guide, pair.sample(3), "enumerate")
    few = inference.Enumerate(most_values=8)
    with pytest.raises(inference.PairError, match="take 12 values together, more than 8"):
        log_px(discrete_model, discrete_guide, all_binary(4), few)


def test_quadrature_sees_a_mode_that_the_guide_misses():
    """x = |4 z| + noise: the guide knows z > 0 alone, the prior has both."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
            pyro.sample("x", dist.Normal(4 * z.abs(), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 4.06, 0.124))

    x = torch.tensor([3.0, 5.0, 9.0], dtype=torch.float64)
    found = inference.log_marginal(
        model, guide, x, estimator=inference.Quadrature(), progress=False
    )
    one = dist.Normal(0.0, 0.5 * 65**0.5).log_prob(x)  # of 4 z + noise, twice but for z ~ 0
    assert torch.allclose(found.value, one + math.log(2), atol=1e-6)


def test_supports_that_end_at_a_count_of_each_datum_s_own():
    """The first data have small counts, and the likelihood is no number beyond a datum's own."""

    def model(n, x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Binomial(n, 0.3 * torch.ones(len(x))))
            c = pyro.sample("c", dist.BetaBinomial(2.0, 1.0, n))
            pyro.sample("x", dist.Normal((n - k).sqrt() + (n - c).sqrt(), 1.0), obs=x)

    def guide(n, x):
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Binomial(n, 0.5 * torch.ones(len(x))))
            pyro.sample("c", dist.BetaBinomial(torch.ones(len(x)), 1.0, n))

    n = torch.tensor([3.0] * 5 + [8.0, 2.0, 8.0, 5.0, 0.0])
    x = torch.linspace(-1.0, 4.0, 10)
    truth = []
    for count, value in zip(n, x, strict=True):
        k = torch.arange(int(count) + 1.0)
        p = dist.Binomial(count, 0.3).log_prob(k).unsqueeze(1)
        p = p + dist.BetaBinomial(2.0, 1.0, count).log_prob(k)
        left = (count - k).sqrt()
        p = p + dist.Normal(left.unsqueeze(1) + left, 1.0).log_prob(value)
        truth.append(p.flatten().logsumexp(0).double())
    found = log_px(model, guide, (n, x), "enumerate")
    assert torch.allclose(found.value, torch.stack(truth), atol=1e-5, rtol=0)
    assert found.num_samples == 81
    # Where all counts are the same nothing has changed.
    same = log_px(model, guide, (n[:5], x[:5]), "enumerate")
    assert torch.allclose(same.value, torch.stack(truth)[:5], atol=1e-5, rtol=0)
    assert same.num_samples == 16


def thinned(p, least):
    """Of k things, up to `least` + 3 k others: a count that depends on another latent."""

    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Binomial(4, p * torch.ones(len(x))))
            j = pyro.sample("j", dist.Binomial(least + 3 * k, 0.01))
            pyro.sample("x", dist.Normal(j, 1.0), obs=x)

    return model


@pytest.mark.parametrize(("p", "said"), [
    (0.5, r"site 'j' .* total_count that depends on other latents.*use estimator='importance'"),
    (1e-7, r"site 'j' takes 33 values .*, and 21 for others; use estimator='importance'"),
])  # fmt: skip
def test_counts_that_depend_on_other_latents_are_refused(p, said):
    """Seen in draws, or at the values that are summed over."""
    model = thinned(p, 20)
    with pytest.raises(inference.PairError, match=said):
        log_px(model, model, torch.zeros(10), "enumerate")
