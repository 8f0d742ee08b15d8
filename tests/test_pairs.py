"""Pyro pairs that are not ours, through `log_weights` and `log_marginal`; and misfits.

Wherever a truth is known it is a closed form; elsewhere two ways to write one pair must agree.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoGaussian,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.nn import PyroModule, PyroParam
from torch import nn

import inference
from inference.isolation import modules_of
from inference.tiles import tiled
from tests.exact_models import LinearGaussian, agrees, linear_gaussian


def log_px(model, guide, data, K=400, seed=0, **options):
    return inference.log_marginal(
        model,
        guide,
        data,
        estimator=inference.Importance(num_samples=K),
        seed=seed,
        progress=False,
        **options,
    )


def weigh(model, guide, *data, K=5, seed=0, **options):
    torch.manual_seed(seed)
    return inference.log_weights(model, guide, *data, num_particles=K, **options)


def agree(a, b, ceiling=0.3) -> bool:
    """Two estimates of one quantity, within their combined errors."""
    error = (a.std_error.square() + b.std_error.square()).sqrt()
    return a.num_data == b.num_data and agrees(a.value, b.value, error, ceiling=ceiling)


@pytest.fixture
def params():
    """The test may fill the parameter store."""
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def gaussian(scale):
    return torch.distributions.Normal(0.0, scale)


# Regression with a local latent and plain parameters ---------------------------------------


def regression(x, y):
    """y = 2 x + 1 + z + noise: y | x ~ N(2 x + 1, 1 + 0.25)."""
    slope = pyro.param("slope", torch.tensor(2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(slope * x + 1 + z, 0.5), obs=y)


def affine(x, y):
    """An amortized affine map; the exact posterior is N(0.8 (y - 2x - 1), 0.2)."""
    gain = pyro.param("gain", torch.tensor(0.8))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(gain * (y - 2 * x - 1), scale))


def regression_data(count=100):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator)
    y = 2 * x + 1 + math.sqrt(1.25) * torch.randn(count, generator=generator)
    return x, y


def regression_truth(x, y):
    return gaussian(math.sqrt(1.25)).log_prob((y - 2 * x - 1).double())


def test_regression_with_plain_parameters(params):
    x, y = regression_data()
    found = log_px(regression, affine, (x, y))
    assert agrees(found.value, regression_truth(x, y), found.std_error, ceiling=0.1)
    # The caller's own values are what counts.
    pyro.param("slope", torch.tensor(1.0))
    changed = log_px(regression, affine, (x, y))
    assert not agrees(changed.value, regression_truth(x, y), changed.std_error)
    assert list(params.keys()) == ["slope"]


def test_exact_posterior_with_plain_parameters(params):
    x, y = regression_data()
    pyro.param("scale", torch.tensor(math.sqrt(0.2)), constraint=constraints.positive)
    found = log_px(regression, affine, (x, y), 50)
    assert torch.allclose(found.value, regression_truth(x, y), atol=1e-4)
    assert torch.equal(found.std_error, torch.zeros(100).double())


def test_the_record_of_a_regression():
    x, y = regression_data(7)
    record = weigh(regression, affine, x, y)
    assert record.latents["z"].shape == (5, 7)
    assert set(record.log_p) == {"z", "y"}
    assert set(record.log_q) == {"z"}
    assert record.observed == ("y",)
    z = record.latents["z"]
    expected = (
        gaussian(1.0).log_prob(z)
        + torch.distributions.Normal(2 * x + 1 + z, 0.5).log_prob(y)
        - torch.distributions.Normal(0.8 * (y - 2 * x - 1), 0.5).log_prob(z)
    )
    assert torch.allclose(record.log_weight, expected.double(), atol=1e-5)
    assert torch.allclose(record.log_likelihood, record.log_p["y"])


# A VAE by hand, in the style of Pyro's tutorial ---------------------------------------------


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(16, 12)
        self.loc, self.log_scale = nn.Linear(12, 3), nn.Linear(12, 3)

    def forward(self, x):
        h = torch.tanh(self.hidden(x.reshape(-1, 16)))
        return self.loc(h), self.log_scale(h).exp()


class Flat(nn.Module):
    """Takes any leading dimensions."""

    def __init__(self):
        super().__init__()
        self.grow = nn.Linear(3, 8)
        self.out = nn.ConvTranspose2d(2, 1, 2, stride=2)  # 2 x 2 pictures to 4 x 4

    def forward(self, z):
        h = torch.relu(self.grow(z)).reshape(-1, 2, 2, 2)
        return self.out(h).reshape(*z.shape[:-1], 16)


class Viewing(Flat):
    """One batch dimension only: reads its size off the first."""

    def forward(self, z):
        h = torch.relu(self.grow(z)).view(z.shape[0], 2, 2, 2)
        return self.out(h).view(z.shape[0], 16)


class Silent(Flat):
    """Takes particles for data without a word, and mixes them up."""

    def forward(self, z):
        flat = super().forward(z)
        return flat - (z.mean(0, keepdim=True) if z.dim() > 2 else 0 * z).mean(-1, keepdim=True)


class TutorialVAE(nn.Module):
    def __init__(self, decoder):
        super().__init__()
        self.encoder, self.decoder = Encoder(), decoder

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = x.new_zeros(torch.Size((x.shape[0], 3)))
            z = pyro.sample("latent", dist.Normal(z_loc, torch.ones_like(z_loc)).to_event(1))
            logits = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x.reshape(-1, 16))

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


def tutorial(decoder) -> TutorialVAE:
    """Equal weights, whatever the decoder's class."""
    torch.manual_seed(0)
    vae = TutorialVAE(Flat())
    other = decoder()
    other.load_state_dict(vae.decoder.state_dict())
    vae.decoder = other
    return vae


def binary_pictures(count=30):
    return torch.bernoulli(torch.full((count, 1, 4, 4), 0.4))


def folded(model, guide, x):
    with tiled(model, guide, x, 10, seed=0, plate="data") as laid:
        return laid.scorer.folded


@pytest.mark.parametrize(("decoder", "folds"), [(Flat, False), (Viewing, True), (Silent, True)])
def test_tutorial_vae(decoder, folds):
    x = binary_pictures()
    vae, friendly = tutorial(decoder), tutorial(Flat)
    assert folded(vae.model, vae.guide, x) is folds
    a = log_px(vae.model, vae.guide, x, 2000)
    b = log_px(friendly.model, friendly.guide, x, 2000, seed=1)
    assert agree(a, b)
    assert agrees(a.mean, b.mean, math.hypot(a.mc_std_error, b.mc_std_error), ceiling=0.02)
    assert not agree(a, log_px(friendly.model, friendly.guide, 1 - x, 2000))


def test_folded_weights_are_those_of_one_particle_at_a_time(params):
    """Exactly, datum by datum: repeats are not mixed up."""
    vae = tutorial(Viewing)
    x = binary_pictures(6)
    record = weigh(vae.model, vae.guide, x, K=4)
    assert record.log_weight.shape == (4, 6)
    z = record.latents["latent"].reshape(6, 4, 3)
    for k in range(4):
        p = poutine.condition(vae.model, data={"latent": z[:, k]})
        q = poutine.condition(vae.guide, data={"latent": z[:, k]})
        p, q = (poutine.trace(fn).get_trace(x) for fn in (p, q))
        p.compute_log_prob()
        q.compute_log_prob()
        expected = sum(p.nodes[n]["log_prob"] for n in ("latent", "obs"))
        assert torch.allclose(
            record.log_weight[k], (expected - q.nodes["latent"]["log_prob"]).double(), atol=1e-4
        )


def test_a_guide_whose_second_site_cannot_take_particles():
    """Compared, too: a guide's network may see earlier draws."""

    def model(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            b = pyro.sample("b", dist.Normal(a, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(b, 1.0).to_event(1), obs=x)

    def guide(viewing):
        def run(x):
            with pyro.plate("data", len(x)):
                a = pyro.sample("a", dist.Normal(x / 3, 0.9).to_event(1))
                if viewing and a.dim() > 2:
                    a = a.mean(0)  # wrong, without a word
                pyro.sample("b", dist.Normal((x + a) / 2, 0.8).to_event(1))

        return run

    x = 2 * torch.randn(40, 2)
    truth = gaussian(math.sqrt(3)).log_prob(x.double()).sum(-1)
    for viewing in (False, True):
        assert folded(model, guide(viewing), x) is viewing
        found = log_px(model, guide(viewing), x, 1000)
        assert agrees(found.value, truth, found.std_error, ceiling=0.2)


# PyroModule and PyroParam -------------------------------------------------------------------


class ModuleModel(PyroModule):
    def __init__(self):
        super().__init__()
        self.noise = PyroParam(torch.tensor(0.5), constraint=constraints.positive)
        self.map = PyroModule[nn.Linear](1, 1)
        with torch.no_grad():
            self.map.weight.fill_(2.0)
            self.map.bias.fill_(1.0)

    def forward(self, x, y):
        loc = self.map(x.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(loc + z, self.noise), obs=y)


class ModuleGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.scale = PyroParam(torch.tensor(0.6), constraint=constraints.positive)

    def forward(self, x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.8 * (y - 2 * x - 1), self.scale))


def test_pyro_modules():
    x, y = regression_data()
    found = log_px(ModuleModel(), ModuleGuide(), (x, y))
    assert agrees(found.value, regression_truth(x, y), found.std_error, ceiling=0.1)


# Plates that subsample ----------------------------------------------------------------------


def subsampling(pair: LinearGaussian, size):
    def model(x):
        with pyro.plate("data", len(x), subsample_size=size) as rows:
            pyro.sample("x", pair.likelihood(pyro.sample("z", pair.prior())), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=size) as rows:
            pyro.sample("z", pair.q(x[rows]))

    return model, guide


@pytest.mark.parametrize("size", [3, 4, 16, 50])
def test_a_pair_that_subsamples_itself_weighs_every_datum(size):
    pair = linear_gaussian(seed=1, stretch=1.4)
    x = pair.sample(50)
    model, guide = subsampling(pair, size)
    found = log_px(model, guide, x)
    assert found.num_data == 50
    assert agrees(found.value, pair.log_px(x), found.std_error, ceiling=0.1)
    assert agree(found, log_px(pair.model, pair.guide, x, seed=1))
    # Wrong: scaled by N / size, or data in another order.
    assert not agrees(50 / 16 * found.value, pair.log_px(x), found.std_error)
    assert not agrees(found.value, pair.log_px(x.flip(0)), found.std_error)


def test_bound_and_active_units_of_a_pair_that_subsamples_itself():
    pair = linear_gaussian(seed=1, stretch=1.4)
    x = pair.sample(50)
    model, guide = subsampling(pair, 16)
    found = inference.bound(model, guide, x, num_samples=50)
    assert found.per_datum.shape == (50,)
    truth = float(pair.log_px(x).mean()) - pair.kl()
    assert agrees(found.elbo, truth, found.elbo_std_error, ceiling=0.1)
    # The last 16 of 17 data overlap with the first 16; an outlier must not count twice.
    x = pair.sample(17)
    x[5] *= 10
    units = inference.active_units(model, guide, x, num_samples=200)
    between = torch.cov(pair.mean(x).T).diagonal()
    assert torch.allclose(units.mean_variance, between, rtol=0.05)


def test_one_pass_over_a_pair_that_subsamples_itself_is_refused():
    pair = linear_gaussian()
    model, guide = subsampling(pair, 16)
    with pytest.raises(inference.PairError, match="draws 16 of 50 data itself"):
        inference.log_weights(model, guide, pair.sample(50))


@pytest.mark.parametrize("num_test", [30, 300])
@pytest.mark.parametrize("viewing", [False, True])
def test_a_plate_that_declares_the_training_size(num_test, viewing):
    """`plate("data", 100, subsample_size=len(x))`, also for more data than it declares."""
    pair = linear_gaussian(seed=1, stretch=1.4)

    def model(x):
        with pyro.plate("data", 100, subsample_size=len(x)):
            z = pyro.sample("z", pair.prior())
            if viewing:
                z = z.view(len(x), 2)
            pyro.sample("x", pair.likelihood(z), obs=x)

    def guide(x):
        with pyro.plate("data", 100, subsample_size=len(x)):
            pyro.sample("z", pair.q(x))

    x = pair.sample(num_test)
    found = log_px(model, guide, x)
    assert agrees(found.value, pair.log_px(x), found.std_error, ceiling=0.1)


def test_a_plate_of_fixed_size():
    pair = linear_gaussian(seed=1, stretch=1.4)

    def model(x):
        with pyro.plate("data", 20):
            pyro.sample("x", pair.likelihood(pyro.sample("z", pair.prior())), obs=x)

    x = pair.sample(20)
    found = log_px(model, pair.guide, x)
    assert agrees(found.value, pair.log_px(x), found.std_error, ceiling=0.1)
    with pytest.raises(inference.PairError):
        log_px(model, pair.guide, pair.sample(21))


# More sites, more plates --------------------------------------------------------------------


def inner_plates(data_dim):
    """Three latents and three observations a datum, in an inner plate; one shared latent.

    a ~ N(0, 1), b_i ~ N(a, 1), x_i ~ N(b_i, 1): x ~ N(0, 2 I + 1 1').
    """
    inner_dim = -1 if data_dim == -2 else -2

    def place(x):
        return x if data_dim == -2 else x.T

    def model(x):
        with pyro.plate("data", len(x), dim=data_dim):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            with pyro.plate("inner", 3, dim=inner_dim):
                b = pyro.sample("b", dist.Normal(a, 1.0))
                pyro.sample("x", dist.Normal(b, 1.0), obs=place(x))

    def guide(x):
        total = x.sum(1)
        loc = total / 5  # E[a|x] with var 2/5
        with pyro.plate("data", len(x), dim=data_dim):
            shaped = loc.unsqueeze(-1) if data_dim == -2 else loc
            a = pyro.sample("a", dist.Normal(shaped, 0.75))
            with pyro.plate("inner", 3, dim=inner_dim):
                pyro.sample("b", dist.Normal((a + place(x)) / 2, 0.8))

    return model, guide


@pytest.mark.parametrize("data_dim", [-1, -2])
@pytest.mark.parametrize("count", [3, 40])
def test_inner_plates(data_dim, count):
    model, guide = inner_plates(data_dim)
    covariance = 2 * torch.eye(3) + torch.ones(3, 3)
    truth = torch.distributions.MultivariateNormal(torch.zeros(3), covariance)
    torch.manual_seed(0)
    x = truth.sample((count,))
    found = log_px(model, guide, x, 2000)
    expected = truth.log_prob(x).double()
    assert agrees(found.value, expected, found.std_error, ceiling=0.2)
    # Wrong: the inner plate's sites not summed, which leaves independent x_i.
    assert not agrees(found.value, gaussian(math.sqrt(3)).log_prob(x).sum(1), found.std_error)
    record = weigh(model, guide, x)
    assert record.log_weight.shape == (5, count)
    assert all(v.shape == (5, count) for v in (*record.log_p.values(), *record.log_q.values()))


def test_a_model_without_latents():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 2.0), obs=x)

    def guide(x):
        pass

    x = torch.randn(10)
    found = log_px(model, guide, x, 10)
    assert torch.allclose(found.value, gaussian(2.0).log_prob(x.double()), atol=1e-5)
    assert torch.equal(found.std_error, torch.zeros(10).double())


def test_a_discrete_latent():
    logits = torch.tensor([0.0, 1.0, -1.0])
    centers = torch.tensor([-2.0, 0.0, 3.0])

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=logits))
            pyro.sample("x", dist.Normal(centers[c], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(logits=-0.3 * (x.unsqueeze(-1) - centers).square()))

    x = torch.linspace(-4, 5, 30)
    each = torch.distributions.Normal(centers, 1.0).log_prob(x.unsqueeze(-1))
    truth = torch.logsumexp(each + logits.log_softmax(0), -1).double()
    found = log_px(model, guide, x, 1000)
    assert agrees(found.value, truth, found.std_error, ceiling=0.2)


def test_deterministic_notes_change_nothing():
    def model(x, y):
        pyro.deterministic("slope of the line", torch.tensor(2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = pyro.deterministic("loc", 2 * x + 1 + z)
            pyro.sample("y", dist.Normal(loc, 0.5), obs=y)

    x, y = regression_data()
    found = log_px(model, affine, (x, y))
    assert agrees(found.value, regression_truth(x, y), found.std_error, ceiling=0.1)


# One joint evidence -------------------------------------------------------------------------


def shared_mean(x):
    """mu ~ N(0, 1), x_n ~ N(mu, 1): x ~ N(0, I + 1 1')."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def shared_mean_guide(x):
    precision = 1 + len(x)
    pyro.sample("mu", dist.Normal(x.sum() / precision, 1.3 / math.sqrt(precision)))


def joint_truth(x):
    covariance = torch.eye(len(x)).double() + 1
    return torch.distributions.MultivariateNormal(
        torch.zeros(len(x)).double(), covariance
    ).log_prob(x.double())


def test_joint_evidence_of_a_global_latent():
    x = torch.randn(12) + 1
    found = log_px(shared_mean, shared_mean_guide, x, 4000, plate=None)
    assert found.value.shape == (1,)
    assert found.quantity == "joint log p(x)"
    assert agrees(found.value, joint_truth(x), found.std_error, ceiling=0.02)
    # Wrong: a mean instead of the sum over data.
    assert not agrees(found.value * 12, joint_truth(x), found.std_error)


def test_joint_evidence_with_local_latents_too():
    """mu ~ N(0, 1), z_n ~ N(mu, 1), x_n ~ N(z_n, 1): x ~ N(0, 2 I + 1 1')."""

    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        precision = 1 + len(x) / 2
        mu = pyro.sample("mu", dist.Normal(x.sum() / 2 / precision, precision**-0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((mu + x) / 2, 0.5**0.5))

    x = torch.randn(5)
    covariance = 2 * torch.eye(5).double() + 1
    truth = torch.distributions.MultivariateNormal(torch.zeros(5).double(), covariance)
    found = log_px(model, guide, x, 100, plate=None)
    assert torch.allclose(found.value, truth.log_prob(x.double()), atol=1e-4)
    assert found.std_error.tolist() == [0.0]  # the exact posterior
    record = weigh(model, guide, x, plate=None)
    assert record.log_weight.shape == (5,)


def test_joint_evidence_equals_the_sum_where_it_splits():
    pair = linear_gaussian(seed=1, stretch=1.2)
    x = pair.sample(5)
    found = log_px(pair.model, pair.guide, x, 4000, plate=None)
    assert agrees(found.value, pair.log_px(x).sum(), found.std_error, ceiling=0.1)


def test_a_part_of_the_data_has_no_joint_evidence():
    pair = linear_gaussian()
    with pytest.raises(
        inference.PairError, match=r"plate 'data' subsamples 16 of 50.*plate='data'"
    ):
        log_px(*subsampling(pair, 16), pair.sample(50), plate=None)


# Handlers, supports and automatic guides ----------------------------------------------------


@pytest.mark.parametrize("form", ["a masked distribution", "poutine.mask in a plate of pixels"])
def test_missing_pixels(form):
    """(values, mask), values zero-filled: log p of the pixels that were seen."""
    pair = linear_gaussian(seed=1)
    in_plate = form.startswith("poutine")
    prior = dist.Normal(torch.zeros(2).double(), 1.0).to_event(1)

    def model(x, seen):
        with pyro.plate("data", len(x), dim=-2 if in_plate else -1):
            z = pyro.sample("z", prior)
            loc, scale = z @ pair.W.T + pair.mu, pair.psi.sqrt()
            if in_plate:
                with pyro.plate("pixels", 5, dim=-1), poutine.mask(mask=seen):
                    pyro.sample("x", dist.Normal(loc.squeeze(-2), scale), obs=x)
            else:
                pyro.sample("x", dist.Normal(loc, scale).mask(seen).to_event(1), obs=x)

    def guide(x, seen):
        with pyro.plate("data", len(x), dim=-2 if in_plate else -1):
            pyro.sample("z", dist.Normal(torch.zeros(2).double(), 1.2).to_event(1))

    seen = torch.rand(40, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    x = torch.where(seen, pair.sample(40), 0.0)
    truth = torch.zeros(40).double()
    for n in range(40):
        if bool(seen[n].any()):
            part = LinearGaussian(pair.W[seen[n]], pair.mu[seen[n]], pair.psi[seen[n]])
            truth[n] = part.log_px(x[n : n + 1, seen[n]])[0]
    found = log_px(model, guide, (x, seen), 4000)
    assert agrees(found.value, truth, found.std_error, ceiling=0.5)
    assert not agrees(found.value, pair.log_px(x), found.std_error)


def test_poutine_mask_is_honoured():
    """x_n counts only where the mask says so; elsewhere log p(x) = 0."""

    def model(x, seen):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, seen):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 * seen, 1.1))

    x = torch.randn(30)
    seen = torch.arange(30) % 3 > 0
    truth = torch.where(seen, gaussian(math.sqrt(2)).log_prob(x.double()), 0.0)
    found = log_px(model, guide, (x, seen), 2000)
    assert agrees(found.value, truth, found.std_error, ceiling=0.1)
    assert not agrees(found.value, gaussian(math.sqrt(2)).log_prob(x.double()), found.std_error)


@pytest.mark.parametrize("part", ["model", "guide"])
def test_poutine_scale_is_refused_by_name(part):
    pair = linear_gaussian()
    scaled = {"model": pair.model, "guide": pair.guide}
    scaled[part] = poutine.scale(scaled[part], scale=0.5)
    with pytest.raises(inference.PairError, match=r"site 'z' is scaled by poutine\.scale"):
        log_px(scaled["model"], scaled["guide"], pair.sample(10))


def test_poutine_block_hides_a_site():
    pair = linear_gaussian()
    with pytest.raises(inference.PairError, match="'z' is latent in the model but missing"):
        log_px(pair.model, poutine.block(pair.guide, hide=["z"]), pair.sample(10))


def test_auxiliary_sites_of_a_guide():
    """q(z) = integral q(z|a) q(a) da, written with an auxiliary site and a point."""

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            log = pyro.sample(
                "log rate", dist.Normal((x + 1).log(), 0.8), infer={"is_auxiliary": True}
            )
            # The density of exp(u) is q(u) / exp(u).
            pyro.sample("rate", dist.Delta(log.exp(), log_density=-log))

    x = torch.arange(12.0)
    truth = poisson_gamma(x, 2.0, 1.0)
    found = log_px(model, guide, x, 2000)
    assert agrees(found.value, truth, found.std_error, ceiling=0.2)
    # The bound of such a pair keeps the point's log_density.
    elbo = inference.bound(model, guide, x, num_samples=2000)
    assert set(elbo.kl_kind.values()) == {"Monte Carlo"}
    assert elbo.elbo == pytest.approx(found.elbo_mean, abs=0.05)


def poisson_gamma(x, shape, rate):
    """Negative binomial: p(x) = C(x + a - 1, x) (b / (b + 1))^a (1 / (b + 1))^x."""
    x = x.double()
    a, b = torch.tensor(shape).double(), torch.tensor(rate).double()
    count = torch.lgamma(x + a) - torch.lgamma(x + 1) - torch.lgamma(a)
    return count + a * (b / (b + 1)).log() - x * (b + 1).log()


@pytest.mark.parametrize("family", ["lognormal", "gamma"])
def test_positive_supports(family):
    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            if family == "gamma":
                pyro.sample("rate", dist.Gamma(x + 2.0, 2.0))  # the posterior
            else:
                pyro.sample("rate", dist.LogNormal((x + 1).log(), 0.7))

    x = torch.arange(12.0)
    found = log_px(model, guide, x, 2000)
    if family == "gamma":
        assert torch.allclose(found.value, poisson_gamma(x, 2.0, 1.0), atol=1e-4)
        assert float(found.std_error.max()) == 0
    else:
        assert agrees(found.value, poisson_gamma(x, 2.0, 1.0), found.std_error, ceiling=0.2)


def test_simplex_supports():
    alpha = torch.tensor([1.0, 2.0, 3.0])

    def model(x):
        with pyro.plate("data", len(x)):
            p = pyro.sample("p", dist.Dirichlet(alpha))
            pyro.sample("x", dist.Multinomial(5, probs=p), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Dirichlet(0.7 * (x + alpha) + 0.3))

    x = torch.tensor([[5.0, 0.0, 0.0], [1.0, 2.0, 2.0], [0.0, 0.0, 5.0], [2.0, 3.0, 0.0]])
    truth = dist.DirichletMultinomial(alpha, 5).log_prob(x).double()
    found = log_px(model, guide, x, 4000)
    assert agrees(found.value, truth, found.std_error, ceiling=0.1)


def test_a_mixture_prior_takes_a_real_guide():
    def prior():
        return dist.MixtureSameFamily(
            dist.Categorical(logits=torch.zeros(2)), dist.Normal(torch.tensor([-2.0, 2.0]), 0.5)
        )

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior())
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0 * x, 2.5))

    x = torch.linspace(-4, 4, 20)
    parts = torch.distributions.Normal(torch.tensor([-2.0, 2.0]), math.sqrt(1.25))
    truth = torch.logsumexp(parts.log_prob(x.unsqueeze(-1)) - math.log(2), -1).double()
    found = log_px(model, guide, x, 2000)
    assert agrees(found.value, truth, found.std_error, ceiling=0.2)


@pytest.mark.parametrize("auto", [AutoNormal, AutoDiagonalNormal, AutoMultivariateNormal])
def test_automatic_guides_of_a_global_latent(auto):
    x = torch.randn(12) + 1
    guide = auto(shared_mean, init_scale=0.5)
    found = log_px(shared_mean, guide, x, 20_000, plate=None)
    assert agrees(found.value, joint_truth(x), found.std_error, ceiling=0.2)


def test_an_automatic_guide_of_a_positive_global_latent():
    """Gamma-Poisson with one rate: its transform's density counts."""

    def model(x):
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([1.0, 0.0, 2.0])
    n, total = len(x), x.sum()
    truth = (
        2 * math.log(1.0)
        - math.lgamma(2.0)
        + torch.lgamma(2.0 + total)
        - (2.0 + total) * math.log(1.0 + n)
        - torch.lgamma(x + 1).sum()
    )
    for auto in (AutoNormal, AutoDiagonalNormal):
        found = log_px(model, auto(model, init_scale=0.8), x, 20_000, plate=None)
        assert agrees(found.value, truth, found.std_error, ceiling=0.1)


def test_an_automatic_guide_of_local_latents():
    """It holds one set of parameters a datum, so it runs on all data only."""
    x = torch.randn(9)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = AutoNormal(model, init_scale=1.0)
    found = log_px(model, guide, x, 4000)
    truth = gaussian(math.sqrt(2)).log_prob(x.double())
    assert agrees(found.value, truth, found.std_error, ceiling=0.2)
    with pytest.raises(inference.PairError, match="site 'z'"):
        log_px(model, guide, torch.randn(10))


def test_a_point_guide_has_no_weights():
    """MAP: log p(x, z*) is no evidence."""
    with pytest.raises(inference.PairError, match=r"site 'mu': the guide is a point"):
        log_px(shared_mean, AutoDelta(shared_mean), torch.randn(8), plate=None)


def test_a_guide_that_misses_part_of_the_support_has_no_weights():
    """A positive guide for a real latent: half of the evidence would be missing."""
    guide = one_site(fn=lambda x: dist.Gamma(2.0, 1.0).expand([len(x)]))
    with pytest.raises(inference.PairError, match=r"site 'z': the guide draws from GreaterThan"):
        log_px(simple, guide, torch.randn(9))


# Auxiliary sites, factors and supports: only what has a density q(z) is weighed ---------------


def two_globals(x):
    """Real a and positive b: x_n ~ N(a, b)."""
    a = pyro.sample("a", dist.Normal(0.0, 1.0))
    b = pyro.sample("b", dist.Gamma(3.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(a, b), obs=x)


def two_globals_truth(x):
    a = torch.linspace(-5, 5, 801).double()
    b = torch.linspace(0.01, 12, 2400).double()
    log = dist.Normal(0.0, 1.0).log_prob(a)[:, None] + dist.Gamma(3.0, 2.0).log_prob(b)
    for value in x.double():
        log = log + dist.Normal(a[:, None], b).log_prob(value)
    return torch.logsumexp(log.flatten(), 0) + ((a[1] - a[0]) * (b[1] - b[0])).log()


def two_parts(second):
    guide = AutoGuideList(two_globals)
    guide.append(AutoDiagonalNormal(poutine.block(two_globals, expose=["a"]), init_scale=0.5))
    guide.append(second(poutine.block(two_globals, expose=["b"])))
    return guide


def auxiliary_point(x):
    u = pyro.sample("u", dist.Delta(torch.zeros(2)).to_event(1), infer={"is_auxiliary": True})
    pyro.sample("a", dist.Delta(u[..., 0]))
    pyro.sample("b", dist.Delta(u[..., 1].exp()))


POINTS = {
    "Laplace": (lambda: AutoLaplaceApproximation(two_globals), "_latent': the guide is a point"),
    "an auxiliary point": (lambda: auxiliary_point, "site 'u': the guide is a point"),
    "half a point": (
        lambda: two_parts(AutoDelta),
        r"site '[ab]': the guide is a point.*hold 1 of the 2 numbers in points",
    ),
}


@pytest.mark.parametrize("case", POINTS)
def test_an_auxiliary_site_excuses_no_other_point(case):
    guide, message = POINTS[case]
    x = torch.tensor([0.3, 1.0, -0.5, 2.0])
    with pytest.raises(inference.PairError, match=message):
        log_px(two_globals, guide(), x, plate=None)
    with pytest.raises(inference.PairError, match=message):
        inference.bound(two_globals, guide(), x, plate=None)


AUTOMATIC = {
    "normal": lambda: AutoNormal(two_globals, init_scale=0.5),
    "diagonal": lambda: AutoDiagonalNormal(two_globals, init_scale=0.5),
    "full": lambda: AutoMultivariateNormal(two_globals, init_scale=0.5),
    "low rank": lambda: AutoLowRankMultivariateNormal(two_globals, init_scale=0.5),
    "flow": lambda: AutoIAFNormal(two_globals, hidden_dim=[8]),
    "gaussian": lambda: AutoGaussian(two_globals, init_scale=0.5),
    "structured": lambda: AutoStructured(
        two_globals,
        conditionals={"a": "normal", "b": "normal"},
        dependencies={"b": {"a": "linear"}},
        init_scale=0.5,
    ),
    "a list": lambda: two_parts(lambda m: AutoNormal(m, init_scale=0.5)),
    # Its last transform declares the real line and reaches the positive half.
    "messenger": lambda: AutoNormalMessenger(two_globals, init_scale=0.5),
}


@pytest.mark.parametrize("case", AUTOMATIC)
def test_automatic_guides_with_auxiliary_sites(case):
    x = torch.tensor([0.3, 1.0, -0.5, 2.0])
    pyro.set_rng_seed(0)
    found = log_px(two_globals, AUTOMATIC[case](), x, 20_000, plate=None)
    assert agrees(found.value, two_globals_truth(x), found.std_error, ceiling=0.3)


def test_an_automatic_guide_of_a_simplex_has_fewer_auxiliary_numbers():
    alpha = torch.tensor([1.0, 2.0, 3.0])

    def model(x):
        p = pyro.sample("p", dist.Dirichlet(alpha))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Multinomial(5, probs=p), obs=x)

    x = torch.tensor([[1.0, 2.0, 2.0]])
    truth = dist.DirichletMultinomial(alpha, 5).log_prob(x).double()
    found = log_px(model, AutoDiagonalNormal(model, init_scale=0.8), x, 20_000, plate=None)
    assert agrees(found.value, truth, found.std_error, ceiling=0.1)


def test_an_auxiliary_site_beside_a_density_is_refused():
    """q(z) = integral q(z|a) q(a) da: p(x, z) / (q(z|a) q(a)) has no expectation."""

    def guide(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(x / 2, 0.5), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(a, 0.5))

    with pytest.raises(inference.PairError, match=r"density of z needs the integral of q\(z\|a\)"):
        log_px(simple, guide, torch.randn(9))


@pytest.mark.parametrize("count", [4, 30])
def test_a_factor_in_the_guide_is_a_term_of_log_q(count):
    """The Jacobian of a point, written as a factor."""

    def guide(x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal((x + 1).log(), 0.8), infer={"is_auxiliary": True})
            pyro.sample("rate", dist.Delta(u.exp()))
            pyro.factor("jacobian", -u, has_rsample=True)

    def model(x):
        with pyro.plate("data", len(x)):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.arange(count) % 12.0
    found = log_px(model, guide, x, 2000)
    assert agrees(found.value, poisson_gamma(x, 2.0, 1.0), found.std_error, ceiling=0.2)
    elbo = inference.bound(model, guide, x, num_samples=2000)
    assert elbo.elbo == pytest.approx(found.elbo_mean, abs=0.05)
    # One draw under one seed: Pyro's own bound.
    torch.manual_seed(3)
    record = inference.log_weights(model, guide, x)
    torch.manual_seed(3)
    loss = Trace_ELBO(max_plate_nesting=1, vectorize_particles=True).loss(model, guide, x)
    assert float(record.log_weight.sum()) == pytest.approx(-loss, rel=1e-5)
    without = record.log_weight + record.log_q["jacobian"]
    assert float(without.sum()) != pytest.approx(-loss, rel=1e-2)


def test_data_that_the_guide_sees_are_no_term_of_log_q():
    """A guide that runs the model, as Pyro's GuideMessenger does."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    x = torch.randn(9)
    found = log_px(simple, guide, x)
    expected = gaussian(2**0.5).log_prob(x).double()
    assert torch.allclose(found.value, expected, atol=1e-4)
    elbo = inference.bound(simple, guide, x, num_samples=500)
    assert elbo.elbo == pytest.approx(float(expected.mean()), abs=0.05)


def one_latent(prior):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
            pyro.sample("x", dist.Normal(1.0 * z, noise), obs=x)

    return model


def squashed(transform, scale=1.0):
    return dist.TransformedDistribution(dist.Normal(0.0, scale), [transform])


BIJECT = torch.distributions.biject_to
UNIFORM = torch.ones(5) / 5
NARROW = {
    "categorical": (
        dist.Categorical(UNIFORM),
        dist.Categorical(UNIFORM[:3]),
        "upper_bound=2",
    ),
    "interval": (dist.Uniform(0.0, 4.0), dist.Uniform(0.0, 1.0), r"Interval.*Interval"),
    "half a line": (dist.HalfNormal(1.0), dist.Beta(2.0, 2.0), "Interval.*GreaterThanEq"),
    "half another": (dist.Normal(0.0, 1.0), dist.HalfNormal(1.0), "GreaterThanEq.*Real"),
    "counts": (dist.Poisson(2.0), dist.Binomial(3, 0.5), "IntegerInterval.*IntegerGreaterThan"),
    "bits": (dist.Binomial(3, torch.tensor(0.5)), dist.Bernoulli(0.5), "Boolean.*IntegerInterval"),
    "integers": (dist.Gamma(2.0, 1.0), dist.Poisson(2.0), "IntegerGreaterThan.*GreaterThan"),
    "transforms": (
        dist.Normal(0.0, 1.0),
        squashed(BIJECT(constraints.greater_than(0.5))),
        r"Interval\(lower_bound=0.5, upper_bound=inf\) only.*Real",
    ),
}


@pytest.mark.parametrize("case", NARROW)
def test_a_narrower_guide_has_no_weights_and_may_be_fitted(case, params):
    p, q, message = NARROW[case]
    guide = one_site(fn=lambda x: q.expand([len(x)]))
    message = "site 'z': the guide draws.*" + message
    with pytest.raises(inference.PairError, match=message) as raised:
        log_px(one_latent(p), guide, torch.randn(9))
    assert len(str(raised.value).splitlines()) == 1
    inference.fit(
        one_latent(p), guide, torch.randn(8), epochs=1, batch_size=4, progress=False, device="cpu"
    )
    assert params["noise"].item() != 1.0


WIDE_ENOUGH = {
    "categorical": (dist.Categorical(UNIFORM), dist.Categorical(UNIFORM.flip(0))),
    "log-normal": (dist.HalfNormal(1.0), dist.LogNormal(0.0, 1.0)),
    "counts": (dist.Poisson(2.0), dist.Geometric(0.3)),
    "bits": (dist.Binomial(1, torch.tensor(0.4)), dist.Bernoulli(0.5)),
    "positive transform": (dist.HalfNormal(1.0), squashed(BIJECT(constraints.positive))),
    "interval transform": (
        dist.Uniform(0.0, 4.0),
        squashed(BIJECT(constraints.interval(0, 4)), 2.0),
    ),
}


@pytest.mark.parametrize("case", WIDE_ENOUGH)
def test_guides_that_reach_all_of_a_support(case):
    p, q = WIDE_ENOUGH[case]
    x = torch.linspace(-1, 3, 9)
    found = log_px(one_latent(p), one_site(fn=lambda x: q.expand([len(x)])), x, 10_000)
    generator = p.expand([400_000])
    torch.manual_seed(0)
    each = dist.Normal(1.0 * generator.sample(), 1.0)
    plain = torch.stack([each.log_prob(v).double().exp().mean() for v in x])
    assert torch.allclose(found.value, plain.log(), atol=0.15)


def test_draws_outside_the_model_s_support_weigh_nothing():
    """A guide that leaves the support rarely: the density there is 0, by its own formula NaN."""
    q = dist.Uniform(-0.02, 1.0)
    model = one_latent(dist.Beta(2.0, 2.0))
    x = torch.linspace(-1, 2, 6)
    found = log_px(model, one_site(fn=lambda x: q.expand([len(x)])), x, 5000)
    z = torch.linspace(0.0, 1.0, 4001).double()
    log = dist.Beta(2.0, 2.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x.double()[:, None])
    truth = torch.logsumexp(log, 1) - math.log(4000)
    assert agrees(found.value, truth, found.std_error, ceiling=0.1)
    assert float(dist.Beta(2.0, 2.0, validate_args=False).log_prob(torch.tensor(-0.5)).isnan())


def test_the_look_at_a_pair_does_not_depend_on_the_caller_s_seed():
    """One draw of four lies outside, more or less: every look says the same."""
    model = one_latent(dist.Uniform(0.0, 4.0))
    wide = one_site(fn=lambda x: dist.Uniform(0.0, 4.7).expand([len(x)]))
    said = set()
    for seed in range(20):
        torch.manual_seed(seed)
        try:
            inference.log_weights(model, wide, torch.zeros(4), num_particles=10)
            said.add("accepted")
        except inference.PairError as error:
            said.add(str(error))
    assert len(said) == 1


def test_a_latent_for_enumeration_is_summed_over():
    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(UNIFORM), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(1.0 * c, 1.0), obs=x)

    x = torch.randn(9)
    each = dist.Normal(torch.arange(len(UNIFORM)).float(), 1.0).log_prob(x.unsqueeze(1))
    found = log_px(model, lambda x: None, x)
    truth = (each + UNIFORM.log()).logsumexp(1).double()
    assert torch.allclose(found.value, truth, atol=1e-5)
    assert bool((found.std_error == 0).all())


def test_a_look_in_training_mode_leaves_batch_statistics_alone():
    vae = tutorial(Flat)
    vae.encoder.hidden = nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12))
    norm = vae.encoder.hidden[1]
    x = binary_pictures(8)
    vae.train()
    inference.log_weights(vae.model, vae.guide, x, num_particles=3)
    assert vae.training
    assert norm.training
    assert int(norm.num_batches_tracked) == 1  # the scoring pass itself, in the caller's mode
    vae.eval()
    inference.log_weights(vae.model, vae.guide, x, num_particles=3)
    assert int(norm.num_batches_tracked) == 1


def test_modules_in_lists_tuples_and_dicts_are_found():
    a, b, c, d = (nn.Linear(1, 1) for _ in range(4))
    several, pair, named = [a, 1], (b,), {"c": c}

    class Plain:
        def __init__(self):
            self.nets = [d]

        def model(self, x):
            return x

    def model(x):
        return several[0](x) + pair[0](x) + named["c"](x)

    assert set(modules_of(model)) == {a, b, c}
    assert modules_of(Plain().model) == [d]


@pytest.mark.parametrize("plate", ["data", None])
def test_a_fixed_pair_that_cannot_take_particles_is_refused(plate):
    vae, x = tutorial(Viewing), binary_pictures(8)

    def model(x):
        with pyro.plate("data", 8):
            z = pyro.sample("latent", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("obs", dist.Bernoulli(logits=vae.decoder(z)).to_event(1), obs=x.flatten(1))

    with pytest.raises(inference.PairError, match=r"take \[particles, batch, \.\.\.\]"):
        log_px(model, vae.guide, x, plate=plate)


# Pairs that do not fit ----------------------------------------------------------------------


def one_site(name="z", plate="data", fn=lambda x: dist.Normal(x, 1.0), size=len):
    def guide(x):
        with pyro.plate(plate, size(x)):
            pyro.sample(name, fn(x))

    return guide


def simple(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def positive(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def without_plate(x):
    pyro.sample("z", dist.Normal(x.mean(), 1.0))


def local_and_global(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_and_global_guide(x):
    pyro.sample("w", dist.Normal(0.0, 1.0))
    one_site()(x)


def looped(x):
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
        pyro.sample(f"x{i}", dist.Normal(z, 1.0), obs=x[i])


def looped_guide(x):
    for i in pyro.plate("data", len(x)):
        pyro.sample(f"z{i}", dist.Normal(x[i], 1.0))


def observed_by_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(0.0, 1.0))


MISMATCHES = {
    "site missing in the guide": (
        simple,
        lambda x: None,
        r"site 'z' is latent in the model but missing from the guide \(its sites: none\)",
    ),
    "site missing in the model": (
        simple,
        one_site("zz"),
        r"site 'zz' is sampled by the guide but not by the model \(its latents: z\)",
    ),
    "observed in the model": (
        simple,
        observed_by_guide,
        "site 'x' is sampled by the guide but observed by the model",
    ),
    "event shapes differ": (
        simple,
        one_site(fn=lambda x: dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1)),
        r"site 'z': guide batch \(4,\) event \(3,\), model batch \(4,\) event \(\)",
    ),
    "plate missing in the guide": (
        simple,
        without_plate,
        r"site 'z': guide batch \(\) event \(\), model batch \(4,\) event \(\); is the plate",
    ),
    "plate missing in the model": (
        lambda x: pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0)),
        one_site(),
        r"site 'z': guide batch \(4,\) event \(\), model batch \(\) event \(\); is the plate",
    ),
    "another plate in the guide": (
        simple,
        one_site(plate="batch"),
        r"site 'z': its plates are batch in the guide and data in the model",
    ),
    "another size of plate in the guide": (
        simple,
        one_site(size=lambda x: 3, fn=lambda x: dist.Normal(0.0, 1.0)),
        r"site 'z': guide batch \(3,\) event \(\), model batch \(\d+,\)",
    ),
    "real guide for a positive site": (
        positive,
        one_site(),
        r"site 'z': the guide draws from Real\(\), the model's support is GreaterThan",
    ),
    "too wide a guide for an interval": (
        lambda x: _interval_model(x),
        one_site(fn=lambda x: dist.Gamma(2.0, 0.1).expand([len(x)])),
        r"site 'z': the guide drew a value outside the model's support Interval",
    ),
    "global latent": (
        local_and_global,
        local_and_global_guide,
        r"site 'w' stands outside plate 'data'.*plate=None",
    ),
    "looped plate": (looped, looped_guide, "plate 'data' is looped over"),
}


def _interval_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


@pytest.mark.parametrize("case", MISMATCHES)
@pytest.mark.parametrize("count", [4, 9])
def test_pairs_that_do_not_fit_are_refused_by_name(case, count):
    model, guide, message = MISMATCHES[case]
    message = message.replace("(4,", f"({count},")
    x = torch.randn(count)
    with pytest.raises(inference.PairError, match=message) as raised:
        log_px(model, guide, x)
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(inference.PairError, match=message):
        inference.log_weights(model, guide, x)


def test_another_plate_name_is_refused_and_can_be_named():
    def model(x):
        with pyro.plate("batch", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = one_site(plate="batch", fn=lambda x: dist.Normal(x / 2, 0.5**0.5))
    x = torch.randn(9)
    with pytest.raises(inference.PairError, match=r"'data' \(plates found: batch\)"):
        log_px(model, guide, x)
    found = log_px(model, guide, x, plate="batch")
    assert torch.allclose(found.value, gaussian(math.sqrt(2)).log_prob(x.double()), atol=1e-4)


def test_the_wrong_number_of_arguments():
    with pytest.raises(inference.PairError, match=r"called with 2 tensor\(s\)"):
        log_px(simple, one_site(), (torch.randn(9), torch.randn(9)))


BAD_DATA = {
    "NaN": (torch.tensor([0.0, 1.0, math.nan, math.nan]), "2 of 4 data hold NaN.*first in row 2"),
    "infinite": (torch.tensor([0.0, math.inf]), "1 of 2 data hold NaN or infinite"),
    "lengths": ((torch.zeros(3), torch.zeros(4)), "3 and 4 rows"),
    "a list of numbers": ([1.0, 2.0], "argument 0 is a float; expected a tensor"),
    "an array": (torch.zeros(3).numpy(), "argument 0 is a ndarray; expected a tensor"),
    "a number": (torch.tensor(1.0), "holds no data"),
    "empty": (torch.zeros(0), "holds no data"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_data_that_cannot_be_scored(case):
    data, message = BAD_DATA[case]
    with pytest.raises(inference.RequestError, match=message):
        log_px(simple, one_site(), data)


@pytest.mark.parametrize("row", [0, 25])
def test_grey_data_under_a_bernoulli(row):
    """Also where the first look does not see them."""
    vae = tutorial(Flat)
    x = binary_pictures()
    x[row, 0, 1, 2] = 0.5
    with pytest.raises(inference.PairError, match=r"site 'obs'.*support"):
        log_px(vae.model, vae.guide, x)
    with pytest.raises(inference.PairError, match=r"site 'obs'.*support"):
        inference.bound(vae.model, vae.guide, x)
    with pytest.raises(inference.PairError, match=r"site 'obs'.*support"):
        inference.log_weights(vae.model, vae.guide, x)


def test_nan_and_impossible_parameters_are_refused_by_name():
    vae = tutorial(Flat)
    with torch.no_grad():
        vae.encoder.loc.bias[1] = math.nan
    with pytest.raises(inference.NonFiniteError, match=r"loc\.bias' holds NaN"):
        log_px(vae.model, vae.guide, binary_pictures())
    guide = one_site(fn=lambda x: dist.Normal(x, -1.0 + 0 * x))
    with pytest.raises(inference.PairError, match="Expected parameter scale"):
        log_px(simple, guide, torch.randn(9))


def test_errors_inside_a_network_are_the_user_s_own():
    """What a network itself raises reaches the user unchanged."""

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(nn.Linear(3, 1)(x.unsqueeze(-1)).squeeze(-1), 1.0))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        log_px(simple, guide, torch.randn(9))


def test_particles_that_end_in_another_dimension_are_refused():
    """Legal alone, `(x * w.unsqueeze(-2)).sum(-1)` puts particles where the data should stand."""
    x = torch.randn(40, 2)
    y = x.sum(-1) + torch.randn(40)

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * w.unsqueeze(-2)).sum(-1), 1.0), obs=y)

    def right(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal((x * w).sum(-1), 1.0), obs=y)

    def guide(x, y):
        pyro.sample("w", dist.Normal(torch.ones(2), 0.15).to_event(1))

    own = {"estimator": inference.Importance(num_samples=30), "progress": False, "plate": None}
    with pytest.raises(
        inference.PairError,
        match=r"site 'y' has a log-density of shape.*\(x \* w\)|"
        r"in the place of x @ w .*site 'y'",
    ):
        inference.log_marginal(model, guide, (x, y), **own)
    assert inference.log_marginal(right, guide, (x, y), **own).value.shape == (1,)
