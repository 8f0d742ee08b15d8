"""Factors in a guide and dimensions without a plate: refused by name, and what fits is let through.

Points, narrow supports, parts of plates and others are in `test_pairs.py`.
"""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from tests.exact_models import agrees
from tests.small_pairs import fit


def log_px(model, guide, data, estimator="importance"):
    return inference.log_marginal(model, guide, data, estimator=estimator, progress=False)


def simple(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        noise = pyro.param("noise", torch.tensor(1.0))
        pyro.sample("x", dist.Normal(z, noise), obs=x)


def gaussian(variance):
    return dist.Normal(0.0, math.sqrt(variance))


# Factors ------------------------------------------------------------------------------------


def with_a_factor(x):
    """The posterior, and a term that makes it no density."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        pyro.factor("reg", -0.5 * z**2, has_rsample=True)


def with_data_of_its_own(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        pyro.sample("seen", dist.Normal(z, 1.0), obs=x, infer={"is_auxiliary": True})


def beside_an_auxiliary_site(x):
    """Without a point there is no Jacobian."""
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(x, 1.0), infer={"is_auxiliary": True})
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        pyro.factor("reg", -u, has_rsample=True)


FACTORS = {
    "a factor": (with_a_factor, "reg"),
    "data": (with_data_of_its_own, "seen"),
    "auxiliary": (beside_an_auxiliary_site, "reg"),
}


@pytest.mark.parametrize("case", FACTORS)
def test_a_factor_in_the_guide_is_refused_and_may_be_fitted(case, own_store):
    """q(z|x) exp(f) has no integral of 1: the mean weight would be p(x) E[exp(-f)]."""
    x = torch.randn(12)
    guide, name = FACTORS[case]
    message = f"site '{name}' of the guide is a factor .* no normalized density.*remove it"
    others = inference.AIS(num_temperatures=3), inference.Importance(proposal="defensive")
    for estimator in ("importance", "quadrature", *others):
        with pytest.raises(inference.PairError, match=message) as raised:
            log_px(simple, guide, x, estimator)
        assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(inference.PairError, match=message):
        inference.bound(simple, guide, x)
    with pytest.raises(inference.PairError, match=message):
        inference.log_weights(simple, guide, x)
    fit(simple, guide, x, epochs=1, batch_size=4)
    assert pyro.param("noise").item() != 1.0


def test_a_factor_is_not_met_where_the_prior_stands_in_the_guide_s_place():
    x = torch.randn(12)
    prior = inference.Importance(num_samples=20_000, proposal="prior")
    found = log_px(simple, with_a_factor, x, prior)
    assert agrees(found.value, gaussian(2).log_prob(x).double(), found.std_error, ceiling=0.1)


def test_the_jacobian_of_a_point_may_be_a_factor():
    """z = 2 u, written both ways: the same weights."""

    def guide(as_factor):
        def run(x):
            with pyro.plate("data", len(x)):
                u = pyro.sample("u", dist.Normal(x / 4, 0.4), infer={"is_auxiliary": True})
                jacobian = torch.full((len(x),), -math.log(2.0))
                pyro.sample("z", dist.Delta(2 * u, log_density=0 if as_factor else jacobian))
                if as_factor:
                    pyro.factor("jacobian", jacobian, has_rsample=True)

        return run

    x = torch.randn(12)
    found, expected = (log_px(simple, guide(form), x) for form in (True, False))
    assert torch.allclose(found.value, expected.value)
    assert agrees(found.value, gaussian(2).log_prob(x).double(), found.std_error, ceiling=0.1)


# Dimensions ---------------------------------------------------------------------------------


def several(shape, inner=None, event=0, obs=lambda x: x):
    """z ~ N(0, 1) of this shape, None for the data, beside a plate `inner`; x ~ N(its sum, 1)."""

    def run(x, *, observed):
        data = pyro.plate("data", len(x), dim=-1)
        full = torch.zeros([len(x) if n is None else n for n in shape])
        fn = dist.Normal(full, 1.0).to_event(event)
        if inner is None:
            with data:
                z = pyro.sample("z", fn)
        else:
            with data, pyro.plate("inner", inner, dim=-2):
                z = pyro.sample("z", fn)
        if observed:
            total = z.sum(-1) if event else z if inner is None else z.sum(-2)
            with data:
                pyro.sample("x", dist.Normal(total, 1.0), obs=obs(x))

    return (lambda x: run(x, observed=True)), (lambda x: run(x, observed=False))


UNDECLARED = {
    "a latent": (several((3, None)), "z"),
    "beyond another plate": (several((3, 2, None), inner=2), "z"),
    "data": (several((None,), obs=lambda x: x.expand(5, -1)), "x"),
    # The well-known slip: [N, 1] against [N] is [N, N].
    "data of another shape": (several((None,), obs=lambda x: x.unsqueeze(-1)), "x"),
}


@pytest.mark.parametrize("case", UNDECLARED)
@pytest.mark.parametrize("estimator", ["importance", "ais", "quadrature"])
def test_dimensions_that_no_plate_declares_are_refused_by_name(case, estimator):
    (model, guide), name = UNDECLARED[case]
    message = rf"site '{name}' has a density of shape \(.*more dimensions.*\.to_event\(n\)"
    with pytest.raises(inference.PairError, match=message) as raised:
        log_px(model, guide, torch.randn(20), estimator)
    assert len(str(raised.value).splitlines()) == 1


def test_dimensions_beside_no_plate_at_all():
    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0))
        pyro.sample("x", dist.Normal(w.sum(-1), 1.0).expand([len(x)]).to_event(1), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(torch.zeros(3), 1.0))

    with pytest.raises(inference.PairError, match=r"site 'w' has a density of shape \(3,\)"):
        inference.log_marginal(model, guide, torch.randn(5), plate=None, progress=False)


DECLARED = {
    "a plate": (several((3, None), inner=3), 4),
    "an event": (several((None, 3), event=1), 4),
    "of one": (several((1, 1, None), inner=1), 2),
}


@pytest.mark.parametrize("case", DECLARED)
def test_declared_dimensions_and_those_of_one(case):
    pair, variance = DECLARED[case]
    x = torch.linspace(-2, 2, 20)
    found = log_px(*pair, x, inference.Importance(num_samples=20_000))
    truth = gaussian(variance).log_prob(x).double()
    assert agrees(found.value, truth, found.std_error, ceiling=0.1)
