"""Objectives of KL terms: closed forms, free bits, discrepancy, total correlation."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from small_pairs import (
    Tutorial,
    fit,
    line_data,
    line_guide,
    line_model,
    patterns,
    two_level_params,
)

import inference
import pyro_vae as pv
from inference import PairError
from inference.isolation import validation
from inference.objectives.info_vae import discrepancy
from inference.pair import examine
from inference.particles import record_of
from inference.tracing import evaluate_loss


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def tutorial(**fields):
    torch.manual_seed(0)
    return Tutorial(**fields)


@pytest.mark.parametrize("particles", [1, 3])
def test_the_analytic_kl_is_pyros(particles):
    vae, x = tutorial(), patterns(7)
    objective = inference.ELBO(kl="analytic", num_particles=particles)
    pair = examine(vae.model, vae.guide, (x,), "data")
    elbo = TraceMeanField_ELBO(particles, max_plate_nesting=1, vectorize_particles=particles > 1)
    torch.manual_seed(1)
    expected = elbo.differentiable_loss(vae.model, vae.guide, x) / 7
    torch.manual_seed(1)
    loss, _ = evaluate_loss(pair, objective, (x,), 1.0, 7, vectorize=particles > 1)
    torch.testing.assert_close(loss.float(), expected, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        torch.autograd.grad(loss, list(vae.parameters())),
        torch.autograd.grad(expected, list(vae.parameters())),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    torch.manual_seed(1)
    sampled, _ = evaluate_loss(pair, inference.ELBO(), (x,), 1.0, 7, vectorize=False)
    assert abs(float(sampled.detach()) - float(loss.detach())) > 1e-4


@pytest.mark.parametrize("vectorize", [True, False])
def test_an_analytic_hierarchy_has_the_kl_given_each_draw(vectorize):
    def model(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(torch.zeros(len(x)), 1.0))
            z2 = pyro.sample("z2", dist.Normal(0.5 * z1, 0.8))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)

    def guide(x):
        lean = pyro.param("lean", torch.tensor(0.4))
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(lean * x, 0.7))
            pyro.sample("z2", dist.Normal(0.3 * z1 + lean, 0.6))

    x = torch.tensor([0.3, -1.0])
    pair = examine(model, guide, (x,), "data")
    objective = inference.ELBO(kl="analytic", num_particles=3)
    torch.manual_seed(4)
    record = record_of(pair, (x,), 3, vectorize=vectorize)
    found = float(objective.loss(record, 1.0, 2).detach())
    z1, z2 = record.latents["z1"], record.latents["z2"]
    kl = torch.distributions.kl_divergence
    normal = torch.distributions.Normal
    terms = kl(normal(0.4 * x, 0.7), normal(0.0, 1.0)) + kl(
        normal(0.3 * z1 + 0.4, torch.tensor(0.6)), normal(0.5 * z1, torch.tensor(0.8))
    )
    assert found == pytest.approx(
        float((terms - normal(z2, 1.0).log_prob(x)).mean().detach()), rel=1e-5
    )


def test_analytic_kls_that_are_not_known_are_refused_by_name():
    vae = pv.VAE(data_shape=(6,), latent_dim=2, prior={"name": "gaussian_mixture", "components": 3})
    with pytest.raises(PairError, match=r"site 'z': no closed form of KL\(Normal .* kl='sampled'"):
        fit(vae.model, vae.guide, patterns(), objective=inference.ELBO(kl="analytic"), epochs=1)

    def scaled(x, y):
        with pyro.poutine.scale(scale=0.5):
            line_model(x, y)

    for objective in (inference.ELBO(kl="analytic"), "free_bits", "iwae", "dreg", "thermodynamic"):
        with pytest.raises(PairError, match=r"is scaled by poutine\.scale"):
            fit(scaled, line_guide, line_data(), objective=objective, epochs=1)


def gaussian_record(x, loc, scale, particles, vectorize=True):
    """A vector z of each datum, N(0, 1) under the model."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(loc), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    pair = examine(model, guide, (x,), "data")
    with validation(False):
        return record_of(pair, (x,), particles, vectorize=vectorize)


@pytest.mark.parametrize("vectorize", [True, False])
@pytest.mark.parametrize("kl", ["sampled", "analytic"])
def test_free_bits(kl, vectorize):
    """Groups below `nats` count `nats`, of the batch's mean and not of each datum's KL."""
    x = torch.tensor([0.5, -0.2, 1.0])
    loc = torch.tensor([[2.0, 0.0, 0.3], [-2.0, 0.1, 0.0], [0.0, 0.0, 1.1]], requires_grad=True)
    scale = torch.tensor([0.5, 0.99, 0.9])
    record = gaussian_record(x, loc, scale, 2, vectorize)
    q, p = dist.Normal(loc, scale), dist.Normal(0.0, 1.0)
    z = record.latents["z"]
    if kl == "analytic":
        terms = torch.distributions.kl_divergence(q, p).mean(0).double()
    else:
        terms = (q.log_prob(z) - p.log_prob(z)).double().mean((0, 1))
    likelihood = dist.Normal(z.sum(-1), 1.0).log_prob(x).double().mean()
    assert terms[1] < 0.2 < terms[0]
    number = inference.FreeBits(nats=0.2, kl=kl)
    value = -number.loss(record, 0.5, 3)
    torch.testing.assert_close(value, likelihood - 0.5 * terms.clamp(min=0.2).sum())
    (grad,) = torch.autograd.grad(value - likelihood, loc, retain_graph=True)
    assert not bool(grad[:, 1].any())  # below: free
    assert bool(grad[:, 0].any())
    site = inference.FreeBits(nats=20.0, kl=kl, per="site")
    torch.testing.assert_close(-site.loss(record, 1.0, 3), likelihood - 20.0)
    generous, elbo = inference.FreeBits(nats=1e-6, kl=kl, per="site"), inference.ELBO(kl=kl)
    torch.testing.assert_close(generous.loss(record, 1.0, 3), elbo.loss(record, 1.0, 3))


@pytest.mark.parametrize("vectorize", [True, False])
def test_total_correlation_is_that_of_the_aggregate(vectorize):
    """From all data: the exact mixture's, by quadrature, at 5 standard errors."""
    torch.manual_seed(0)
    loc = torch.tensor([[-1.0, -1.2], [0.8, 1.1], [0.1, -0.3]]).double()
    scale = torch.tensor([[0.5, 0.4], [0.3, 0.6], [0.7, 0.5]]).double()
    x = torch.zeros(3).double()
    objective = inference.TotalCorrelation(weight=3.0)
    grid = torch.linspace(-5, 5, 801).double()
    parts = dist.Normal(loc[:, None], scale[:, None])  # of each datum and number
    density = parts.log_prob(grid[:, None]).exp()  # [N, points, 2]
    whole = torch.einsum("na,nb->ab", density[..., 0], density[..., 1]) / 3
    one, two = density.mean(0).unbind(-1)
    cell = (grid[1] - grid[0]) ** 2
    exact = float((whole * (whole / (one[:, None] * two)).log()).sum() * cell)
    assert 0.1 < exact < 1.0
    found = []
    for _ in range(30 if vectorize else 10):
        record = gaussian_record(x, loc, scale, 200 if vectorize else 30, vectorize)
        elbo = inference.ELBO().loss(record, 1.0, 3)
        offset = (2 - 1) * math.log(3)  # the estimate's constant at M = N, L = 2
        found.append(float(objective.loss(record, 1.0, 3) - elbo) / 2 - offset)
    found = torch.tensor(found)
    error = float(found.std() / len(found) ** 0.5)
    assert error < 0.02
    assert abs(float(found.mean()) - exact) < 5 * error
    marginals_alone = exact + math.log(3)  # the constant forgotten
    assert abs(float(found.mean()) - marginals_alone) > 5 * error


def test_total_correlation_takes_independent_numbers_of_one_latent():
    for fields, match in (
        ({"guide": "full_rank"}, "site 'z' draws from MultivariateNormal"),
        ({"guide": "iaf"}, "site 'z' draws from"),
    ):
        vae = pv.VAE(data_shape=(6,), latent_dim=2, **fields)
        with pytest.raises(PairError, match=match):
            fit(vae.model, vae.guide, patterns(), objective="total_correlation", epochs=1)
    model, guide, data = two_level_params()
    for name in ("total_correlation", "info_vae"):
        with pytest.raises(
            PairError, match=f"'{name}' compares draws of one latent .* z, top|top, z"
        ):
            fit(model, guide, data, objective=name, epochs=1, batch_size=6)


def test_the_discrepancy_of_gaussians():
    """Unbiased: its mean is the closed form, of the kernel exp(-|a - b|^2 / L)."""
    torch.manual_seed(0)
    numbers, spread, shift = 2, 0.6, 0.8
    z = shift + spread * torch.randn(4000, 6, numbers).double()
    v = torch.randn(4000, 6, numbers).double()

    def kernel(variance, off):  # E exp(-d^2 / L), d ~ N(off, variance) in each number
        return (numbers / (numbers + 2 * variance)) ** (numbers / 2) * math.exp(
            -numbers * off**2 / (numbers + 2 * variance)
        )

    exact = kernel(2 * spread**2, 0) + kernel(2, 0) - 2 * kernel(1 + spread**2, shift)
    found = torch.stack([discrepancy(z[i : i + 100], v[i : i + 100]) for i in range(0, 4000, 100)])
    error = float(found.std() / len(found) ** 0.5)
    assert error < 0.005
    assert abs(float(found.mean()) - exact) < 5 * error
    assert exact > 50 * error
    same = torch.stack(
        [discrepancy(v[i : i + 50, :3], v[i : i + 50, 3:]) for i in range(0, 4000, 50)]
    )
    assert abs(float(same.mean())) < 5 * float(same.std()) / len(same) ** 0.5
    assert float(discrepancy(z[:, :1], v[:, :1]).sum()) == 0.0


def test_info_vae_is_its_terms():
    x = torch.tensor([0.5, -0.2, 1.0])
    loc, scale = torch.randn(3, 2), torch.rand(3, 2) + 0.5
    record = gaussian_record(x, loc, scale, 2)
    z = record.latents["z"]
    likelihood = dist.Normal(z.sum(-1), 1.0).log_prob(x).double().mean()
    kl = dist.Normal(loc, scale).log_prob(z) - dist.Normal(0.0, 1.0).log_prob(z)
    for alpha, weight in ((1.0, 10.0), (0.0, 3.0), (-1.0, 2.0)):
        torch.manual_seed(7)
        found = -float(inference.InfoVAE(alpha=alpha, weight=weight).loss(record, 1.0, 3))
        torch.manual_seed(7)
        prior = torch.randn(2, 3, 2)
        expected = likelihood - (1 - alpha) * kl.double().sum(-1).mean()
        expected = expected - (alpha + weight - 1) * discrepancy(z, prior)
        assert found == pytest.approx(float(expected), rel=1e-5)


def test_beta_weighs_every_kl_term_and_warms_up():
    x = torch.tensor([0.5, -0.2, 1.0])
    record = gaussian_record(x, torch.randn(3, 2), torch.tensor(0.8), 2)
    objective = inference.BetaELBO(weight=4.0, warmup_steps=4)
    assert [objective.beta(step, 10) for step in (0, 1, 3, 9)] == [1.0, 2.0, 4.0, 4.0]
    likelihood = -float(inference.ELBO().loss(record, 0.0, 3))
    kl = likelihood + float(inference.ELBO().loss(record, 1.0, 3))
    beta = objective.beta(9, 10)
    assert -float(objective.loss(record, beta, 3)) == pytest.approx(likelihood - 4 * kl)


def labelled_pair(seen):
    """A label y, and z of each number 0 or 1 in mean as y says; summed over by guide or model."""
    weights, means = torch.tensor([0.3, 0.7]), torch.tensor([[0.0, 1.0], [1.5, 0.2]])
    told, locs = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.5, 0.5]]), torch.randn(2, 3, 2)
    infer = {"enumerate": "parallel"}

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(weights), infer=infer)
            z = pyro.sample("z", dist.Normal(means[y], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        slope = pyro.param("slope", torch.ones(()))
        with pyro.plate("data", len(x)):
            if seen:
                y = pyro.sample("y", dist.Categorical(told), infer=infer)
                loc = locs[y, torch.arange(3)]
            else:
                loc = locs[0]
            pyro.sample("z", dist.Normal(slope * loc, 0.8).to_event(1))

    return model, guide, (weights, means, told, locs)


@pytest.mark.parametrize("vectorize", [True, False])
def test_free_bits_of_numbers_given_a_label_that_the_guide_sums_over(vectorize):
    """KL_j = E_q(y) KL_j given y; the label is a group of its own."""
    model, guide, (weights, means, told, locs) = labelled_pair(seen=True)
    x = torch.tensor([0.5, -0.2, 1.0])
    pair = examine(model, guide, (x,), "data")
    with validation(False):
        record = record_of(pair, (x,), 2, vectorize=vectorize)
    kl_y = (told * (told / weights).log()).sum(-1).mean()
    numbers, likelihood = torch.zeros(2), torch.zeros(())
    if vectorize:
        draws = [record.latents["z"]]  # [2, K, 3, 2]
    else:
        draws = [part.latents["z"].unsqueeze(1) for part in record.parts]
    for z in draws:
        for y in (0, 1):
            q, p = dist.Normal(locs[y], 0.8), dist.Normal(means[y], 1.0)
            term = (q.log_prob(z[y]) - p.log_prob(z[y])) * told[:, y, None]
            numbers = numbers + term.mean((0, 1)) / len(draws)
            fits = dist.Normal(z[y].sum(-1), 1.0).log_prob(x) * told[:, y]
            likelihood = likelihood + fits.mean() / len(draws)
    for nats in (1e-6, 0.3):
        groups = torch.cat([kl_y.reshape(1), numbers]).clamp(min=nats)
        found = -inference.FreeBits(nats=nats).loss(record, 1.0, 3)
        torch.testing.assert_close(found, (likelihood - groups.sum()).double())


@pytest.mark.parametrize("vectorize", [True, False])
def test_an_analytic_kl_given_a_label_that_the_guide_sums_over(vectorize):
    """E_q(y) KL(q(z|x,y) || p(z|y)) + KL(q(y|x) || p(y)), without noise."""
    model, guide, (weights, means, told, locs) = labelled_pair(seen=True)
    x = torch.tensor([0.5, -0.2, 1.0])
    pair = examine(model, guide, (x,), "data")
    with validation(False):
        record = record_of(pair, (x,), 2, vectorize=vectorize)
    kl = (told * (told / weights).log()).sum(-1)
    for y in (0, 1):
        each = torch.distributions.kl_divergence(
            dist.Normal(locs[y], 0.8), dist.Normal(means[y], 1.0)
        )
        kl = kl + told[:, y] * each.sum(-1)
    objective = inference.ELBO(kl="analytic")
    found = objective.loss(record, 1.0, 3) - objective.loss(record, 0.0, 3)
    torch.testing.assert_close(found, kl.mean().double())
    numbers = inference.FreeBits(nats=1e-6, kl="analytic")
    torch.testing.assert_close(numbers.loss(record, 1.0, 3), objective.loss(record, 1.0, 3))


def test_free_bits_of_numbers_are_refused_where_the_model_sums_over_their_label():
    """p(z) is then a mixture, whose numbers are not independent."""
    model, guide, _ = labelled_pair(seen=False)
    x = torch.tensor([0.5, -0.2, 1.0])
    for objective, said in (
        ("free_bits", r"'y' is summed over by the model.*per='site'"),
        (inference.ELBO(kl="analytic"), r"'z': no closed form .* kl='sampled'"),
    ):
        with pytest.raises(PairError, match=said):
            fit(model, guide, x, objective=objective, epochs=1)
    pair = examine(model, guide, (x,), "data")
    with validation(False):
        record = record_of(pair, (x,), 4)
    site, elbo = inference.FreeBits(nats=1e-6, per="site"), inference.ELBO()
    torch.testing.assert_close(site.loss(record, 1.0, 3), elbo.loss(record, 1.0, 3))


@pytest.mark.parametrize("per", ["site", "number"])
def test_what_stands_outside_the_data_has_no_free_bits(per):
    """A decoder's weights: 1/N of their KL is below any bound, so all of it would be free."""
    torch.manual_seed(0)
    vae = pv.VAE(
        data_shape=(6,),
        latent_dim=2,
        encoder={"name": "mlp", "hidden": [5]},
        decoder={"name": "bayesian_mlp", "hidden": [5]},
    )
    pair = examine(vae.model, vae.guide, (patterns(),), "data")
    with validation(False), torch.no_grad():
        record = record_of(pair, (patterns(),), 2)
    for nats in (1e-6, 50.0):
        found = float(inference.FreeBits(nats=nats, per=per).loss(record, 1.0, 100))
        weights = record.log_q["decoder_weights"] - record.log_p["decoder_weights"]
        others = [float((record.log_q["z"] - record.log_p["z"]).mean())]
        if per == "number":
            q, p = record.guide_fn["z"].base_dist, record.model_fn["z"].base_dist
            z = record.latents["z"]
            others = (q.log_prob(z) - p.log_prob(z)).mean((0, 1)).tolist()
        expected = -record.log_p["x"].mean() + weights.mean() / 100
        expected = float(expected) + sum(max(nats, kl) for kl in others)
        assert found == pytest.approx(expected, rel=1e-5)
