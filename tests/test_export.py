"""What ArviZ is given: right draws, right weights, right names, whichever ArviZ there is.

Statistical checks use fixed seeds and 5 standard errors, about 40 comparisons in all.
"""

from __future__ import annotations

import math
import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import inference
from inference import tiles
from inference.export import GROUPS
from inference.resampling import Resampled
from tests.exact_models import agrees, linear_gaussian
from tests.small_pairs import PAIRS, line_data, line_guide, line_model, plate_of, subsampled

DRAWS = [group for group in GROUPS if group != "log_px"]


@pytest.fixture(scope="module")
def arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces its successor at import
        import arviz

        return arviz


def export(model, guide, data, **settings):
    """`to_arviz` in silence, without log p(x) unless asked for."""
    return inference.to_arviz(
        model, guide, data, **{"progress": False, "groups": DRAWS, **settings}
    )


def groups_of(idata) -> list[str]:
    """Names of the groups of an `InferenceData`, or a `DataTree`."""
    return list(idata.groups()) if callable(idata.groups) else list(idata.children)


def draws_of(idata, group: str, name: str) -> torch.Tensor:
    """`[S, ...]` of the one chain there is."""
    values = idata[group][name].values
    assert values.shape[0] == 1
    return torch.from_numpy(values[0].copy())


# Values ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wrong_but_covering():
    """A guide that is too wide and off its place, and its draws."""
    pair = linear_gaussian(seed=1, stretch=2.5, delta=0.6)
    x = pair.sample(300, seed=2)
    return pair, x, export(pair.model, pair.guide, x, num_samples=100, num_proposals=1000)


def standardized(pair, x, z):
    """u = L^-1 (z - m) with V = L L', so that exact draws are N(0, I); `[S, N, latents]`."""
    root = torch.linalg.cholesky(pair.V)
    return torch.linalg.solve_triangular(root, (z - pair.mean(x)).mT, upper=False).mT


def has_moments(u, mean, variance, *, ceiling=0.03) -> bool:
    """Are mean and second moment of each latent right, with errors from independent data?"""
    for power, truth in ((1, mean), (2, variance + mean**2)):
        each = u.pow(power).mean(0)  # [N, latents]
        error = each.std(0) / math.sqrt(len(each))
        if not agrees(each.mean(0), torch.full_like(error, truth), error, ceiling=ceiling):
            return False
    return True


def test_draws_of_the_guide_are_the_guides(wrong_but_covering):
    pair, x, idata = wrong_but_covering
    u = standardized(pair, x, draws_of(idata, "guide", "z"))
    assert has_moments(u, 0.6, 2.5)
    assert not has_moments(u, 0.0, 1.0)


def test_resampled_draws_are_the_posteriors(wrong_but_covering):
    pair, x, idata = wrong_but_covering
    u = standardized(pair, x, draws_of(idata, "importance_resampled", "z"))
    assert has_moments(u, 0.0, 1.0)
    assert not has_moments(u, 0.6, 2.5)


@pytest.mark.parametrize("joint", [False, True])
def test_weights_of_the_whole_batch_are_caught(wrong_but_covering, joint):
    """Pyro's own importance routines weigh all data at once: one draw wins for all of them."""
    pair, x, _ = wrong_but_covering
    torch.manual_seed(0)
    record = inference.log_weights(pair.model, pair.guide, x, num_particles=1000)
    log_weight = record.log_weight
    if joint:
        log_weight = log_weight.sum(1, keepdim=True).expand(log_weight.shape)
    resampled = Resampled(100)
    resampled.update(log_weight, record.latents)
    u = standardized(pair, x, resampled.values["z"])
    assert has_moments(u, 0.0, 1.0) is not joint


def test_prior_and_predictions(wrong_but_covering):
    pair, x, idata = wrong_but_covering
    assert has_moments(draws_of(idata, "prior", "z"), 0.0, 1.0)
    for latents, predictive in (("prior", "prior_predictive"), ("guide", "guide_predictive")):
        z, replicates = draws_of(idata, latents, "z"), draws_of(idata, predictive, "x")
        noise = (replicates - z @ pair.W.T - pair.mu) / pair.psi.sqrt()
        assert has_moments(noise, 0.0, 1.0)
        # Wrong: a replicate of another draw, or the data themselves.
        other = (replicates.roll(1, 0) - z @ pair.W.T - pair.mu) / pair.psi.sqrt()
        assert not has_moments(other, 0.0, 1.0, ceiling=1.0)
        assert not torch.isclose(replicates, x).any()


@pytest.mark.parametrize("numbers", [None, 60])
def test_weights_are_those_of_the_draws_beside_them(monkeypatch, numbers):
    """Exactly, place by place, in one tile and in many."""
    if numbers:
        monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", numbers)
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(11)
    idata = export(pair.model, pair.guide, x, num_samples=30, num_proposals=30)
    z = draws_of(idata, "guide", "z")
    log_px_z = pair.likelihood(z).log_prob(x)
    log_w = log_px_z + pair.prior().log_prob(z) - pair.q(x).log_prob(z)
    assert torch.allclose(draws_of(idata, "log_likelihood_conditional", "x"), log_px_z)
    assert torch.allclose(draws_of(idata, "importance_weights", "log_weight"), log_w)
    weights = idata["importance_weights"]
    ess = log_w.softmax(0).square().sum(0).reciprocal()
    khat = inference.pareto_khat(log_w.T)
    assert np.allclose(weights["ess"], ess)
    assert np.allclose(weights["khat"], khat)
    assert weights["khat"].dims == ("data",)
    threshold = weights.attrs["khat_threshold"]
    assert threshold == pytest.approx(1 - 1 / math.log10(30))
    assert np.array_equal(weights["flagged"], khat > threshold)
    # What is drawn again is a draw of the same datum.
    again = draws_of(idata, "importance_resampled", "z")
    same = (again[:, None] == z[None]).all(-1)  # [S, S, N]
    assert bool(same.any(1).all())
    assert np.array_equal(idata["observed_data"]["x"], x)


def test_more_proposals_leave_the_guides_draws_alone():
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(4)
    few = export(pair.model, pair.guide, x, num_samples=20, num_proposals=20)
    many = export(pair.model, pair.guide, x, num_samples=20, num_proposals=400)
    for group in ("guide", "prior", "guide_predictive", "log_likelihood_conditional"):
        assert few[group].equals(many[group])
    assert float(many["importance_weights"]["ess"].min()) > 20
    assert many["importance_weights"].attrs["num_proposals"] == 400


def test_log_px_and_its_errors():
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(50)
    expected = inference.log_marginal(pair.model, pair.guide, x, seed=3, progress=False)
    idata = export(pair.model, pair.guide, x, groups=["log_px"], seed=3)
    assert groups_of(idata) == ["log_px"]
    found = idata["log_px"]
    for name, value in expected.arrays().items():
        assert found[name].dims == ("data",)
        assert np.array_equal(found[name], value, equal_nan=value.is_floating_point())
    truth = pair.log_px(x)
    value, error = (torch.from_numpy(found[n].values) for n in ("value", "std_error"))
    assert agrees(value, truth, error, ceiling=0.1)
    assert found.attrs["quantity"] == "log p(x)"
    assert found.attrs["estimator"] == "importance"
    assert found.attrs["num_samples"] == 5000
    assert found.attrs["bias_direction"] == "low in expectation"
    assert found.attrs["mc_std_error"] == expected.mc_std_error


def test_log_px_by_another_estimator():
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(5)
    exact = inference.log_marginal(
        pair.model, pair.guide, x, estimator=inference.Quadrature(), progress=False
    )
    idata = export(pair.model, pair.guide, x, groups=["log_px", "guide"], log_px=exact)
    assert idata["log_px"].attrs["estimator"] == "quadrature"
    assert torch.allclose(torch.from_numpy(idata["log_px"]["value"].values), pair.log_px(x))


def global_weight():
    """y = w x + z + noise; guides of w and z, data, and the pair at one w."""

    def model(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(w * x + z, 1.0), obs=y)

    def guide(x, y):
        w = pyro.sample("w", dist.Normal(0.0, 0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * (y - w * x), 0.8))

    x = torch.linspace(-2, 2, 6)
    pair = inference.given_globals(model, guide, {"w": torch.ones(())})
    return model, guide, (x, x.flip(0)), pair


def test_log_px_under_draws_of_global_latents(arviz, tmp_path):
    """log p(x | w_s) of each datum and each draw."""
    model, guide, data, pair = global_weight()
    found = inference.log_predictive(model, guide, data, draws=3, progress=False)
    names = {"coords": {"global_draw": ["a", "b", "c"]}, "groups": None}
    for settings in ({"groups": ["log_px"]}, names):
        idata = export(*pair, data, log_px=found, num_samples=5, **settings)
        group = idata["log_px"]
        assert group["given"].dims == ("data", "global_draw")
        assert np.array_equal(group["given"], found.given)
        for name in ("value", "std_error", "draws_std_error"):
            assert group[name].dims == ("data",)
            assert np.array_equal(group[name], getattr(found, name))
        assert group.attrs["num_draws"] == 3
    assert group["global_draw"].values.tolist() == ["a", "b", "c"]
    with pytest.raises(inference.RequestError, match="coords: 'global_draw' has labels of shape"):
        export(*pair, data, log_px=found, groups=None, coords={"global_draw": ["a"]})
    with pytest.MonkeyPatch.context() as patch:  # the other line's class, which xarray has
        patch.setattr(arviz, "__version__", "1.0.0")
        tree = export(*pair, data, log_px=found, groups=["log_px"])
        assert list(tree.children) == ["log_px"]
        assert tree["log_px"]["given"].dims == ("data", "global_draw")
    pytest.importorskip("h5py")
    pytest.importorskip("h5netcdf")
    if arviz.__version__.startswith("0."):
        idata.to_netcdf(str(tmp_path / "idata.nc"))
    else:
        idata.to_netcdf(tmp_path / "idata.nc", engine="h5netcdf")
    back = arviz.from_netcdf(str(tmp_path / "idata.nc"))
    assert np.array_equal(back["log_px"]["given"], found.given)


def loo_of(arviz, posterior, log_likelihood) -> torch.Tensor:
    """What leave-one-out makes of each datum, by the ArviZ at hand."""
    groups = {"posterior": posterior, "log_likelihood": log_likelihood}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own k-hat
        if arviz.__version__.startswith("0."):
            found = arviz.loo(arviz.InferenceData(**groups), pointwise=True).loo_i
        else:
            import xarray

            tree = xarray.DataTree.from_dict({n: g.to_dataset() for n, g in groups.items()})
            found = arviz.loo(tree, pointwise=True).elpd_i
    return torch.from_numpy(np.array(found))


def test_leave_one_out_on_the_conditional_log_likelihood_misleads(arviz):
    """Each datum has its own latent: az.loo on log p(x|z) is nats off, even with exact draws."""
    pair = linear_gaussian(D=20, L=5, seed=1)  # the guide is the exact posterior
    x = pair.sample(200)
    idata = export(pair.model, pair.guide, x, num_samples=1000, groups=None)
    with pytest.raises(Exception, match=r"log.?likelihood"):
        arviz.loo(idata)
    truth = pair.log_px(x)
    misled = loo_of(arviz, idata["guide"], idata["log_likelihood_conditional"])
    off = misled - truth
    assert float(off.mean()) > 2.0
    assert float(off.mean()) > 20 * float(off.std()) / math.sqrt(len(off))
    found = torch.from_numpy(idata["log_px"]["value"].values)
    assert torch.allclose(found, truth, atol=1e-6)  # an exact guide has no error


# Names -----------------------------------------------------------------------------------------


def test_groups_and_their_labels(wrong_but_covering):
    _, _, idata = wrong_but_covering
    assert set(groups_of(idata)) == set(DRAWS) - {"constant_data"}
    assert not any(group.startswith("posterior") for group in groups_of(idata))
    for group in groups_of(idata):
        assert idata[group].attrs["description"] == GROUPS[group]
    z = idata["guide"]["z"]
    assert z.dims == ("chain", "draw", "data", "z_dim_0")
    assert z.shape == (1, 100, 300, 2)
    assert np.array_equal(z["data"], np.arange(300))
    assert idata["guide_predictive"]["x"].dims == ("chain", "draw", "data", "x_dim_0")
    assert idata["observed_data"]["x"].dims == ("data", "x_dim_0")


def test_own_names_and_coordinates():
    pair = linear_gaussian(seed=1, stretch=1.6)
    idata = export(
        pair.model,
        pair.guide,
        pair.sample(3),
        num_samples=5,
        dims={"z": ["latent"], "x": ["pixel"]},
        coords={"data": ["a", "b", "c"], "latent": [10, 20]},
    )
    assert idata["guide"]["z"].dims == ("chain", "draw", "data", "latent")
    assert idata["guide"]["z"].sel(data="b", latent=20).shape == (1, 5)
    assert idata["prior_predictive"]["x"].dims == ("chain", "draw", "data", "pixel")
    assert list(idata["importance_weights"]["data"].values) == ["a", "b", "c"]


KINDS = {
    "plain params": {"guide": {"z": ()}, "observed_data": {"y": ()}, "constant_data": {"x": ()}},
    "pyro.module": {
        "guide": {"latent": ("latent_dim_0",)},
        "observed_data": {"obs": ("obs_dim_0",)},
    },
    "nested plates": {
        "guide": {"z": ("one",), "w": ("views",)},
        "observed_data": {"x": ("views",)},
    },
    "labels": {"guide": {"z": ("z_dim_0",)}, "observed_data": {"y": (), "x": ()}},
    "implicit": {"guide": {"shares": ("shares_dim_0",), "speed": ()}, "constant_data": {"x": ()}},
    "no latents": {"guide_predictive": {"y": ()}, "constant_data": {"x": ()}},
    "auxiliary": {"guide": {"z": ()}, "constant_data": {"x": ()}},
    "prescaled": {"guide": {"z": ()}, "observed_data": {"y": ()}, "constant_data": {"x": ()}},
}


@pytest.mark.parametrize("name", KINDS)
def test_pairs_of_all_kinds(name):
    torch.manual_seed(0)
    (model, guide), data = PAIRS[name]()
    idata = export(model, guide, data, num_samples=6, num_proposals=20, plate=plate_of(name))
    expected = {"constant_data": {}, **KINDS[name]}
    for group, variables in expected.items():
        lead = ("data",) if group.endswith("_data") else ("chain", "draw", "data")
        found = idata[group].data_vars if variables else {}
        named = {name: (*lead, *dims) for name, dims in variables.items()}
        assert {name: values.dims for name, values in found.items()} == named
        assert (group in groups_of(idata)) is bool(variables)
    for group in set(groups_of(idata)) & {"importance_resampled", "prior"}:
        assert idata[group].sizes == idata["guide"].sizes
        assert set(idata[group].data_vars) == set(idata["guide"].data_vars)


def test_supports_are_kept():
    (model, guide), data = PAIRS["implicit"]()
    idata = export(model, guide, data, num_samples=50)
    for group in ("guide", "importance_resampled", "prior"):
        assert np.allclose(idata[group]["shares"].sum("shares_dim_0"), 1, atol=1e-5)
        assert float(idata[group]["speed"].min()) > 0
    # The two sites of one draw stay together.
    joined = [
        np.concatenate([idata[g]["shares"], idata[g]["speed"].expand_dims("one", -1)], -1)
        for g in ("guide", "importance_resampled")
    ]
    same = (joined[1][0][:, None] == joined[0][0][None]).all(-1)
    alone = (joined[1][0][:, None, :, 3:] == joined[0][0][None, :, :, 3:]).all(-1)
    assert np.array_equal(same, alone)


def test_a_discrete_site_has_its_exact_posterior():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
            pyro.sample("x", dist.Normal(c.to(x.dtype), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(torch.ones(3) / 3))

    x = torch.linspace(-2, 4, 30, dtype=torch.float64)
    idata = export(model, guide, x, num_samples=400, num_proposals=4000)
    values = torch.arange(3.0).double()
    joint = dist.Normal(values, 1.0).log_prob(x[:, None]) + torch.tensor([0.5, 0.3, 0.2]).log()
    truths = {"importance_resampled": joint.softmax(1), "guide": torch.ones(30, 3) / 3}
    for group, truth in truths.items():
        c = draws_of(idata, group, "c")
        assert not c.is_floating_point()
        share = (c.unsqueeze(-1) == values).double().mean(0)
        error = (truth * (1 - truth) / 400 * 1.2).sqrt() + 1e-3
        assert agrees(share, truth, error)
    assert not agrees(share, joint.softmax(1), error)


def test_weights_of_a_good_guide_of_discrete_latents_are_not_flagged():
    """They have no k-hat, and are enough."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(4 * z, 1.0), obs=x)

    def guide(share, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(share + 0 * x))

    x = torch.linspace(1, 3, 8)
    good, bad = (
        export(model, partial(guide, share), x, num_proposals=1000)["importance_weights"]
        for share in (0.5, 0.01)
    )
    assert bool(good["khat"].isnull().all())
    assert not bool(good["flagged"].any())
    assert bool(bad["flagged"][4:].all())


def test_a_site_that_the_model_sums_over():
    """Its values are drawn where the model runs free, and stand nowhere else."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.5)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(8 * c - 4, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)
            pyro.sample("both", dist.Normal(z + c, 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.5))

    x = torch.tensor([-4.0, 4.0, 3.0])
    idata = export(model, guide, x, num_samples=300)
    assert list(idata["guide"].data_vars) == ["z"]
    # log p(both|z) has c in common with log p(z): there is no such number by itself.
    assert list(idata["log_likelihood_conditional"].data_vars) == ["x"]
    prior = draws_of(idata, "prior", "z")
    assert prior.shape == (300, 3)
    assert 0.4 < float((prior > 0).double().mean()) < 0.6
    assert idata["prior_predictive"]["both"].dims == ("chain", "draw", "data")


def test_all_data_as_one():
    pair = linear_gaussian(seed=1, stretch=1.1)
    x = pair.sample(3)
    idata = export(pair.model, pair.guide, x, num_samples=50, plate=None, groups=None)
    z = draws_of(idata, "guide", "z")
    assert idata["guide"]["z"].dims == ("chain", "draw", "data", "z_dim_0")
    log_px_z = pair.likelihood(z).log_prob(x).sum(1)
    log_w = log_px_z + (pair.prior().log_prob(z) - pair.q(x).log_prob(z)).sum(1)
    assert idata["importance_weights"]["log_weight"].dims == ("chain", "draw")
    assert torch.allclose(draws_of(idata, "importance_weights", "log_weight"), log_w)
    assert torch.allclose(draws_of(idata, "log_likelihood_conditional", "x"), log_px_z)
    assert idata["importance_weights"]["ess"].dims == ()
    assert idata["log_px"]["value"].dims == ()
    assert idata["log_px"].attrs["quantity"] == "joint log p(x)"
    found, error = (float(idata["log_px"][n]) for n in ("value", "std_error"))
    assert agrees(found, float(pair.log_px(x).sum()), error, ceiling=0.05)
    assert np.array_equal(idata["observed_data"]["x"], x)


def test_a_plate_that_takes_a_part_at_a_time():
    """Every datum has its own numbers, those of the last, overlapping block among them."""
    model, guide = subsampled(12)
    x, y = line_data()
    idata = export(model, guide, (x, y), num_samples=20, num_proposals=20)
    z = draws_of(idata, "guide", "z")
    log_w = (
        dist.Normal(0.0, 1.0).log_prob(z)
        + dist.Normal(z, 1.0).log_prob(y)
        - dist.Normal(0.0, 1.0).log_prob(z)
    )
    found = draws_of(idata, "importance_weights", "log_weight")
    assert torch.allclose(found, log_w.double(), atol=1e-5)
    assert np.array_equal(idata["observed_data"]["y"], y)
    assert np.array_equal(idata["constant_data"]["x"], x)


def viewing():
    """A decoder that takes one batch dimension only, so that data are repeated."""
    torch.manual_seed(0)
    decoder = nn.Linear(2, 3)

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = decoder(z.view(len(x), 2)).view(len(x), 3)
            pyro.sample("x", dist.Normal(loc, 0.01).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 0.2).to_event(1))

    return decoder, model, guide


def test_a_pair_that_cannot_take_particles():
    decoder, model, guide = viewing()
    x = torch.randn(7, 3)
    idata = export(model, guide, x, num_samples=9, num_proposals=30)
    z = draws_of(idata, "guide", "z")
    with torch.no_grad():
        loc = decoder(z)
        expected = dist.Normal(loc, 0.01).to_event(1).log_prob(x).double()
        replicates = draws_of(idata, "guide_predictive", "x")
        assert float((replicates - loc).abs().max()) < 0.06
        free = draws_of(idata, "prior_predictive", "x") - decoder(draws_of(idata, "prior", "z"))
        assert float(free.abs().max()) < 0.06
    found = draws_of(idata, "log_likelihood_conditional", "x")
    assert torch.allclose(found, expected, rtol=1e-4)
    assert float((z - x[:, :2]).abs().max()) < 1.2
    assert np.array_equal(idata["observed_data"]["x"], x)


def test_predictions_follow_from_predictions():
    """An observed site that depends on another one's value depends on what is drawn there."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            first = pyro.sample("first", dist.Normal(z, 1.0), obs=x)
            pyro.sample("second", dist.Normal(first, 0.01), obs=x + 0.0)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    idata = export(model, guide, torch.randn(10), num_samples=30)
    for group in ("guide_predictive", "prior_predictive"):
        gap = idata[group]["second"] - idata[group]["first"]
        assert 0.005 < float(gap.std()) < 0.02
        assert float(idata[group]["first"].std()) > 0.5
    assert "constant_data" not in groups_of(idata)


def test_covariates_that_look_like_data_in_part():
    """A binary covariate equal to the outcome in the first data is a covariate all the same."""

    def model(treated, outcome):
        with pyro.plate("data", len(outcome)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("died", dist.Bernoulli(logits=z + treated), obs=outcome)

    def guide(treated, outcome):
        with pyro.plate("data", len(outcome)):
            pyro.sample("z", dist.Normal(outcome, 1.0))

    outcome = torch.tensor([0.0, 1, 0, 1, 1, 0])
    treated = torch.tensor([0.0, 1, 0, 1, 1, 1])
    idata = export(model, guide, (treated, outcome), num_samples=5)
    assert list(idata["constant_data"].data_vars) == ["treated"]
    assert np.array_equal(idata["constant_data"]["treated"], treated)


# With ArviZ ------------------------------------------------------------------------------------


def test_summary(arviz):
    pair = linear_gaussian(seed=1, stretch=1.6)
    idata = export(pair.model, pair.guide, pair.sample(3), num_samples=100)
    for group in ("guide", "importance_resampled", "prior", "guide_predictive"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no r-hat of one chain
            table = arviz.summary(idata, group=group, round_to=6)
        name = "x" if group == "guide_predictive" else "z"
        expected = idata[group][name].mean(("chain", "draw")).values.ravel()
        assert np.allclose(table["mean"].astype(float), expected, atol=1e-4)


def test_round_trip_through_a_file(arviz, tmp_path):
    pytest.importorskip("h5py")
    pytest.importorskip("h5netcdf")
    idata = export(line_model, line_guide, line_data(), num_samples=5, groups=None)
    file = tmp_path / "idata.nc"
    if arviz.__version__.startswith("0."):
        idata.to_netcdf(str(file))
    else:
        idata.to_netcdf(file, engine="h5netcdf")
    back = arviz.from_netcdf(str(file))
    assert set(groups_of(back)) == set(groups_of(idata)) == set(GROUPS)
    for group in GROUPS:
        assert set(back[group].data_vars) == set(idata[group].data_vars)
        for name, values in idata[group].data_vars.items():
            assert back[group][name].dims == values.dims
            assert back[group][name].dtype == values.dtype
            assert np.array_equal(back[group][name], values, equal_nan=values.dtype.kind == "f")
        assert back[group].attrs["description"] == GROUPS[group]
    assert back["log_px"].attrs["bias_direction"] == "low in expectation"


def test_equal_seeds_equal_draws_and_no_traces():
    pyro.get_param_store().clear()
    state = torch.get_rng_state()
    a = export(line_model, line_guide, line_data(), num_samples=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert not list(pyro.get_param_store().keys())
    torch.randn(3)
    b = export(line_model, line_guide, line_data(), num_samples=5)
    c = export(line_model, line_guide, line_data(), num_samples=5, seed=1)
    for group in groups_of(a):
        assert a[group].equals(b[group])
        assert a[group].equals(c[group]) is group.endswith("_data")


# Resampling ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[6], [1, 5], [2, 2, 2], [1] * 6])
def test_resampling_in_pieces(pieces):
    """Each place holds draw k with probability w_k / sum w, in whatever pieces they come."""
    torch.manual_seed(1)
    log_weight = 2 * torch.randn(6, 3).double()
    truth = log_weight.softmax(0)
    resampled = Resampled(20_000)
    values = torch.arange(6).unsqueeze(1).expand(6, 3)
    for w, v in zip(log_weight.split(pieces), values.split(pieces), strict=True):
        resampled.update(w, {"k": v})
    share = torch.stack([(resampled.values["k"] == k).double().mean(0) for k in range(6)])
    assert agrees(share, truth, (truth * (1 - truth) / 20_000).sqrt() + 1e-9, ceiling=0.01)


def test_resampling_where_weights_are_zero():
    """A draw of no weight never comes back, unless there is none with any."""
    zero = -math.inf
    log_weight = torch.tensor([[zero, zero], [0.0, zero], [zero, zero], [1.0, zero]]).double()
    resampled = Resampled(500)
    for k in range(4):
        resampled.update(log_weight[k : k + 1], {"k": torch.full((1, 2), k)})
    first, second = resampled.values["k"].T
    assert set(first.tolist()) == {1, 3}
    assert set(second.tolist()) == {0, 1, 2, 3}


# Refusals --------------------------------------------------------------------------------------


class NoEstimate:
    pass


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"num_samples": 0}, "num_samples: got 0; expected a whole number of at least 1"),
        ({"num_samples": 9, "num_proposals": 8}, "num_proposals: got 8; expected .* at least 9"),
        ({"groups": "guide"}, r"groups: got 'guide'; expected a list"),
        ({"groups": ["posterior"]}, "groups: 'posterior' is unknown. Choices: guide, importance"),
        ({"groups": []}, "groups: got none"),
        ({"log_px": 3.0}, "log_px: got a float; expected what inference.log_marginal returns"),
        ({"dims": ["latent"]}, "dims: got .* expected a mapping"),
        ({"dims": {"w": ["latent"]}}, "dims: 'w' is unknown. Choices: z, x"),
        ({"dims": {"z": "latent"}}, "dims: 'z' has 'latent'; expected a list of names"),
        ({"dims": {"z": ["a", "b"]}}, "dims: 'z' has 2 names.* 1 axes to name"),
        ({"dims": {"z": ["draw"]}}, "'z': two axes of one name"),
        ({"dims": {"z": ["data"]}}, "'z': two axes of one name"),
        ({"dims": {"z": ["k"], "x": ["k"]}}, "dims: 'k' names an axis of length 2 of 'z' and one"),
        ({"dims": {"z": ["x"]}}, "'x' is a variable and a dimension at once"),
        ({"coords": {"latent": [1, 2]}}, "coords: 'latent' is unknown. Choices: data, z_dim_0"),
        ({"coords": {"data": [1, 2]}}, r"coords: 'data' has labels of shape \[2\]; expected \[5\]"),
        ({"coords": {"data": "abc"}}, r"coords: 'data' has labels of shape \[\]"),
        ({"max_gib": 0}, "max_gib: got 0; expected a positive number"),
        ({"max_gib": 1e-6}, "max_gib: 200 draws of 5 data take .* GiB .*guide_predictive"),
        ({"plate": "rows"}, "no site stands in a plate called 'rows'"),
    ],
)
def test_refusals(settings, said):
    pair = linear_gaussian(seed=1, stretch=1.6)
    with pytest.raises(inference.RequestError, match=said) as caught:
        export(pair.model, pair.guide, pair.sample(5), **settings)
    assert "\n" not in str(caught.value)


def test_an_estimate_of_something_else_is_refused():
    pair = linear_gaussian(seed=1, stretch=1.6)
    x = pair.sample(5)

    def estimate(data, **settings):
        return inference.log_marginal(pair.model, pair.guide, data, progress=False, **settings)

    few = inference.Importance(num_samples=10)
    for wrong in (
        estimate(x[:4], estimator=few),
        estimate(x, estimator=few, plate=None),
        estimate(x, estimator=inference.Sandwich(num_data=5)),
    ):
        with pytest.raises(inference.RequestError, match=r"log_px: is '.*expected 'log p"):
            export(pair.model, pair.guide, x, log_px=wrong)


def test_weights_that_are_no_numbers_are_named():
    def guide(x):
        with pyro.plate("data", len(x)):
            scale = torch.where(x[:, 0] > 1.0, math.nan, 1.0)
            pyro.sample("z", dist.Normal(x[:, :2], scale[:, None], validate_args=False).to_event(1))

    pair = linear_gaussian(seed=1)
    x = torch.zeros(6, 5, dtype=torch.float64)
    x[5, 0] = 2.0
    with pytest.raises(inference.NonFiniteError, match="log w of datum 5 is NaN"):
        export(pair.model, guide, x, num_samples=5)
