"""Gaps against a model where all of them are known, and twins of them that are wrong."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import ConditionalAffineAutoregressive, ExpTransform
from pyro.nn import ConditionalAutoRegressiveNN
from small_pairs import line_data, subsampled

import inference
from inference.diagnostics import gaps as module
from inference.diagnostics import local_fit
from inference.diagnostics.local_guide import freed, without_parameters
from inference.isolation import derived_seed
from inference.pair import examine
from tests.exact_models import agrees, linear_gaussian, z_scores_are_normal

PAIR = linear_gaussian(seed=8, L=3)
X = PAIR.sample(60, seed=3)
EXACT_SD = PAIR.A.diagonal().rsqrt()  # of the best guide without correlations
SHIFT = torch.tensor([0.8, -1.2, 0.5], dtype=torch.float64) * EXACT_SD
SCALE = torch.tensor([0.6, 1.5, 1.2], dtype=torch.float64) * EXACT_SD
# 1/2 [sum ln A_ii - ln|A|], the same for every x.
APPROXIMATION = float(0.5 * (PAIR.A.diagonal().log().sum() - torch.logdet(PAIR.A)))


def sign(x):
    """The encoder errs to one side or the other, by datum."""
    return torch.sign(x[:, :1] - PAIR.mu[0])


def mean_field(x):
    with pyro.plate("data", len(x)):
        loc = PAIR.mean(x) + sign(x) * SHIFT
        pyro.sample("z", dist.Normal(loc, SCALE).to_event(1))


def exact(pair, x):
    """An estimate of log p(x) without error."""
    estimate = inference.log_marginal(
        pair.model, pair.guide, x, estimator=inference.Importance(num_samples=2), progress=False
    )
    return replace(
        estimate, value=pair.log_px(x), std_error=torch.zeros(len(x)).double(), flagged=None
    )


@pytest.fixture
def few_steps(monkeypatch):
    """For what does not depend on how good the local guides are."""
    monkeypatch.setattr(local_fit, "LEVELS", (0.05,))
    monkeypatch.setattr(local_fit, "MOST_ROUNDS", 1)


def split(guide=mean_field, pair=PAIR, x=X, **settings):
    settings = {"log_px": exact(pair, x), "progress": False, **settings}
    return inference.gaps(pair.model, guide, x, **settings)


def total_gap():
    return replace(PAIR, S=torch.diag(SCALE.square()), delta=SHIFT).kl()


def holds(found, approximation=APPROXIMATION, total=None):
    total = total_gap() if total is None else total
    parts = (
        (found.inference, total, 0.06),
        (found.approximation, approximation, 0.02),
        (found.amortization, total - approximation, 0.06),
    )
    return all(agrees(p.mean, t, p.mc_std_error, ceiling=c) for p, t, c in parts)


def test_mean_field_gaps_are_exact():
    found = split(num_samples=100)
    assert found.converged
    assert holds(found)
    # Not on average alone, and the errors have the size they claim.
    gap = found.approximation
    assert z_scores_are_normal((gap.value - APPROXIMATION) / gap.std_error, 0.7, 1.3)
    assert found.amortization.mc_std_error < 1.01 * found.elbo.mc_std_error
    parts = found.reconstruction.value - found.kl["z"].value + found.inference.value
    assert torch.allclose(parts, PAIR.log_px(X), atol=1e-9)
    said = str(found)
    assert "stood still" in said
    assert "flagged" not in said


def test_full_covariance_has_no_approximation_gap():
    pair = replace(PAIR, S=torch.diag(SCALE.square()), delta=SHIFT)
    found = split(guide=pair.guide, num_samples=100)
    assert holds(found, approximation=0.0)


def test_the_best_of_noisy_bounds_is_caught(monkeypatch):
    """A twin that keeps each datum's best value of ten looks at its local guide."""
    real = module._draws

    def selected(tiles, progress, title):
        found = real(tiles, progress, title)
        if title == "local guide":
            best = found["elbo"].reshape(10, -1, len(X)).mean(1).amax(0)
            found["elbo"] = found["elbo"] - found["elbo"].mean(0) + best
        return found

    monkeypatch.setattr(module, "_draws", selected)
    assert not holds(split(num_samples=100))


def test_optimising_what_data_share_is_caught():
    """A twin that moves all data's guides together: an encoder's errors differ by datum."""

    def start(x):
        return (torch.zeros(len(x), 2, 3).double(),)

    def program(parameters, x):
        shift, stretch = parameters[0].mean(0)
        with pyro.plate("data", len(x)):
            loc = PAIR.mean(x) + sign(x) * SHIFT + shift
            pyro.sample("z", dist.Normal(loc, SCALE * stretch.exp()).to_event(1))

    assert not holds(split(local=inference.LocalGuide(start, program), num_samples=100))


def test_a_guide_freed_by_hand():
    """Other numbers for the same family: same gaps."""

    def start(x):
        loc = PAIR.mean(x) + sign(x) * SHIFT
        return loc, SCALE.log().expand_as(loc).clone()

    def program(parameters, x):
        loc, log_scale = parameters
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    assert holds(split(local=inference.LocalGuide(start, program), num_samples=100))


def test_positive_latents():
    """log z is Gaussian given x, so that the family holds the posterior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.log(), 0.5), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(0.3 * x, 0.8)
            pyro.sample("z", dist.TransformedDistribution(base, [ExpTransform()]))

    x = 1.25**0.5 * torch.randn(50, dtype=torch.float64)
    truth = dist.Normal(torch.tensor(0.0).double(), 1.25**0.5).log_prob(x)
    estimate = replace(exact(PAIR, X[:50]), value=truth, data_digests=None)
    found = inference.gaps(model, guide, x, log_px=estimate, num_samples=100, progress=False)
    q = torch.distributions.Normal(0.3 * x, 0.8)
    p = torch.distributions.Normal(0.8 * x, 0.2**0.5)
    amortization = torch.distributions.kl_divergence(q, p).mean()
    assert agrees(found.approximation.mean, 0.0, found.approximation.mc_std_error + 1e-3)
    error = found.amortization.mc_std_error
    assert agrees(found.amortization.mean, amortization, error, ceiling=0.05)


def test_two_sites_in_a_plate_of_another_name():
    """p(a, b|x) has precision [[2, -1], [-1, 5]]; the guide's sites know nothing of each other."""
    A = torch.tensor([[2.0, -1.0], [-1.0, 5.0]])
    approximation = float(0.5 * (A.diagonal().log().sum() - torch.logdet(A)))

    def model(x):
        with pyro.plate("rows", len(x)):
            a = pyro.sample("a", dist.Normal(torch.tensor(0.0).double(), 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 0.5), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("a", dist.Normal(0.2 * x, 1.0))
            pyro.sample("b", dist.Normal(0.7 * x, 0.8))

    x = 1.5 * torch.randn(60, dtype=torch.float64)
    truth = dist.Normal(torch.tensor(0.0).double(), 2.25**0.5).log_prob(x)
    estimate = replace(exact(PAIR, X), value=truth, data_digests=None)
    found = inference.gaps(
        model, guide, x, log_px=estimate, plate="rows", num_samples=100, progress=False
    )
    gap = found.approximation
    assert agrees(gap.mean, approximation, gap.mc_std_error, ceiling=0.01)
    assert list(found.kl) == ["a", "b"]
    parts = found.reconstruction.value - sum(item.value for item in found.kl.values())
    assert torch.allclose(parts, found.elbo.value, atol=1e-9)


def low_rank(x):
    loc = PAIR.mean(x) + SHIFT
    factor = 0.3 * torch.ones(len(x), 3, 1).double()
    with pyro.plate("data", len(x)):
        diagonal = SCALE.square().expand_as(loc)
        pyro.sample("z", dist.LowRankMultivariateNormal(loc, factor, diagonal))


def by_number(x):
    """Each number of z in a plate of its own, to the left of the data's."""
    with pyro.plate("numbers", 3, dim=-2), pyro.plate("data", len(x), dim=-1):
        pyro.sample("z", dist.Normal((PAIR.mean(x) + SHIFT).T, SCALE.unsqueeze(1)))


def by_number_model(x):
    with pyro.plate("data", len(x), dim=-1):
        with pyro.plate("numbers", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0).double(), 1.0))
        pyro.sample("x", PAIR.likelihood(z.transpose(-1, -2)), obs=x)


def folded_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", PAIR.prior())
        assert z.dim() == 2, "one dimension for data"
        pyro.sample("x", PAIR.likelihood(z), obs=x)


PAIRS = {
    "Normal": (PAIR.model, mean_field),
    "MultivariateNormal": (PAIR.model, PAIR.guide),
    "LowRankMultivariateNormal": (PAIR.model, low_rank),
    "plates": (by_number_model, by_number),
    "folded": (folded_model, mean_field),
}


@pytest.mark.parametrize("name", PAIRS)
def test_the_start_is_the_amortized_guide(name):
    """A freed guide that is not moved draws and scores what the guide does; moved, it does not."""
    model, guide = PAIRS[name]
    local = freed(examine(model, guide, (X,), "data"), (X,))
    pair = without_parameters(model, 1), local.guide(1)
    start = local.start(X)
    assert all(len(part) == len(X) and not part.any() for part in start)
    plain = inference.bound(model, guide, X, seed=1)
    freely = inference.bound(*pair, (X, *start), seed=1)
    assert torch.allclose(plain.per_datum, freely.per_datum, atol=1e-6)
    moved = [part.clone() for part in start]
    for part in moved:
        part[7] += 0.1
    there = inference.bound(*pair, (X, *moved), seed=1)
    changed = (there.per_datum - plain.per_datum).abs() > 1e-6
    assert changed.nonzero().flatten().tolist() == [7]


@pytest.mark.usefixtures("few_steps")
@pytest.mark.parametrize("name", ["LowRankMultivariateNormal", "plates", "folded"])
def test_other_layouts_gain(name):
    """A few steps take much of an amortization gap, and no guide without correlations all."""
    model, guide = PAIRS[name]
    x = X[:20]
    found = inference.gaps(model, guide, x, log_px=exact(PAIR, x), progress=False)
    gap, left = found.amortization, found.approximation
    assert gap.mean > 0.5 * found.inference.mean > 0.5
    assert gap.mc_std_error < 0.1
    least = 0.0 if name == "LowRankMultivariateNormal" else APPROXIMATION
    assert left.mean > least - 5 * left.mc_std_error


@pytest.mark.usefixtures("few_steps")
def test_estimates_are_made_and_flags_are_passed_on():
    found = split(x=X[:10], log_px=None, num_samples=50, estimator="importance")
    assert found.log_px.estimator == "importance"
    assert found.log_px.seed == derived_seed("log p(x)", 0)
    assert agrees(found.log_px.mean, PAIR.log_px(X[:10]).mean(), found.log_px.mc_std_error + 0.02)
    flagged = replace(found.log_px, flagged=torch.arange(10) < 3)
    said = str(split(x=X[:10], log_px=flagged, num_samples=50))
    assert "flagged for 3 of 10 data" in said
    assert "at least these" in said


@pytest.mark.usefixtures("few_steps")
def test_summary_and_arrays():
    found = split(x=X[:10], num_samples=20)
    summary, arrays = found.summary(), found.arrays()
    assert summary["terms"]["inference_gap"]["mean"] == found.inference.mean
    assert set(summary["terms"]) < set(arrays)
    assert all(len(array) == 10 for array in arrays.values())
    assert split(x=X[:1], num_samples=20).num_data == 1
    assert not found.converged
    assert "still gaining" in str(found)


@pytest.mark.usefixtures("few_steps")
def test_nothing_is_left_behind():
    encoder = torch.nn.Linear(5, 6).double()

    def guide(x):
        pyro.module("encoder", encoder)
        loc, raw = encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))

    before, weights = torch.get_rng_state(), encoder.weight.clone()
    first, second = (split(guide=guide, x=X[:10], num_samples=20) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(weights, encoder.weight)
    assert encoder.weight.grad is None
    assert encoder.training
    assert torch.equal(first.local_elbo.value, second.local_elbo.value)
    assert len(pyro.get_param_store()) == 0


def mixture(x):
    with pyro.plate("data", len(x)):
        parts = dist.Normal(PAIR.mean(x).unsqueeze(1).expand(-1, 2, -1), 1.0).to_event(1)
        weights = dist.Categorical(torch.ones(len(x), 2).double())
        pyro.sample("z", dist.MixtureSameFamily(weights, parts))


def by_context(x):
    torch.manual_seed(0)
    network = ConditionalAutoRegressiveNN(3, 5, [8]).double()
    flow = ConditionalAffineAutoregressive(network).condition(x)
    with pyro.plate("data", len(x)):
        base = dist.Normal(PAIR.mean(x), SCALE).to_event(1)
        pyro.sample("z", dist.TransformedDistribution(base, [flow]))


def two_site_model(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(torch.zeros(len(x)).double(), 1.0))
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b.unsqueeze(-1), 1.0).expand([*b.shape, 5]).to_event(1), obs=x)


def two_site_guide(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x[:, 0], 1.0))
        pyro.sample("b", dist.Normal(a, 1.0))


REFUSED = {
    "mixture": (PAIR.model, mixture, "site 'z' of the guide draws from MixtureSameFamily"),
    "context": (PAIR.model, by_context, "site 'z' of the guide has transforms that depend"),
    "sites": (two_site_model, two_site_guide, "site 'b' of the guide depends on the draws"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_guides_that_do_not_fit(name):
    model, guide, said = REFUSED[name]
    with pytest.raises(inference.PairError, match=said) as error:
        inference.gaps(model, guide, X[:6], progress=False)
    assert "local=LocalGuide(start, program)" in str(error.value)


def test_a_plate_that_subsamples_itself():
    with pytest.raises(inference.PairError, match="plate 'data' draws 10 of its data itself"):
        inference.gaps(*subsampled(10), line_data(), progress=False)


def test_requests_that_are_wrong():
    with pytest.raises(inference.RequestError, match="num_samples: got 1"):
        split(num_samples=1)
    with pytest.raises(inference.RequestError, match="plate: None"):
        split(plate=None)
    with pytest.raises(inference.RequestError, match="holds 60 data, but 20"):
        split(x=X[:20], log_px=exact(PAIR, X))
    joint = replace(exact(PAIR, X), quantity="joint log p(x)")
    with pytest.raises(inference.RequestError, match="holds joint log p"):
        split(log_px=joint)
    with pytest.raises(inference.RequestError, match="one row per datum"):
        split(local=inference.LocalGuide(lambda x: (torch.zeros(3),), lambda p, x: None))
