"""Pairs whose data hang on each other within a batch have no log p(x) per datum."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import inference
from inference import tiles
from tests.small_pairs import fit

REFUSED = r"site '{}' of the {}: its log-density of a datum .* changes with the rows beside it"


def log_px(model, guide, data, estimator=inference.Importance(num_samples=50), **options):  # noqa: B008
    options = {"progress": False, "engine": "eager"} | options
    return inference.log_marginal(model, guide, data, estimator=estimator, **options)


def clusters(count=400):
    """Covariates in two heaps, in order: the first rows say nothing of the last."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator) + 4 * (torch.arange(count) >= count // 2)
    return x, 3 * (x - 2) + math.sqrt(2) * torch.randn(count, generator=generator)


def identity(x):
    return x


def centred(x):
    return x - x.mean()


def line(seen=identity):
    """y = 3 f(x) + z + noise."""

    def model(x, y):
        slope = pyro.param("slope", torch.tensor(3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(slope * seen(x) + z, 1.0), obs=y)

    return model


def back(seen=identity):
    """The exact posterior of z."""

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((y - 3 * seen(x)) / 2, 0.5**0.5))

    return guide


def truth(x, y, mean=0.0):
    return dist.Normal(3 * (x - mean), 2**0.5).log_prob(y).double()


TIED = {
    "its mean": centred,
    "its spread": lambda x: x / x.std(),
    "its largest": lambda x: x - x.max(),
    "its ranks": lambda x: x.argsort().argsort() / len(x),
    "its number": lambda x: x * len(x),
    "the row before": lambda x: x + x.roll(1),
}


@pytest.mark.parametrize(
    ("tie", "count"), [(tie, 400) for tie in TIED] + [("its mean", n) for n in (2, 3, 4, 5)]
)
def test_a_model_that_ties_data_together_is_refused(tie, count):
    message = REFUSED.format("y", "model")
    with pytest.raises(inference.PairError, match=message) as raised:
        log_px(line(TIED[tie]), back(), clusters(count))
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(inference.PairError, match=message):
        inference.log_weights(line(TIED[tie]), back(), *clusters(count))


ESTIMATORS = {
    "prior": inference.Importance(num_samples=50, proposal="prior"),
    "ais": inference.AIS(num_temperatures=5),
    "smc": inference.SMC(num_temperatures=5),
    "sandwich": inference.Sandwich(num_data=30, by=inference.AIS(num_temperatures=5)),
    "quadrature": "quadrature",
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_refuses_it(name):
    with pytest.raises(inference.PairError, match=REFUSED.format("y", "model")):
        log_px(line(centred), back(), clusters(), ESTIMATORS[name])


def test_so_does_the_bound():
    with pytest.raises(inference.PairError, match=REFUSED.format("y", "model")):
        inference.bound(line(centred), back(), clusters())


def test_a_guide_that_ties_data_together_is_refused():
    with pytest.raises(inference.PairError, match=REFUSED.format("z", "guide")):
        log_px(line(), back(centred), clusters())


def test_rounding_that_a_narrow_density_magnifies_is_no_tie(own_store):
    """Other rows round the mean otherwise; in float64 nothing is left of it."""
    layer = nn.Linear(1, 1)

    def rounded(x, y):
        by_the_way = 1e3 * x.square().sum()
        return (y + by_the_way) - by_the_way

    def guide(x, y):
        pyro.module("layer", layer)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(rounded(x, y), 1e-4))

    x, y = clusters()
    assert (rounded(x[:9], y[:9])[:3] - rounded(x[:3], y[:3])).abs().max() > 1e-4
    assert bool(log_px(line(), guide, (x, y)).value.isfinite().all())


def test_what_takes_all_data_may_be_computed_outside():
    """As the sentence says; and one joint evidence may look at all rows."""
    x, y = clusters()
    mean = x.mean()
    found = log_px(line(lambda x: x - mean), back(lambda x: x - mean), (x, y))
    assert torch.allclose(found.value, truth(x, y, mean), atol=1e-4)
    joint = log_px(line(centred), back(centred), (x, y), plate=None)
    assert torch.allclose(joint.value, truth(x, y, mean).sum(), atol=1e-2)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 9])
def test_few_data_are_let_through(count):
    data = clusters(count)
    found = log_px(line(), back(), data)
    assert torch.allclose(found.value, truth(*data), atol=1e-4)


def test_a_pair_that_is_tied_may_be_fitted(own_store):
    fit(line(centred), back(centred), clusters(40), epochs=1)
    assert pyro.param("slope").item() != 3.0


# A place among the rows


def test_what_belongs_to_places_is_refused_where_data_come_in_parts(monkeypatch):
    """Offsets by place fit data in one part; a second part would take those of the first."""
    x, y = clusters(40)
    offsets = torch.linspace(-1, 1, 40)

    def placed(x):
        return x + offsets[: len(x)]

    found = log_px(line(placed), back(placed), (x, y))
    assert torch.allclose(found.value, truth(x + offsets, y), atol=1e-4)
    monkeypatch.setitem(tiles.TILE_NUMBERS, "cpu", 500)
    with pytest.raises(inference.PairError, match=REFUSED.format("z", "guide")):
        log_px(line(placed), back(placed), (x, y))


# Networks


class Normed(nn.Module):
    """A VAE with a BatchNorm, or a dropout, in its decoder."""

    def __init__(self, middle):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(2, 8), middle, nn.ReLU(), nn.Linear(8, 6))
        self.encoder = nn.Linear(6, 4)

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            shape = z.shape[:-1]
            logits = self.decoder(z.reshape(-1, 2)).reshape(*shape, 6)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


class Holder:
    """Hides a module two steps away, where no mode is set."""

    def __init__(self, module):
        self.deep = {"er": Deep(module)}

    def model(self, x):
        self.deep["er"].module.model(x)

    def guide(self, x):
        self.deep["er"].module.guide(x)


class Deep:
    def __init__(self, module):
        self.module = module


PICTURES = torch.bernoulli(torch.full((50, 6), 0.4), generator=torch.Generator().manual_seed(0))


def test_a_batch_norm_that_is_left_in_training_mode_is_refused():
    vae = Normed(nn.BatchNorm1d(8))
    log_px(vae.model, vae.guide, PICTURES)  # its mode is set aside
    assert vae.training
    hidden = Holder(vae)
    with pytest.raises(inference.PairError, match=r"site 'x' of the model.*module\.eval\(\)"):
        log_px(hidden.model, hidden.guide, PICTURES)
    vae.eval()
    found, expected = (log_px(p.model, p.guide, PICTURES) for p in (hidden, vae))
    assert torch.allclose(found.value, expected.value)


def test_a_pair_that_draws_as_it_scores_differs_by_chance_alone():
    vae = Normed(nn.Dropout(0.5))
    log_px(Holder(vae).model, Holder(vae).guide, PICTURES)  # is let through


# Pairs that split by datum, and hide it


def test_a_pair_that_subsamples_itself():
    """Indices of its own, and a mean of all data that is one and the same for all parts."""

    def pair(tied):
        def seen(x, rows):
            return x[rows] - (x[rows] if tied else x).mean()

        def model(x, y):
            with pyro.plate("data", len(x), subsample_size=10) as rows:
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("y", dist.Normal(3 * seen(x, rows) + z, 1.0), obs=y[rows])

        def guide(x, y):
            with pyro.plate("data", len(x), subsample_size=10) as rows:
                centre = 3 * (x[rows] - x.mean())
                pyro.sample("z", dist.Normal((y[rows] - centre) / 2, 0.5**0.5))

        return model, guide

    x, y = clusters(45)
    found = log_px(*pair(False), (x, y))
    assert torch.allclose(found.value, truth(x, y, x.mean()), atol=1e-4)
    with pytest.raises(inference.PairError, match=REFUSED.format("y", "model")):
        log_px(*pair(True), (x, y))


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_that_sums_over_a_class(tied):
    centres = torch.tensor([-1.0, 1.0])

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            scale = 1 + x.abs().mean() if tied else 1.0
            pyro.sample("x", dist.Normal(z + centres[c], scale), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 1.0))

    x = torch.linspace(-3, 2, 30)
    if tied:
        with pytest.raises(inference.PairError, match=REFUSED.format("x", "model")):
            log_px(model, guide, x)
    else:
        each = dist.Normal(centres, 2**0.5).log_prob(x[:, None]) + math.log(0.5)
        found = log_px(model, guide, x, inference.Importance(num_samples=20_000))
        assert torch.allclose(found.value, each.logsumexp(1).double(), atol=0.1)


@pytest.mark.parametrize("tied", ["", "model", "guide"])
def test_points_of_auxiliary_draws(tied):
    def mean(x, program):
        return x.mean() if tied == program else 0.0

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.LogNormal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.log() + mean(x, "model"), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            normal = dist.Normal((x - mean(x, "guide")) / 2, 0.5**0.5)
            u = pyro.sample("u", normal, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Delta(u.exp(), log_density=-u))

    x = torch.linspace(-3, 2, 30)
    if tied:
        site = "x" if tied == "model" else "u"
        with pytest.raises(inference.PairError, match=REFUSED.format(site, tied)):
            log_px(model, guide, x)
    else:
        found = log_px(model, guide, x)
        assert torch.allclose(found.value, dist.Normal(0, 2**0.5).log_prob(x).double(), atol=1e-4)


class OneWay(dist.transforms.AffineTransform):
    """Known at its own draws only."""

    def _inverse(self, y):
        raise NotImplementedError


def test_a_guide_that_is_known_at_its_own_draws_only():
    """Its model is looked at all the same."""

    def guide(x, y):
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x)), 1.0)
            onto = OneWay((y - 3 * x) / 2, 0.5**0.5, cache_size=1)  # of the draw itself
            pyro.sample("z", dist.TransformedDistribution(base, [onto]))

    data = clusters()
    found = log_px(line(), guide, data)
    assert torch.allclose(found.value, truth(*data), atol=1e-3)
    with pytest.raises(inference.PairError, match=REFUSED.format("y", "model")):
        log_px(line(centred), guide, data)


def test_a_guide_whose_inverse_is_rough():
    """What its inverse misses is no tie: the log-density of a draw changes by 0.05 without it."""

    class Rough(dist.transforms.AffineTransform):
        def _inverse(self, y):
            return super()._inverse(y) + 0.02 * len(y) / 8

    def guide(x, y):
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x)), 1.0)
            onto = Rough((y - 3 * x) / 2, 0.5**0.5, cache_size=1)
            pyro.sample("z", dist.TransformedDistribution(base, [onto]))

    data = clusters()
    found = log_px(line(), guide, data)
    assert torch.allclose(found.value, truth(*data), atol=1e-3)


def test_the_look_leaves_random_states_and_results_alone(monkeypatch):
    data = clusters()
    torch.manual_seed(5)
    found = log_px(line(), back(), data)
    after = torch.get_rng_state()
    torch.manual_seed(5)
    monkeypatch.setattr(tiles, "check_rows", lambda *arguments, **options: None)
    without = log_px(line(), back(), data)
    assert torch.equal(after, torch.get_rng_state())
    assert torch.equal(found.value, without.value)
