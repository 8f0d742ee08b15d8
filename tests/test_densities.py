"""Every likelihood integrates to one and agrees with its own draws."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, NegativeBinomial, Poisson

import pyro_vae as pv
from pyro_vae.likelihoods.continuous_bernoulli import ContinuousBernoulliPixels
from tests.likelihood_cases import (
    COUNTS,
    COVARIANCES,
    PARTS,
    ROW,
    SUMS,
    VARIANTS,
    built,
    covariance_of,
    outputs_of,
)


def test_every_likelihood_is_looked_at():
    assert {*SUMS, "multinomial", "mixed"} == set(pv.Likelihood.registry)


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str)
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.5])
def test_one_value_integrates_to_one(name, fields, scale):
    spec, module = built(name, fields)
    values, weights = SUMS[name]
    p = module(outputs_of(spec, (1,), scale=scale))
    total = (p.log_prob(values.unsqueeze(-1)).exp() * weights).sum()
    assert float(total.detach()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str)
def test_draws_have_the_density(name, fields):
    """Means of test functions by 40,000 draws and by the sum: within 5 standard errors."""
    spec, module = built(name, fields)
    values, weights = SUMS[name]
    p = module(outputs_of(spec, (1,)))
    draws = p.sample((40_000,)).squeeze(-1)
    assert p.support.check(draws.unsqueeze(-1)).all()
    with torch.no_grad():
        mass = p.log_prob(values.unsqueeze(-1)).exp() * weights
        for function in (torch.tanh, torch.cos, lambda x: (x > 0.5).double()):
            found = function(draws)
            error = float(found.std()) / math.sqrt(len(found))
            assert error < 0.005
            assert float(found.mean()) == pytest.approx(
                float((mass * function(values)).sum()), abs=5 * error + 1e-7
            )
        mean = float((mass * values).sum())
        about = 2e-3 if name == "logit_normal" else 1e-5  # its mean is by quadrature
        assert float(p.mean.squeeze()) == pytest.approx(mean, abs=about)


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str)
def test_what_lies_outside_the_support_is_refused(name, fields):
    spec, module = built(name, fields)
    p = module(outputs_of(spec, (1,)))
    outside = {"count": [-1.0, 0.5], "real": [math.nan], "levels": [-0.1, 1.1, 0.5017]}
    for value in outside.get(spec.support, [-0.1, 1.1]):
        assert not p.support.check(torch.tensor([value]).double()).any()
        if name != "gaussian_covariance":
            with pytest.raises(ValueError, match="support"):
                p.log_prob(torch.tensor([value]).double())


# Bags of words ----------------------------------------------------------------------------------


def test_bags_of_words_sum_to_one_and_draw_as_they_score():
    _, module = built("multinomial", {}, data=(3,))
    logits = torch.randn(3, dtype=torch.float64)
    bags = torch.tensor([[a, b, 6 - a - b] for a in range(7) for b in range(7 - a)]).double()
    mass = module(logits).log_prob(bags).exp()
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-12)
    x = torch.tensor([[50.0, 20.0, 0.0], [9.0, 1.0, 0.0]]).double()
    module.initialize(x)
    assert float(module.length) == 40.0
    module.length.fill_(6.0)
    p = module(logits)
    draws = p.sample((20_000,))
    assert draws.sum(-1).unique().tolist() == [6.0]
    for bag, probability in zip(bags, mass, strict=True):
        share = float((draws == bag).all(-1).double().mean())
        error = math.sqrt(float(probability * (1 - probability)) / len(draws))
        assert share == pytest.approx(float(probability), abs=5 * error)
    torch.testing.assert_close(p.mean, (mass.unsqueeze(-1) * bags).sum(0))
    assert not p.support.check(torch.tensor([0.5, 1.0, 2.0]).double())


def test_a_start_has_the_words_of_the_data():
    _, module = built("multinomial", {}, data=(3,), dtype=torch.float32)
    x = torch.tensor([[50.0, 20.0, 0.0], [10.0, 20.0, 0.0]])
    start = module(module.initial_output(x)).mean
    torch.testing.assert_close(
        start / start.sum(), torch.tensor([0.6, 0.4, 0.0]), atol=1e-4, rtol=0
    )


# Twins that are wrong ---------------------------------------------------------------------------


def test_logistics_without_edge_bins_do_not_sum_to_one():
    _, module = built("discretized_logistic", {})
    values, _ = SUMS["discretized_logistic"]
    p = module(torch.tensor([[0.02], [-3.0]]).double()).base_dist
    upper, lower = ((values + h / 255 - p.loc) * (-p.log_scale).exp() for h in (0.5, -0.5))
    assert float((upper.sigmoid() - lower.sigmoid()).sum()) < 0.9
    assert float(p.log_prob(values.unsqueeze(-1)).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_a_bernoulli_of_grey_values_does_not_integrate_to_one():
    values, weights = SUMS["continuous_bernoulli"]
    logit = torch.tensor(1.2).double()
    by_habit = values * logit - torch.nn.functional.softplus(logit)
    assert float((by_habit.exp() * weights).sum()) < 0.5


# The continuous Bernoulli -----------------------------------------------------------------------


def quadrature(logit):
    """log of the normaliser of e^(l x) on [0, 1], and the mean: 60 Gauss-Legendre points."""
    import numpy as np

    points, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(60))
    x, w = (points + 1) / 2, weights / 2
    mass = (logit.unsqueeze(-1) * x).exp() * w
    return mass.sum(-1).log(), (mass * x).sum(-1) / mass.sum(-1)


def shares():
    """p from 1e-6 to 1 - 1e-6, and ever closer to 1/2."""
    ends = torch.logspace(-6, math.log10(0.4), 40, dtype=torch.float64)
    near = 0.5 - torch.logspace(-9, -1, 60, dtype=torch.float64)
    low = torch.cat([ends, near])
    return torch.cat([low, 1 - low, torch.tensor([0.5], dtype=torch.float64)])


def test_continuous_bernoulli_against_quadrature():
    logits = shares().logit()
    log_norm, mean = quadrature(logits)
    for x in (0.0, 0.3, 1.0):
        for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 2e-6)):
            own = logits.to(dtype).requires_grad_()
            value = torch.full_like(own, x)
            log_prob = ContinuousBernoulliPixels(own).log_prob(value)
            (slope,) = torch.autograd.grad(log_prob.sum(), own)
            exact = value.double() * logits - log_norm
            torch.testing.assert_close(log_prob.double(), exact, atol=tolerance, rtol=0)
            torch.testing.assert_close(
                slope.double(), value.double() - mean, atol=tolerance, rtol=0
            )
    found = ContinuousBernoulliPixels(logits).mean
    torch.testing.assert_close(found, mean, atol=1e-8, rtol=0)


def test_its_constant_written_in_p_loses_its_digits():
    """2 artanh(1 - 2p) / (1 - 2p), the wrong twin: float32 has no such number near 1/2."""
    p = shares().float()
    naive = (2 * torch.atanh(1 - 2 * p) / (1 - 2 * p)).log()
    logits = shares().logit()
    exact = torch.nn.functional.softplus(logits) - quadrature(logits)[0]
    error = (naive.double() - exact).abs()
    assert error.isnan().any()
    assert error[~error.isnan()].max() > 1e-4


# Covariances ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "kind"), COVARIANCES)
def test_covariances_against_torch(rank, kind):
    spec, module = built("gaussian_covariance", {"rank": rank, "covariance": kind}, (2, 3))
    p = module(outputs_of(spec, (2, 3), 5))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    covariance = covariance_of(p).expand(5, 6, 6)
    flat = MultivariateNormal(p.loc, covariance)
    torch.testing.assert_close(p.log_prob(x), flat.log_prob(x.flatten(1)))
    alone = torch.distributions.Normal(p.loc, covariance.diagonal(dim1=-2, dim2=-1).sqrt())
    assert (alone.log_prob(x.flatten(1)).sum(-1) - p.log_prob(x)).abs().max() > 0.1
    assert p.expand([4, 5]).log_prob(x).shape == (4, 5)
    draws = p.sample((50_000,)).detach().flatten(-2)
    assert draws.shape == (50_000, 5, 6)
    centred = (draws - p.loc).detach()
    products = centred.unsqueeze(-1) * centred.unsqueeze(-2)
    error = products.std(0) / math.sqrt(len(draws))
    assert ((products.mean(0) - covariance).abs() < 5 * error).all()


@pytest.mark.parametrize(("rank", "kind"), COVARIANCES)
def test_covariances_start_at_the_spread_of_the_data(rank, kind):
    fields = {"rank": rank, "covariance": kind}
    x = torch.randn(500, 6) * torch.tensor([0.5, 2.0, 1.0, 1.0, 3.0, 0.1]) + 4
    vae = pv.VAE(
        data_shape=(6,), latent_dim=2, likelihood={"name": "gaussian_covariance", **fields}
    )
    p = vae.initialize(x).decode(torch.zeros(2))
    torch.testing.assert_close(p.mean, x.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(p.log_scale.exp(), x.std(0, correction=0))


# Exposures and counts ---------------------------------------------------------------------------


def test_an_exposure_scales_the_rate():
    exposure = torch.tensor([0.5, 2.0, 7.0, 1.5]).double()
    x = torch.randint(0, 9, (4, 3)).double()
    each = exposure.unsqueeze(-1) * torch.tensor([1.0, 0.1, 3.0]).double()
    for given, rate in ((exposure, exposure.unsqueeze(-1)), (each, each)):
        spec, module = built("poisson", {}, (3,))
        assert spec.takes_exposure
        outputs = outputs_of(spec, (3,), 4)
        found = module(outputs, given).log_prob(x)
        torch.testing.assert_close(found, Poisson(rate * outputs.exp()).log_prob(x).sum(-1))
        assert (found - module(outputs).log_prob(x)).abs().min() > 1e-3, "it must be seen"

        spec, module = built("negative_binomial", {}, (3,))
        shape = module.log_shape.exp()
        by_hand = NegativeBinomial(
            shape, probs=rate * outputs.exp() / (rate * outputs.exp() + shape)
        )
        found = module(outputs, given).log_prob(x)
        torch.testing.assert_close(found, by_hand.log_prob(x).sum(-1))

        spec, module = built("zero_inflated", {}, (3,))
        gate = torch.randn(4, 3).double()
        found = module(torch.stack([gate, outputs], 1), given).log_prob(x)
        mass = gate.sigmoid() * (x == 0) + (-gate).sigmoid() * (
            Poisson(rate * outputs.exp()).log_prob(x).exp()
        )
        torch.testing.assert_close(found, mass.log().sum(-1))


def test_exposures_of_another_shape_are_refused():
    _, module = built("poisson", {}, (3,))
    with pytest.raises(ValueError, match=r"shape \(4, 2\); expected \[batch\], or \[batch, 3\]"):
        module(torch.zeros(4, 3).double(), torch.ones(4, 2))


@torch.no_grad()
def test_moments_of_a_negative_binomial_are_those_it_names():
    spec, module = built("negative_binomial", {})
    outputs = outputs_of(spec, (1,), 1)
    p = module(outputs, torch.tensor([3.0]))
    mass = p.log_prob(COUNTS.unsqueeze(-1)).exp()
    mean = float(3 * outputs.exp())
    assert float((mass * COUNTS).sum()) == pytest.approx(mean)
    variance = mean + mean**2 / float(module.log_shape.exp())
    assert float((mass * (COUNTS - mean) ** 2).sum()) == pytest.approx(variance)


@pytest.mark.parametrize("name", ["poisson", "negative_binomial", "zero_inflated"])
def test_counts_start_at_the_mean_rate(name):
    spec, module = built(name, {}, (2,), torch.float32)
    x = torch.poisson(torch.tensor([[3.0, 40.0]]).expand(2000, 2))
    exposure = torch.full((2000,), 5.0)
    module.initialize(x)
    for given, e in ((None, 1.0), (exposure, 5.0)):
        start = module.initial_output(x, given)
        assert start.shape == spec.param_shape((2,))
        rate = start[-1] if start.dim() == 2 else start
        torch.testing.assert_close(e * rate.exp(), x.mean(0))


# Tables -----------------------------------------------------------------------------------------


def test_a_row_is_the_product_of_its_parts():
    spec, module = built("mixed", {"parts": PARTS}, (5,))
    assert spec.param_shape((5,)) == (4 + 1 + 3 + 1,)
    outputs = outputs_of(spec, (5,), 7)
    p = module(outputs)
    loc, raw = outputs[:, :2], outputs[:, 2:4]
    expected = (
        torch.distributions.Normal(loc, raw.exp()).log_prob(ROW[:2]).sum(-1)
        + torch.distributions.Bernoulli(logits=outputs[:, 4]).log_prob(ROW[2])
        + outputs[:, 5:8].log_softmax(-1)[:, 2]
        + Poisson(outputs[:, 8].exp()).log_prob(ROW[4])
    )
    torch.testing.assert_close(p.log_prob(ROW), expected)
    draws = p.sample((100,))
    assert draws.shape == (100, 7, 5)
    assert p.mean.shape == (7, 5)
    assert p.support.check(draws).all()
    wrong = ROW.clone()
    wrong[3] = 0.5
    assert not p.support.check(wrong).any()
    assert spec.measure == (
        "densities of 2 columns, probabilities of 1 columns, probabilities of 1 columns, "
        "probabilities of 1 columns"
    )
    assert type(spec).from_dict(spec.to_dict()) == spec


def test_tables_of_another_width_and_nested_ones_are_refused():
    with pytest.raises(pv.SpecError, match=r"cover 5 columns, but a datum has shape \(4,\)"):
        pv.VAE(data_shape=(4,), likelihood={"name": "mixed", "parts": PARTS})
    with pytest.raises(pv.SpecError, match=r"parts\.0\.likelihood: 'mixed' does not fit here"):
        pv.likelihoods.Mixed(parts=[{"likelihood": "mixed"}])


def test_probabilities_and_densities_have_no_common_unit():
    discrete = {"bernoulli", "categorical", "categories", "discretized_logistic", "multinomial"}
    discrete |= {"poisson", "negative_binomial", "zero_inflated"}
    found = {n for n in pv.Likelihood.registry if pv.Likelihood.resolve(n).measure[0] == "p"}
    assert found == discrete
    mixed = pv.likelihoods.Mixed(parts=PARTS)
    assert mixed.measure != pv.likelihoods.Mixed(parts=PARTS[::-1]).measure
