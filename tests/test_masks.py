"""Masks on latents: the same in both programs, or no evidence; against closed forms."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import inference
from tests.small_pairs import fit

X = torch.linspace(-2, 2, 30)
LATE = torch.arange(30) != 25  # in no row that a first look sees
EVERY = torch.ones(30, dtype=torch.bool)
HALF = torch.arange(30) % 2 == 0


def truth_of(x, keep):
    """x ~ N(0, 2) where it counts, else nothing."""
    return torch.where(keep, dist.Normal(0.0, 2**0.5).log_prob(x), 0.0).double()


def sampled(how, name, fn, keep, **rest):
    """A site that is masked by a handler, by its distribution, or not at all."""
    if how == "distribution":
        fn = fn.mask(keep)
    if how == "handler":
        with poutine.mask(mask=keep):
            return pyro.sample(name, fn, **rest)
    return pyro.sample(name, fn, **rest)


def model_of(how="handler", child="handler"):
    def model(x, keep):
        with pyro.plate("data", len(x)):
            z = sampled(how, "z", dist.Normal(torch.zeros(len(x)), 1.0), keep)
            noise = pyro.param("noise", torch.tensor(1.0))
            sampled(child, "x", dist.Normal(z, noise), keep, obs=x)

    return model


def guide_of(how="handler", scale=0.5**0.5):
    """The posterior, by default."""

    def guide(x, keep):
        with pyro.plate("data", len(x)):
            sampled(how, "z", dist.Normal(x / 2, scale), keep)

    return guide


def log_px(model, guide, data, estimator=inference.Importance(num_samples=50), **options):  # noqa: B008
    options = {"progress": False, "engine": "eager"} | options
    return inference.log_marginal(model, guide, data, estimator=estimator, **options)


ESTIMATORS = {
    "guide": inference.Importance(num_samples=50),
    "defensive": inference.Importance(num_samples=2000, proposal="defensive"),
    "widened": inference.Importance(num_samples=50, proposal="widened"),
    "ais": inference.AIS(num_temperatures=5),
    "smc": inference.SMC(num_temperatures=5),
    "sandwich": inference.Sandwich(num_data=30, by=inference.Importance(num_samples=50)),
    "quadrature": "quadrature",
}
DIFFER = "site 'z': the masks of model .* and guide .* differ.*put the model's mask into the guide"


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_latent_that_only_the_model_masks_is_refused(name):
    """Also where a single datum is masked, far from the first."""
    with pytest.raises(inference.PairError, match=DIFFER) as raised:
        log_px(model_of(), guide_of(None, 1.0), (X, LATE), ESTIMATORS[name])
    assert "masked in part) and guide (masked nowhere)" in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("in_model", "in_guide"),
    [("distribution", None), (None, "handler"), (None, "distribution"), ("handler", "opposite")],
)
def test_masks_that_differ_are_refused(in_model, in_guide):
    def guide(x, keep):
        how = "handler" if in_guide == "opposite" else in_guide
        guide_of(how)(x, ~keep if in_guide == "opposite" else keep)

    with pytest.raises(inference.PairError, match=DIFFER):
        log_px(model_of(in_model), guide, (X, HALF))
    with pytest.raises(inference.PairError, match=DIFFER):
        inference.log_weights(model_of(in_model), guide, X, HALF)
    with pytest.raises(inference.PairError, match=DIFFER):
        inference.bound(model_of(in_model), guide, (X, HALF))


@pytest.mark.parametrize("engine", ["eager", "compiled"])
def test_compiled_tiles_are_looked_at_too(engine, monkeypatch):
    monkeypatch.setattr("inference.staging.compile_graph", lambda graph, inputs: graph)
    with pytest.raises(inference.PairError, match=DIFFER):
        log_px(model_of(), guide_of(None), (X, LATE), engine=engine)


@pytest.mark.parametrize("in_guide", ["handler", "distribution"])
@pytest.mark.parametrize("in_model", ["handler", "distribution"])
@pytest.mark.parametrize("keep", [HALF, LATE, EVERY])
def test_equal_masks_are_exact(in_model, in_guide, keep):
    found = log_px(model_of(in_model, in_model), guide_of(in_guide), (X, keep))
    assert torch.allclose(found.value, truth_of(X, keep), atol=1e-5)
    if keep is EVERY:  # what differs nowhere may stand in one program alone
        found = log_px(model_of(in_model, in_model), guide_of(None), (X, keep))
        assert torch.allclose(found.value, truth_of(X, keep), atol=1e-5)


@pytest.mark.parametrize("name", ["defensive", "ais", "smc", "quadrature"])
def test_equal_masks_with_other_estimators(name):
    found = log_px(model_of(), guide_of(), (X, HALF), ESTIMATORS[name])
    assert torch.allclose(found.value[~HALF], torch.zeros(15).double(), atol=1e-5)
    assert torch.allclose(found.value, truth_of(X, HALF), atol=0.1)


def test_the_prior_in_the_guide_s_place_has_the_model_s_masks():
    prior = inference.Importance(num_samples=20_000, proposal="prior")
    found = log_px(model_of(), guide_of(None), (X, HALF), prior)
    assert torch.allclose(found.value, truth_of(X, HALF), atol=0.1)


def test_masks_within_an_event():
    """Missing numbers of a vector, and of the latents that explain them one by one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator)
    keep = torch.rand(12, 3, generator=generator) < 0.6

    def model(x, keep):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).mask(keep).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).mask(keep).to_event(1), obs=x)

    def guide(x, keep):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5).mask(keep).to_event(1))

    def unmasked(x, keep):
        guide(x, torch.ones_like(keep))

    found = log_px(model, guide, (x, keep))
    assert torch.allclose(found.value, truth_of(x, keep).sum(-1), atol=1e-5)
    with pytest.raises(inference.PairError, match=DIFFER):
        log_px(model, unmasked, (x, keep))


# obs_mask= of Pyro makes a latent '<name>_unobserved' under a mask


def partly_observed(x, keep):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x, obs_mask=keep)


def imputing(masked):
    def guide(x, keep):
        with pyro.plate("data", len(x)):
            scale = torch.where(keep, 0.5**0.5, 1.0)
            z = pyro.sample("z", dist.Normal(torch.where(keep, x / 2, 0.0), scale))
            sampled("handler" if masked else None, "x_unobserved", dist.Normal(z, 1.0), ~keep)

    return guide


@pytest.mark.parametrize("keep", [HALF, LATE])
def test_obs_mask(keep):
    found = log_px(partly_observed, imputing(True), (X, keep))
    assert torch.allclose(found.value, truth_of(X, keep), atol=1e-5)
    message = r"site 'x_unobserved': the masks .*with pyro\.poutine\.mask\(mask=~obs_mask\)"
    with pytest.raises(inference.PairError, match=message):
        log_px(partly_observed, imputing(False), (X, keep))


def test_a_pair_whose_masks_differ_may_be_fitted(own_store):
    fit(model_of(), guide_of(None), (X, HALF), epochs=1)
    assert pyro.param("noise").item() != 1.0


# What is masked must not be needed


@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_a_masked_latent_that_unmasked_data_need_is_refused(proposal):
    """The answer would be E_q[p(x|z)], and hang on the guide."""
    message = "site 'x' depends on a latent where that is masked .*: z.*mask 'x' there, too"
    estimator = inference.Importance(num_samples=50, proposal=proposal)
    with pytest.raises(inference.PairError, match=message):
        log_px(model_of(child=None), guide_of(), (X, LATE), estimator)


def test_steps_of_different_lengths():
    """z_t follows z_{t-1} while a sequence lasts: by the joint Gaussian of what is left."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.arange(12) % 4
    x = torch.randn(12, 3, generator=generator)

    def run(x, lengths, guide):
        z = torch.zeros(len(x))
        with pyro.plate("data", len(x)):
            for t in range(3):
                with poutine.mask(mask=t < lengths):
                    loc = 0.6 * z + 0.3 * x[:, t] if guide else z
                    z = pyro.sample(f"z{t}", dist.Normal(loc, 0.7 if guide else 1.0))
                    if not guide:
                        pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])

    found = log_px(
        lambda *data: run(*data, False),
        lambda *data: run(*data, True),
        (x, lengths),
        inference.Importance(num_samples=40_000),
    )
    walk = torch.tril(torch.ones(3, 3))
    for row, length, value in zip(x, lengths, found.value, strict=True):
        n = int(length)
        truth = 0.0
        if n:
            covariance = (walk @ walk.T + torch.eye(3))[:n, :n]
            normal = torch.distributions.MultivariateNormal(torch.zeros(n), covariance)
            truth = float(normal.log_prob(row[:n]))
        assert float(value) == pytest.approx(truth, abs=0.05)


# Points of auxiliary draws, and sites that are summed over


@pytest.mark.parametrize("together", [True, False])
def test_points_and_what_they_are_made_of_are_masked_together(together):
    def guide(x, keep):
        with pyro.plate("data", len(x)):
            draw = dist.Normal(x / 2, 0.5**0.5)
            site = {"infer": {"is_auxiliary": True}}
            u = sampled("handler" if together else None, "u", draw, keep, **site)
            sampled("handler", "z", dist.Delta(u), keep)

    if together:
        found = log_px(model_of(), guide, (X, HALF))
        assert torch.allclose(found.value, truth_of(X, HALF), atol=1e-5)
    else:
        with pytest.raises(inference.PairError, match=r"auxiliary sites u .* not masked together"):
            log_px(model_of(), guide, (X, HALF))


PROBS = torch.tensor([0.2, 0.3, 0.5])


def mixture(how, child="handler", marked=True):
    def model(x, keep):
        infer = {"infer": {"enumerate": "parallel"}} if marked else {}
        with pyro.plate("data", len(x)):
            c = sampled(how, "c", dist.Categorical(PROBS.expand(len(x), 3)), keep, **infer)
            sampled(child, "x", dist.Normal(c.float(), 1.0), keep, obs=x)

    return model


def mixture_truth(x, keep):
    each = dist.Normal(torch.arange(3.0), 1.0).log_prob(x[:, None]) + PROBS.log()
    return torch.where(keep, each.logsumexp(1), 0.0).double()


def test_masks_on_what_the_model_sums_over():
    """A handler's leaves the probabilities as they are; a distribution's would add log 3."""
    for child, truth in (("handler", HALF), (None, EVERY)):
        found = log_px(mixture("handler", child), lambda *data: None, (X, HALF))
        assert torch.allclose(found.value, mixture_truth(X, truth), atol=1e-5)
    message = r"site 'c' is summed over, and its own distribution is masked.*poutine\.mask"
    with pytest.raises(inference.PairError, match=message):
        log_px(mixture("distribution"), lambda *data: None, (X, LATE))


@pytest.mark.parametrize("marked", [True, False])
def test_masks_on_a_discrete_site_that_both_programs_have(marked):
    def guide(how):
        def run(x, keep):
            infer = {"infer": {"enumerate": "parallel"}} if marked else {}
            logits = -0.5 * (x[:, None] - torch.arange(3.0)) ** 2 + PROBS.log()
            with pyro.plate("data", len(x)):
                sampled(how, "c", dist.Categorical(logits=logits), keep, **infer)

        return run

    model = mixture("handler", marked=marked)
    found = log_px(model, guide("handler"), (X, HALF))
    assert torch.allclose(found.value, mixture_truth(X, HALF), atol=1e-5)
    with pytest.raises(inference.PairError, match="site 'c': the masks of model"):
        log_px(model, guide(None), (X, HALF))


def test_latents_beside_what_is_summed_over():
    """Each run gives the values that are summed over dimensions of their own."""

    def model(x, keep):
        with pyro.plate("data", len(x)), poutine.mask(mask=keep):
            infer = {"enumerate": "parallel"}
            c = pyro.sample("c", dist.Categorical(PROBS), infer=infer)
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)

    each = dist.Normal(torch.arange(3.0), math.sqrt(2)).log_prob(X[:, None]) + PROBS.log()
    truth = torch.where(HALF, each.logsumexp(1), 0.0).double()
    wide = guide_of("handler", 1.2)
    found = log_px(model, wide, (X, HALF), inference.Importance(num_samples=20_000))
    assert torch.allclose(found.value, truth, atol=0.1)
    with pytest.raises(inference.PairError, match=DIFFER):
        log_px(model, guide_of(None, 1.2), (X, HALF))
