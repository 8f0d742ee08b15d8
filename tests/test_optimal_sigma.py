"""A Gaussian's sigma in closed form: of the batch in training, of all training data afterwards."""

import math

import pytest
import torch
from torch.distributions import Normal

import inference
import pyro_vae as pv
from pyro_vae.part import Shapes


def build(**fields):
    spec = pv.likelihoods.Gaussian(sigma="optimal", **fields)
    return spec.build(Shapes(data=(3, 2), latent=(2,))).double()


def case():
    torch.manual_seed(1)
    return build(), torch.randn(2, 5, 3, 2).double(), torch.randn(5, 3, 2).double()


def test_in_training_sigma_is_the_root_mean_square_of_the_batch():
    module, outputs, x = case()
    p = module(outputs)
    sigma = (x - outputs).square().mean().sqrt()
    expected = Normal(outputs, sigma).log_prob(x).sum((-1, -2))
    torch.testing.assert_close(p.log_prob(x), expected)
    for other in (0.9 * sigma, 1.1 * sigma):  # no other sigma has a higher likelihood
        assert Normal(outputs, other).log_prob(x).sum() < p.log_prob(x).sum()
    torch.testing.assert_close(p.expand([3, 2, 5]).log_prob(x), expected.expand(3, 2, 5))


def test_the_gradient_is_that_of_the_maximum_over_sigma():
    module, outputs, x = case()
    outputs.requires_grad_()
    (found,) = torch.autograd.grad(module(outputs).log_prob(x).sum(), outputs)
    sigma = (x - outputs).square().mean().sqrt()  # nothing held constant
    (exact,) = torch.autograd.grad(Normal(outputs, sigma).log_prob(x).sum(), outputs)
    torch.testing.assert_close(found, exact)
    (twin,) = torch.autograd.grad(Normal(outputs, 1.0).log_prob(x).sum(), outputs)
    assert (found - twin).abs().max() > 0.1


def test_the_learned_number_follows_without_changing_the_density():
    module, outputs, x = case()
    (found,) = torch.autograd.grad(module(outputs).log_prob(x).sum(), module.log_sigma)
    log_sigma = module.log_sigma.detach().clone().requires_grad_()
    exact = Normal(outputs, log_sigma.exp()).log_prob(x).sum()
    torch.testing.assert_close(found, *torch.autograd.grad(exact, log_sigma))
    before = module(outputs).log_prob(x)
    module.log_sigma.data += 1.0
    assert torch.equal(module(outputs).log_prob(x), before)


def test_a_floor_holds():
    module = build(floor=0.1)
    outputs, x = torch.zeros(5, 3, 2).double(), 1e-3 * torch.ones(5, 3, 2).double()
    torch.testing.assert_close(
        module(outputs).log_prob(x), Normal(outputs, 0.1).log_prob(x).sum((-1, -2))
    )
    module.finalize([(outputs, x, None)])
    assert float(module.fitted_sigma().detach()) == pytest.approx(0.1)


def test_missing_values_count_neither_for_sigma_nor_for_the_density():
    module, outputs, x = case()
    outputs.requires_grad_()
    mask = torch.rand(5, 3, 2) < 0.6
    p = module.marginal(module(outputs), mask)
    square = (x - outputs).square()[:, mask]
    sigma = square.mean().sqrt()
    each = Normal(outputs, sigma).log_prob(x)
    exact = torch.where(mask, each, 0.0).sum((-1, -2))
    value = torch.where(mask, x, math.nan)
    torch.testing.assert_close(p.log_prob(value), exact)
    (found,) = torch.autograd.grad(p.log_prob(value).sum(), outputs)
    torch.testing.assert_close(found, *torch.autograd.grad(exact.sum(), outputs))


def test_finalize_sets_the_sigma_of_all_batches_for_the_evaluation():
    module, outputs, x = case()
    outputs, x = outputs.flatten(0, 1), torch.cat([x, x])
    module.eval()
    [said] = module.warnings()
    assert "finalize" in said
    module.finalize([(outputs[:7], x[:7], None), (outputs[7:], x[7:], None)])
    assert module.warnings() == []
    sigma = (x - outputs).square().mean().sqrt()
    torch.testing.assert_close(module.fitted_sigma().detach(), sigma)
    other = 3 * torch.randn(4, 3, 2).double()  # evaluation is not fitted to what it scores
    expected = Normal(outputs[:4], sigma).log_prob(other).sum((-1, -2))
    torch.testing.assert_close(module(outputs[:4]).log_prob(other).detach(), expected)

    mask = torch.rand(10, 3, 2) < 0.5
    module.finalize([(outputs[:7], x[:7], mask[:7]), (outputs[7:], x[7:], mask[7:])])
    sigma = (x - outputs).square()[mask].mean().sqrt()
    torch.testing.assert_close(module.fitted_sigma().detach(), sigma)
    again = build()
    again.load_state_dict(module.state_dict())
    assert again.warnings() == []


@pytest.mark.parametrize("engine", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_vae_of_known_noise_finds_it(engine):
    """x = W z + noise of sd 0.3. After training and `finalize`, sigma is that of the data."""
    torch.manual_seed(0)
    x = torch.randn(2000, 2) @ torch.randn(2, 6) + 0.3 * torch.randn(2000, 6)
    vae = pv.VAE(
        data_shape=(6,),
        latent_dim=2,
        likelihood={"name": "gaussian", "sigma": "optimal"},
        guide="full_rank",
        encoder="linear",
        decoder="linear",
    ).initialize(x)
    result = inference.fit(
        vae.model,
        vae.guide,
        x[:1800],
        validation=x[1800:],
        epochs=25,
        batch_size=100,
        learning_rate=1e-2,
        engine=engine,
        progress=False,
    )
    bounds = [row["validation_bound"] for row in result.history]
    assert bounds[-1] > bounds[0] + 1
    with torch.no_grad():
        vae.likelihood.finalize(
            (vae.decoder(vae.encode(batch).sample()), batch, None) for batch in x.split(500)
        )
    # The mean of (x - W z)^2 over the posterior is the noise's variance at the optimum.
    assert float(vae.likelihood.fitted_sigma().detach()) == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("kind", ["labels", "codes", "columns"])
def test_where_values_are_summed_over_the_learned_number_stands_in(kind):
    """The mean over all values of a label or code is not that of the likely ones."""
    gaussian = {"name": "gaussian", "sigma": "optimal"}
    fields = {"label": "latent", "classes": 3, "likelihood": gaussian}
    if kind == "codes":
        fields = {"prior": "categorical", "guide": "categorical", "likelihood": gaussian}
    if kind == "columns":
        fields["likelihood"] = {"name": "mixed", "parts": [{"likelihood": gaussian, "columns": 4}]}
    torch.manual_seed(0)
    x = torch.randn(20, 4)
    vae = pv.VAE(data_shape=(4,), latent_dim=1, **fields).initialize(x).train()
    part = vae.likelihood.modules_of_parts[0] if kind == "columns" else vae.likelihood
    with torch.no_grad():
        part.log_sigma.fill_(math.log(0.3))
    outputs = torch.randn(3, 20, 4)
    expected = Normal(outputs, 0.3).log_prob(x).sum(-1)
    torch.testing.assert_close(vae.likelihood(outputs).log_prob(x).detach(), expected)
    plain = pv.VAE(data_shape=(4,), likelihood=gaussian).initialize(x).train()
    best = Normal(outputs, (x - outputs).square().mean().sqrt()).log_prob(x).sum(-1)
    torch.testing.assert_close(plain.likelihood(outputs).log_prob(x).detach(), best)
