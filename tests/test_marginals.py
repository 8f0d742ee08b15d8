"""Values that are missing are integrated out; extremes and traces of every likelihood."""

from itertools import product

import pytest
import torch
from torch.distributions import MultivariateNormal
from torch.fx.experimental.proxy_tensor import make_fx

import pyro_vae as pv
from tests.likelihood_cases import (
    COVARIANCES,
    PARTS,
    SUMS,
    VARIANTS,
    WHOLE,
    built,
    covariance_of,
    outputs_of,
    some_data,
)
from tests.tiers import each

MASKS = torch.tensor(list(product([0, 1], repeat=3)))
NUM = {"mixed": 5}  # values a datum, where not 3


def case(name, fields, *leading, scale=0.7, dtype=torch.float64):
    """A module, outputs and data of a few values a datum."""
    data = (NUM.get(name, 3),)
    spec, module = built(name, fields, data, dtype)
    outputs = outputs_of(spec, data, *leading, scale=scale, dtype=dtype)
    return module, outputs, some_data(name, (*leading, *data), dtype)


@pytest.mark.parametrize(("name", "fields"), VARIANTS, ids=str)
@torch.no_grad()
def test_a_marginal_is_the_integral_of_the_joint(name, fields):
    """Two values: the joint, summed over the one that the mask leaves out."""
    spec, module = built(name, fields, (2,))
    p = module(outputs_of(spec, (2,)))
    x = some_data(name, (2,))
    values, weights = SUMS[name]
    for i in (0, 1):
        every = x.expand(len(values), 2).clone()
        every[:, 1 - i] = values
        exact = torch.logsumexp(p.log_prob(every) + weights.log(), 0)
        mask = torch.arange(2) == i
        found = module.marginal(p, mask).log_prob(torch.where(mask, x, 0.0))
        torch.testing.assert_close(found, exact, atol=1e-6, rtol=1e-6)
    whole = module.marginal(p, torch.ones(2))
    torch.testing.assert_close(whole.log_prob(x), p.log_prob(x))
    assert float(module.marginal(p, torch.zeros(2)).log_prob(x)) == 0.0


@pytest.mark.parametrize(("rank", "kind"), COVARIANCES)
@torch.no_grad()
def test_marginals_of_covariances(rank, kind):
    """Every mask, one a datum, against the block of the covariance."""
    spec, module = built("gaussian_covariance", {"rank": rank, "covariance": kind}, (3,))
    p = module(outputs_of(spec, (3,), 8))
    x = torch.randn(8, 3, dtype=torch.float64)
    mask = MASKS.bool()
    found = module.marginal(p, mask).log_prob(torch.where(mask, x, 0.0))
    covariance = covariance_of(p).expand(8, 3, 3)
    for n in range(1, 8):
        kept = mask[n]
        block = MultivariateNormal(p.loc[n, kept], covariance[n][kept][:, kept])
        torch.testing.assert_close(found[n], block.log_prob(x[n, kept]))
    assert float(found[0]) == 0.0
    zero_filled = p.log_prob(torch.where(mask, x, 0.0))  # the wrong twin
    assert (zero_filled - found)[1:-1].abs().min() > 1e-3
    draws = module.marginal(p, mask).sample((2,))
    assert torch.equal(draws != 0, mask.expand(2, 8, 3))


def test_marginals_of_words_are_given_how_many_are_known():
    _, module = built("multinomial", {}, (3,))
    p = module(torch.randn(3).double())
    mask = torch.tensor([True, True, False])
    bags = torch.tensor([[a, b, 6 - a - b] for a in range(7) for b in range(7 - a)]).double()
    joint = p.log_prob(bags).exp()
    known = bags[:, :2].sum(-1)
    for bag in bags:
        same = (bags[:, :2] == bag[:2]).all(-1)
        exact = joint[same].sum() / joint[known == bag[:2].sum()].sum()
        found = module.marginal(p, mask).log_prob(torch.where(mask, bag, 0.0))
        torch.testing.assert_close(found.exp(), exact)
    draws = module.marginal(p, mask).sample((5,))
    assert not draws[:, 2].any()
    assert float(module.marginal(p, torch.zeros(3)).log_prob(bags[0])) == 0.0


@torch.no_grad()
def test_marginals_of_a_row_are_those_of_its_parts():
    module, outputs, x = case("mixed", {"parts": PARTS}, 32)
    p = module(outputs)
    masks = torch.tensor(list(product([0, 1], repeat=5)))
    found = module.marginal(p, masks).log_prob(torch.where(masks.bool(), x, 0.0))
    each = torch.stack(
        [module.marginal(p, row).log_prob(x) for row in torch.eye(5, dtype=torch.bool)], -1
    )
    torch.testing.assert_close(found, (each * masks).sum(-1))
    torch.testing.assert_close(found[-1], p.log_prob(x)[-1])


@pytest.mark.parametrize(("name", "fields"), [*VARIANTS, *WHOLE], ids=str)
@pytest.mark.parametrize("hidden", [0.0, -7.5, float("nan")])
def test_what_is_missing_is_not_read(name, fields, hidden):
    """Neither by the density nor by its gradient, whatever stands there."""
    module, outputs, x = case(name, fields, 6)
    mask = torch.rand(6, x.shape[-1]) < 0.5
    outputs.requires_grad_()

    def density_and_gradient(fill):
        p = module.marginal(module(outputs), mask)
        value = torch.where(mask, x, fill)
        log_prob = p.log_prob(value)
        assert p.support.check(value).all() or torch.isnan(torch.tensor(fill))
        return log_prob, *torch.autograd.grad(log_prob.sum(), outputs)

    for found, expected in zip(
        density_and_gradient(hidden), density_and_gradient(0.0), strict=True
    ):
        assert torch.equal(found, expected)
        assert found.isfinite().all()


@pytest.mark.parametrize(("name", "fields"), [*VARIANTS, *WHOLE], ids=str)
def test_masks_and_outputs_of_several_shapes(name, fields):
    """One mask for all data, many outputs for one datum, plates and draws around them."""
    module, outputs, x = case(name, fields, 2, 6)
    num = x.shape[-1]
    mask = torch.arange(num) % 2 == 0
    one = module.marginal(module(outputs), mask)
    assert (one.batch_shape, one.event_shape) == ((2, 6), (num,))
    many = module.marginal(module(outputs), mask.expand(6, num))
    torch.testing.assert_close(one.log_prob(x), many.log_prob(x))
    torch.testing.assert_close(one.log_prob(x[0]), many.log_prob(x[0].expand_as(x)))
    shared = module.marginal(module(outputs[0, 0]), mask.expand(6, num))
    assert shared.batch_shape == (6,)
    assert shared.log_prob(x[0]).shape == shared.mean.shape[:1] == (6,)
    wide = one.expand([3, 2, 6])
    assert wide.log_prob(x).shape == (3, 2, 6)
    draws = wide.sample((4,))
    assert draws.shape == (4, 3, 2, 6, num)
    assert not draws[..., ~mask].any()


@pytest.mark.parametrize(("name", "fields"), [*VARIANTS, WHOLE[0]], ids=str)
def test_pictures_are_scored_as_their_pixels_in_a_row(name, fields):
    (_, flat), (spec, picture) = (built(name, fields, data) for data in ((6,), (2, 3)))
    outputs = outputs_of(spec, (2, 3), 5)
    x, mask = some_data(name, (5, 2, 3)), torch.rand(5, 2, 3) < 0.5
    p, q = picture(outputs), flat(outputs.flatten(-2))
    assert p.event_shape == p.sample().shape[1:] == p.mean.shape[1:] == (2, 3)
    torch.testing.assert_close(p.log_prob(x), q.log_prob(x.flatten(1)))
    p, q = picture.marginal(p, mask), flat.marginal(q, mask.flatten(1))
    assert p.event_shape == p.sample().shape[1:] == p.mean.shape[1:] == (2, 3)
    torch.testing.assert_close(p.log_prob(x), q.log_prob(x.flatten(1)))
    assert p.support.check(torch.where(mask, x, 0.0)).shape == (5,)


# Extremes and traces ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fields"), [*VARIANTS, *WHOLE], ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_extreme_outputs_have_values_and_gradients(name, fields, training):
    data = (NUM.get(name, 4),)
    spec, module = built(name, fields, data, torch.float32)
    module.train(training)
    x = some_data(name, (40, *data), torch.float32)
    mask = torch.rand(x.shape) < 0.7
    shape = (40, *spec.param_shape(data))
    sign = torch.randint(2, shape) * 2.0 - 1
    for outputs in (torch.full(shape, 50.0), torch.full(shape, -50.0), 50 * sign):
        outputs = outputs.clone().requires_grad_()
        for marginal in (False, True):
            p = module(outputs)
            p = module.marginal(p, mask) if marginal else p
            log_prob = p.log_prob(torch.where(mask, x, 0.0) if marginal else x)
            (gradient,) = torch.autograd.grad(log_prob.sum(), outputs)
            assert log_prob.dtype == torch.float32
            assert log_prob.isfinite().all()
            assert gradient.isfinite().all()
            assert p.mean.isfinite().all()


@pytest.mark.parametrize(("name", "fields"), [*VARIANTS, *WHOLE], ids=str)
@torch.no_grad()
def test_float32_keeps_its_digits(name, fields):
    """Against float64, at outputs of a spread of 4: 784 values where a datum may have as many."""
    wide = name not in ("gaussian_covariance", "mixed")
    data = (784,) if wide else (NUM.get(name, 30),)
    spec, module = built(name, fields, data, torch.float32)
    outputs = outputs_of(spec, data, 3, scale=4.0, dtype=torch.float32)
    x = some_data(name, (3, *data), torch.float32)
    found = module(outputs).log_prob(x)
    exact = module.double()(outputs.double()).log_prob(x.double())
    torch.testing.assert_close(found.double(), exact, rtol=2e-6, atol=2e-3)


@pytest.mark.parametrize(("name", "fields"), [*VARIANTS, *WHOLE], ids=str)
def test_low_precision_outputs_are_scored_in_float32(name, fields):
    module, outputs, x = case(name, fields, 6, dtype=torch.float32)
    outputs = outputs.bfloat16()
    found = module(outputs).log_prob(x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, module(outputs.float()).log_prob(x), rtol=0, atol=0)


@pytest.fixture
def unchecked():
    """Checks of values are not traceable."""
    distribution = torch.distributions.Distribution
    validate = distribution._validate_args
    distribution.set_default_validate_args(False)
    yield
    distribution.set_default_validate_args(validate)


@pytest.mark.parametrize(("name", "fields"), each(2, [*VARIANTS, *WHOLE], unpack=True), ids=str)
@pytest.mark.parametrize("training", [False, True])
def test_densities_and_marginals_are_traced_bit_for_bit(name, fields, training, unchecked):
    module, outputs, x = case(name, fields, 6, dtype=torch.float32)
    module.train(training)

    def program(outputs, x, mask):
        p = module(outputs)
        log_prob = p.log_prob(x) + module.marginal(p, mask).log_prob(x)
        return log_prob, *torch.autograd.grad(log_prob.sum(), outputs)

    def inputs():
        new = torch.randn_like(outputs).requires_grad_()
        return new, some_data(name, tuple(x.shape), torch.float32), torch.rand(x.shape) < 0.5

    graph = make_fx(program)(*inputs())
    new = inputs()
    for found, expected in zip(graph(*new), program(*new), strict=True):
        assert torch.equal(found, expected)


# Through the library ----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "fields"), [*VARIANTS, *WHOLE], ids=str)
def test_a_vae_starts_at_the_data_and_draws_what_it_scores(name, fields):
    data = (NUM.get(name, 4),)
    x = some_data(name, (300, *data), torch.float32)
    vae = pv.VAE(data_shape=data, latent_dim=2, likelihood={"name": name, **fields}).initialize(x)
    vae.eval()
    p = vae.decode(torch.zeros(50, 2))
    assert p.support.check(p.sample()).all()
    assert p.support.check(x[:50]).all()
    assert p.log_prob(x[:50]).isfinite().all()
    assert vae.generate(3).shape == vae.generate(3, mean=False).shape == (3, *data)
    untaught = pv.VAE(data_shape=data, latent_dim=2, likelihood={"name": name, **fields}).eval()
    z = torch.zeros(300, 2)
    assert vae.decode(z).log_prob(x).mean() > untaught.decode(z).log_prob(x).mean()
