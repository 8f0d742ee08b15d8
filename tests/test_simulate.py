"""Simulated data stand where the model observes them, whatever the layout."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import inference
from inference.evidence.simulate import simulate

N, T = 7, 3
TIGHT = 1e-3  # noise, by which each number tells its latent


def series(observe):
    """One latent of each datum, seen T times over; `observe` gives `[T, N]`."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 2.0))
            with pyro.plate("time", T, dim=-2):
                pyro.sample("x", dist.Normal(z, TIGHT), obs=observe(x))

    return model


@pytest.mark.parametrize("template", [torch.zeros(N, T), torch.rand(N, T)], ids=["zeros", "any"])
@pytest.mark.parametrize(
    "observe",
    [
        lambda x: x.T,
        lambda x: x.permute(1, 0),
        lambda x: x[:, None].transpose(0, 2)[:, 0],
        lambda x: x.as_strided((T, N), (1, T)),
    ],
    ids=["T", "permute", "transpose", "as_strided"],
)
def test_a_transposed_argument(observe, template):
    made = simulate(series(observe), (template,), 0)
    z = made.latents["z"]
    assert torch.allclose(made.arguments[0], z[:, None].expand(N, T), atol=6 * TIGHT)
    assert float(z.std()) > 0.5


def test_permuted_images():
    """One colour of each datum; images come with their channels last."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            mean = z[..., :, None, None].expand(*z.shape, 4, 5)
            pyro.sample("x", dist.Normal(mean, TIGHT).to_event(3), obs=x.permute(0, 3, 1, 2))

    made = simulate(model, (torch.zeros(N, 4, 5, 3),), 0)
    expected = made.latents["z"][:, None, None].expand(N, 4, 5, 3)
    assert torch.allclose(made.arguments[0], expected, atol=6 * TIGHT)


def test_two_sites_that_share_an_argument_with_a_covariate():
    """Columns 2 and 0 are observed; column 1 is a covariate, and kept."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x[:, 1], 1.0))
            first = pyro.sample("first", dist.Normal(z, TIGHT), obs=x[:, 2])
            pyro.sample("second", dist.Normal(first + z, TIGHT), obs=x[:, 0])

    x = torch.arange(3.0 * N).reshape(N, 3)
    made = simulate(model, (x,), 0)
    z, found = made.latents["z"], made.arguments[0]
    assert torch.equal(found[:, 1], x[:, 1])
    assert torch.allclose(found[:, 2], z, atol=6 * TIGHT)
    assert torch.allclose(found[:, 0], 2 * z, atol=20 * TIGHT)
    assert torch.equal(x, torch.arange(3.0 * N).reshape(N, 3))  # the caller's own


@pytest.mark.parametrize("observe", [lambda x: x.view(-1, 2, 2), lambda x: x.float()[..., None]])
def test_arguments_in_another_shape_and_kind(observe):
    """Pixels as whole numbers; an argument that is itself a view."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
            seen = observe(x)
            sure = (0.999998 * z + 1e-6).reshape(seen.shape)
            pyro.sample("x", dist.Bernoulli(sure).to_event(2), obs=seen)

    whole = torch.randint(0, 2, (4, 2 * N), generator=torch.Generator().manual_seed(0)).T[::2]
    x = whole.float() if observe(torch.zeros(1, 4)).shape[-1] == 2 else whole.to(torch.uint8)
    made = simulate(model, (x,), 0)
    assert made.arguments[0].dtype == x.dtype
    assert torch.equal(made.arguments[0].float(), made.latents["z"])


@pytest.mark.parametrize(
    ("observe", "match"),
    [
        # Of equal numbers, so that only what the model sees of other data tells them apart.
        (lambda x: x.T.contiguous(), r"site 'x': .* changed copy .* x\.permute"),
        (lambda x: x[:, 0].expand(T, N), "site 'x' observes numbers of argument 0 .* elsewhere"),
        (lambda x: x[:, 0], "draws a value of shape .3, 7. and observes one of shape .7,."),
        (lambda x: 2 * x.T + 1, "site 'x' observes .* none of the arguments"),
    ],
    ids=["copy", "twice", "broadcast", "changed"],
)
def test_what_has_no_place_is_refused(observe, match):
    with pytest.raises(inference.PairError, match=match):
        simulate(series(observe), (torch.ones(N, T),), 0)


def test_fractions_do_not_fit_into_whole_numbers():
    with pytest.raises(inference.PairError, match=r"draws fractions, and argument 0, .* hand in"):
        simulate(series(lambda x: x.T.float()), (torch.ones(N, T, dtype=torch.uint8),), 0)


def test_one_number_in_two_sites_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("first", dist.Normal(z, 1.0), obs=x)
            pyro.sample("second", dist.Normal(-z, 1.0), obs=x)

    with pytest.raises(inference.PairError, match="site 'second' observes numbers of argument 0"):
        simulate(model, (torch.ones(N),), 0)


def test_an_exact_guide_is_calibrated_for_transposed_data():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 2.0))
            with pyro.plate("time", T, dim=-2):
                pyro.sample("x", dist.Normal(z, 0.5), obs=x.T)

    variance = 1 / (1 / 4 + T / 0.25)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(variance * x.sum(-1) / 0.25, variance**0.5))

    x = torch.zeros(N, T)
    found = inference.calibration(model, guide, x, num_data=400, progress=False)
    assert found.num_failed == 0
    assert float(found.p_value.min()) > 0.1
    for by in ("importance", inference.AIS(num_temperatures=5)):
        estimator = inference.Sandwich(num_data=100, by=by)
        bounds = inference.log_marginal(model, guide, x, estimator=estimator, progress=False)
        covariance = 4 * torch.ones(T, T) + 0.25 * torch.eye(T)
        made = simulate(
            model, (x[torch.arange(100) % N],), inference.isolation.derived_seed("simulated", 0)
        )
        truth = dist.MultivariateNormal(torch.zeros(T), covariance).log_prob(made.arguments[0])
        for side in (bounds.value, bounds.upper):  # the guide is exact, so every weight is p(x)
            assert torch.allclose(side, truth.double(), atol=1e-4)
