"""Sites that the model alone has, marked for enumeration: summed out of log p(x) exactly."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from tests.exact_models import agrees

SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
CENTRES = torch.tensor([-2.0, 0.0, 3.0], dtype=torch.float64)
MARK = {"enumerate": "parallel"}
NOISE = 0.5
# Where the class c stands: c -> z -> x; c -> x <- z; and both.
KINDS = ("above", "beside", "both")


def pair_of(kind, infer=MARK):
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(SHARES), infer=infer)
            centre = CENTRES[c]
            z = pyro.sample("z", dist.Normal(0.0 * centre if kind == "beside" else centre, 1.0))
            loc = z if kind == "above" else z + centre
            pyro.sample("x", dist.Normal(loc, NOISE), obs=x)

    return model


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 1.5 + 0 * x))


def truth(kind, x):
    """x ~ sum_c pi_c N(a m_c, 1 + 0.25), with a = 1, or 2 where c acts twice."""
    centres = CENTRES * (2 if kind == "both" else 1)
    each = dist.Normal(centres, (1 + NOISE**2) ** 0.5).log_prob(x.unsqueeze(-1))
    return (each + SHARES.log()).logsumexp(-1)


def log_px(model, guide, x, estimator, **options):
    return inference.log_marginal(model, guide, x, estimator=estimator, progress=False, **options)


def data(num=150):
    return 2.0 * torch.randn(num, dtype=torch.float64)


ESTIMATORS = {
    "importance": inference.Importance(num_samples=2000),
    "ais": inference.AIS(num_temperatures=40, space="latent"),
    "smc": inference.SMC(num_temperatures=20),
    "prior": inference.Importance(num_samples=4000, proposal="prior"),
    "widened": inference.Importance(num_samples=2000, proposal="widened", width=1.2),
    "gaussian": inference.AIS(num_temperatures=40, start="gaussian"),
}
GRID = [
    pytest.param(
        kind,
        name,
        marks=() if kind == "both" and name in ("importance", "ais") else pytest.mark.slow,
    )
    for kind in KINDS
    for name in ESTIMATORS
]


@pytest.mark.parametrize(("kind", "name"), GRID)
def test_unbiased_on_the_weight_scale(kind, name):
    x = data()
    found = log_px(pair_of(kind), guide, x, ESTIMATORS[name])
    ratio = (found.value - truth(kind, x)).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(x)), ceiling=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_quadrature_over_what_is_left(kind):
    x = data(40)
    found = log_px(pair_of(kind), guide, x, "quadrature")
    assert torch.allclose(found.value, truth(kind, x), atol=1e-6, rtol=0)


def test_summing_out_leaves_less_to_chance():
    """A draw of c by the guide is right, too, and noisier: the sum is the mean over c."""
    x = data()

    K = inference.Importance(num_samples=1000)
    summed, drawn = (log_px(pair_of("both"), q, x, K) for q in (guide, guide_of_both))
    for found in (summed, drawn):
        assert agrees(found.value, truth("both", x), found.std_error, ceiling=1.0)
    assert float(summed.std_error.median()) < 0.7 * float(drawn.std_error.median())


def test_a_class_that_is_not_marked_is_missed():
    """The twin: one draw of c for each z, instead of the sum, as if z's were all there is."""
    x = data()

    def wrong(x):  # c is drawn, and its probability is no part of log p
        with pyro.plate("data", len(x)):
            with pyro.poutine.block():
                c = pyro.sample("c", dist.Categorical(SHARES))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + CENTRES[c], NOISE), obs=x)

    K = inference.Importance(num_samples=2000)
    for model, is_right in ((pair_of("beside"), True), (wrong, False)):
        found = log_px(model, guide, x, K)
        assert agrees(found.value, truth("beside", x), found.std_error, ceiling=1.0) == is_right


def test_compiled_sums_are_the_eager_ones():
    x = data(64)
    K = inference.Importance(num_samples=200)
    eager, compiled = (
        log_px(pair_of("both"), guide, x, K, engine=e) for e in ("eager", "compiled")
    )
    assert (eager.engine, compiled.engine) == ("eager", "compiled")
    assert torch.allclose(eager.value, compiled.value, atol=1e-9)


def test_without_other_latents_the_sum_is_all():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(SHARES), infer=MARK)
            pyro.sample("x", dist.Normal(CENTRES[c], (1 + NOISE**2) ** 0.5), obs=x)

    x = data(50)
    found = log_px(model, lambda x: None, x, inference.Importance(num_samples=2))
    assert torch.allclose(found.value, truth("above", x), atol=1e-10)
    assert bool((found.std_error == 0).all())
    again = log_px(model, lambda x: None, x, "enumerate")
    assert torch.allclose(again.value, truth("above", x), atol=1e-10)
    for estimator in ("ais", "quadrature"):
        with pytest.raises(inference.PairError, match=r"no latents.*estimator='importance'"):
            log_px(model, lambda x: None, x, estimator)


def test_both_sides_hold_log_px():
    chains = inference.AIS(num_temperatures=40)
    found = log_px(pair_of("both"), guide, data(100), inference.Sandwich(num_data=100, by=chains))
    assert -3 * found.gap_std_error < found.gap < 0.1


def test_the_bound_and_the_units():
    """E_q log p(x|z) and the KL of z stand apart where c touches one of the two only."""
    x = data(50)
    total = log_px(pair_of("above"), guide, x, inference.Importance(num_samples=2000)).elbo.mean()
    found = inference.bound(pair_of("above"), guide, x, num_samples=2000)
    assert found.elbo == pytest.approx(float(total), abs=5 * found.elbo_std_error + 0.1)
    with pytest.raises(inference.PairError, match="site 'z' shares values that are summed over"):
        inference.bound(pair_of("both"), guide, x)
    assert inference.active_units(pair_of("both"), guide, x).num_units == 1


def test_what_a_sum_cannot_do_is_refused():
    x = data(20)
    with pytest.raises(inference.PairError, match=r"'c' is summed over; .*proposal='guide'"):
        log_px(pair_of("both"), guide, x, inference.Importance(proposal="defensive"))
    with pytest.raises(inference.PairError, match=r"site 'c' is discrete.*guide's start"):
        log_px(pair_of("both"), guide, x, inference.AIS(start="prior"))
    with pytest.raises(
        inference.PairError, match=r"'z' draws from Normal .*'importance'; or leave"
    ):
        log_px(pair_of("both", {}), guide_of_both, x, "enumerate")


def guide_of_both(x):
    with pyro.plate("data", len(x)):
        pyro.sample("c", dist.Categorical(torch.ones(len(x), 3).double()), infer=MARK)
        pyro.sample("z", dist.Normal(0.5 * x, 1.5 + 0 * x))
