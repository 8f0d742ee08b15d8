"""One-hot and relaxed codes: densities, draws, sums over all values, gradients."""

import itertools
import math

import pyro
import pytest
import torch
from pyro.distributions import OneHotCategorical, RelaxedOneHotCategorical
from torch.distributions import Dirichlet, kl_divergence

import inference
import pyro_vae as pv
from inference.kl import analytic_kl
from pyro_vae.one_hot import MOST_VALUES, OneHotRows, num_values
from pyro_vae.relaxed_one_hot import RelaxedRows
from pyro_vae.simplex import LEAST_TEMPERATURE
from tests.exact_models import agrees
from tests.grids import DOUBLE, triangle

# One-hot rows ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 2), (1, 7), (2, 3), (3, 4), (6, 2)])
def test_all_values_sum_to_one(shape):
    q = OneHotRows(torch.randn(*shape, **DOUBLE), validate_args=True)
    values = q.enumerate_support()
    assert values.shape == (num_values(shape), *shape)
    assert len(values.unique(dim=0)) == num_values(shape)
    log_q = q.log_prob(values)
    assert float(log_q.exp().sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close((log_q.exp()[:, None, None] * values).sum(0), q.mean)
    torch.testing.assert_close(-(log_q.exp() * log_q).sum(), q.entropy())
    rows = OneHotCategorical(logits=q.logits).to_event(1)
    torch.testing.assert_close(log_q, rows.log_prob(values))
    p = OneHotRows(torch.randn(*shape, **DOUBLE))
    exact = (log_q.exp() * (log_q - p.log_prob(values))).sum()
    torch.testing.assert_close(kl_divergence(q, p), exact)
    torch.testing.assert_close(analytic_kl(q, p), exact)
    if shape[0] > 1:  # the wrong twin: rows that share one category
        assert float(log_q[values.std(0).sum((-2, -1)) == 0].exp().sum()) < 0.9


def test_draws_have_the_probabilities():
    q = OneHotRows(torch.randn(2, 3, **DOUBLE))
    draws = q.sample((20_000,))
    for value, p in zip(
        q.enumerate_support(), q.log_prob(q.enumerate_support()).exp(), strict=True
    ):
        share = (draws == value).all(-1).all(-1).double().mean()
        assert agrees(share, p, (p * (1 - p) / len(draws)).sqrt(), ceiling=0.004)


def test_shapes_of_one_hot_rows():
    q = OneHotRows(torch.randn(5, 2, 3), validate_args=True)
    wide = q.expand([4, 5])
    assert wide.sample((6,)).shape == (6, 4, 5, 2, 3)
    assert wide.log_prob(wide.sample()).shape == wide.entropy().shape == (4, 5)
    assert wide.enumerate_support().shape == (9, 4, 5, 2, 3)
    assert wide.enumerate_support(expand=False).shape == (9, 1, 1, 2, 3)
    for value in (torch.ones(2, 3), torch.zeros(2, 3), torch.full((2, 3), 1 / 3)):
        with pytest.raises(ValueError, match=r"within the support"):
            q.log_prob(value)
    assert OneHotRows(torch.zeros(12, 2)).has_enumerate_support
    assert num_values((12, 2)) == MOST_VALUES
    many = OneHotRows(torch.zeros(13, 2))
    assert not many.has_enumerate_support
    with pytest.raises(NotImplementedError, match="13 rows of 2 categories take 8,192 values"):
        many.enumerate_support()


# Models of one-hot codes ----------------------------------------------------------------------


def build(rows, categories=3, learned=True, **fields):
    torch.manual_seed(0)
    codes = {"name": "categorical", "categories": categories}
    vae = pv.VAE(
        data_shape=(6,),
        latent_dim=rows,
        prior={**codes, "learned": learned},
        guide=codes,
        encoder=pv.networks.MLP(hidden=(5,)),
        decoder=pv.networks.MLP(hidden=(5,)),
        **fields,
    ).double()
    with torch.no_grad():
        for name, parameter in vae.named_parameters():
            size = 0.3 if name.startswith("guide") else 0.7
            parameter.add_(size * torch.randn_like(parameter))
    return vae, torch.bernoulli(torch.full((4, 6), 0.4, **DOUBLE))


def all_codes(rows, categories):
    eye = torch.eye(categories, **DOUBLE)
    return torch.stack([
        torch.stack([eye[c] for c in code])
        for code in itertools.product(range(categories), repeat=rows)
    ])  # fmt: skip


def joint(vae, x):
    """log p(x, z) and log q(z|x) `[codes, data]`, by hand."""
    z = all_codes(*vae.shapes.latent)
    prior = getattr(vae.prior, "logits").log_softmax(-1)  # noqa: B009  (a parameter)
    log_pz = (z * prior).sum((-2, -1)).unsqueeze(1)
    logits = vae.decoder(z).unsqueeze(1)
    log_px = (x * logits - torch.nn.functional.softplus(logits)).sum(-1)
    log_q = vae.guide_module.encoder(x).unflatten(-1, vae.shapes.latent).log_softmax(-1)
    return log_pz + log_px, (z.unsqueeze(1) * log_q).sum((-2, -1))


@pytest.mark.parametrize("rows", [1, 2])
def test_evidence_is_the_sum_over_codes(rows):
    vae, x = build(rows)
    log_p, _ = joint(vae, x)
    exact = log_p.logsumexp(0).detach()
    found = inference.log_marginal(vae.model, vae.guide, x, estimator="enumerate", progress=False)
    torch.testing.assert_close(found.value, exact, rtol=0, atol=1e-9)
    found = inference.log_marginal(
        vae.model,
        vae.guide,
        x,
        estimator=inference.Importance(num_samples=4000),
        progress=False,
    )
    ratio = (found.value - exact).exp()
    assert agrees(ratio, 1.0, found.std_error, ceiling=0.1)


@pytest.mark.parametrize("rows", [1, 2])
def test_the_bound_is_summed_exactly(rows):
    """Value and gradients of the traced loss are those of the sum by hand: there is no noise."""
    vae, x = build(rows)
    log_p, log_q = joint(vae, x)
    exact = -(log_q.exp() * (log_p - log_q)).sum(0).mean()
    wanted = torch.autograd.grad(exact, list(vae.parameters()))
    traced = inference.trace(vae.model, vae.guide, x)
    for _ in range(2):
        loss, found = traced.loss_and_grads(traced.parameters, x)
        torch.testing.assert_close(loss, exact.detach())
        for (name, _), gradient in zip(vae.named_parameters(), wanted, strict=True):
            key = name.replace("guide_module", "guide").replace(".", "$$$", 1)
            torch.testing.assert_close(found[key], gradient)
    # The wrong twin: a code of each row is drawn, and the bound is noisy.
    vae.guide_module.infer = dict
    torch.manual_seed(0)
    drawn = [float(pyro.infer.Trace_ELBO().loss(vae.model, vae.guide, x)) / 4 for _ in range(2)]
    pyro.clear_param_store()
    assert abs(drawn[0] - drawn[1]) > 1e-3


def test_many_codes_are_drawn_and_unbiased(own_store):
    """Without marks, Pyro's score function: its mean gradient is that of the sum."""
    vae, x = build(2)
    log_p, log_q = joint(vae, x)
    exact = -(log_q.exp() * (log_p - log_q)).sum(0).sum()
    head = list(vae.guide_module.parameters())[-1]
    (wanted,) = torch.autograd.grad(exact, head)
    vae.guide_module.infer = dict
    elbo = pyro.infer.Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=1)
    found = []
    for _ in range(100):
        head.grad = None
        elbo.loss_and_grads(vae.model, vae.guide, x)
        found.append(head.grad.clone())
    found = torch.stack(found)
    error = found.std(0) / math.sqrt(len(found))
    assert agrees(found.mean(0), wanted, error, ceiling=0.1)
    assert not agrees(found.mean(0), 0.5 * wanted, error)


def test_when_the_site_is_marked():
    marked, _ = build(2)
    many, x = build(9)
    assert marked.guide_module.infer() == {"enumerate": "parallel"}
    assert many.guide_module.infer() == {}
    with pytest.raises(inference.Untraceable, match="its gradient is a score function"):
        inference.trace(many.model, many.guide, x)
    with pytest.raises(inference.PairError, match=r"OneHotRows on .* is no finite set"):
        inference.log_marginal(many.model, many.guide, x, estimator="enumerate", progress=False)
    with pytest.raises(inference.PairError, match="estimator='enumerate', which is exact"):
        inference.log_marginal(marked.model, marked.guide, x, estimator="ais", progress=False)


# Relaxed rows ---------------------------------------------------------------------------------


def interval(count=2000, reach=200.0):
    """(z, 1 - z) with z a sigmoid of equal steps, and dz."""
    step = 2 * reach / count
    u = (torch.arange(count, **DOUBLE) + 0.5) * step - reach
    z, other = u.sigmoid(), (-u).sigmoid()
    return torch.stack([z, other], -1), z * other * step


def relaxed(temperature, logits):
    return RelaxedRows(temperature, torch.tensor([logits], **DOUBLE))


@pytest.mark.parametrize("temperature", [0.3, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("logits", [[0.4, -0.3], [0.5, -1.0, 0.8]], ids=["two", "three"])
def test_densities_of_rows_integrate_to_one(temperature, logits):
    z, volume = (interval if len(logits) == 2 else triangle)()
    p = relaxed(temperature, logits)
    log_p = p.log_prob(z.unsqueeze(-2))
    mass = log_p.exp() * volume
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
    # The probability of each corner is the categorical's at every temperature.
    shares = torch.stack([mass[z.argmax(-1) == c].sum() for c in range(len(logits))])
    # (The sum is coarse where the largest changes.)
    torch.testing.assert_close(shares, p.logits.exp()[0], rtol=0, atol=0.02)
    theirs = RelaxedOneHotCategorical(torch.tensor(temperature, **DOUBLE), logits=p.logits[0])
    torch.testing.assert_close(log_p, theirs.log_prob(z))
    if temperature != 1:  # the wrong twin: without the constant of the temperature
        twin = mass * temperature ** (1 - len(logits))
        assert float(twin.sum()) != pytest.approx(1.0, abs=0.2)


def test_rows_are_independent():
    p = RelaxedRows(0.6, torch.randn(3, 4, **DOUBLE))
    z = p.sample((10,))
    each = [RelaxedRows(0.6, p.logits[[i]]).log_prob(z[:, [i]]) for i in range(3)]
    torch.testing.assert_close(p.log_prob(z), sum(each))


def test_five_categories_by_importance():
    p = RelaxedRows(0.8, torch.randn(1, 5, **DOUBLE))
    # Into a corner p falls as a Beta law of the temperature; with 4 x 0.2 the proposal does, too.
    proposal = Dirichlet(torch.full((5,), 0.2, **DOUBLE))
    z = proposal.sample((100_000,))
    ratio = (p.log_prob(z.unsqueeze(-2)) - proposal.log_prob(z)).exp()
    assert agrees(ratio.mean(), 1.0, ratio.std() / math.sqrt(len(z)), ceiling=0.03)


@pytest.mark.parametrize("temperature", [0.3, 1.0])
def test_relaxed_draws_have_the_density(temperature):
    p = relaxed(temperature, [0.5, -1.0, 0.8])
    z, area = triangle()
    mass = p.log_prob(z.unsqueeze(-2)).exp() * area
    drawn = p.sample((40_000,)).squeeze(-2)
    for test in (lambda z: z[:, 0], lambda z: z[:, 1] * z[:, 2], lambda z: z[:, 2].square()):
        found = test(drawn)
        error = found.std() / math.sqrt(len(found))
        assert agrees(found.mean(), (mass * test(z)).sum(), error, ceiling=0.005)
    corner = (drawn.argmax(-1) == 2).double()
    exact = p.logits.exp()[0, 2]
    assert agrees(corner.mean(), exact, corner.std() / math.sqrt(len(drawn)), ceiling=0.005)


def test_pathwise_gradients_of_relaxed_rows():
    def f(z):
        return 1 / (z[..., 0] + 2 * z[..., 1] * z[..., 2] + 0.5)

    logits = torch.tensor([0.5, -1.0, 0.8], **DOUBLE)
    each = logits.expand(40_000, 1, -1).clone().requires_grad_()
    (found,) = torch.autograd.grad(f(RelaxedRows(0.6, each).rsample()).sum(), each)
    logits.requires_grad_()
    z, area = triangle()
    log_p = RelaxedRows(0.6, logits.unsqueeze(0)).log_prob(z.unsqueeze(-2))
    (exact,) = torch.autograd.grad((log_p.exp() * area * f(z)).sum(), logits)
    found = found.squeeze(1)
    error = found.std(0) / math.sqrt(len(found))
    assert agrees(found.mean(0), exact, error, ceiling=0.01)
    # The wrong twin: draws of another temperature.
    (twin,) = torch.autograd.grad(f(RelaxedRows(0.3, each).rsample()).sum(), each)
    assert not agrees(twin.squeeze(1).mean(0), exact, error)


def test_extremes_of_relaxed_rows_in_float32():
    """Where torch's own draws zeros, whose density is no number."""
    torch.manual_seed(0)
    logits = 40 * torch.randn(500, 2, 6)
    logits.requires_grad_()
    p = RelaxedRows(LEAST_TEMPERATURE, logits)
    z = p.rsample((4,))
    total = p.log_prob(z) + RelaxedRows(0.5, torch.zeros(2, 6)).log_prob(z)
    (gradient,) = torch.autograd.grad(total.sum(), logits)
    assert bool(total.isfinite().all()) and bool(gradient.isfinite().all())  # noqa: PT018
    theirs = RelaxedOneHotCategorical(
        torch.tensor(LEAST_TEMPERATURE), logits=logits.detach(), validate_args=False
    )
    assert not bool(theirs.log_prob(theirs.sample()).isfinite().all())


def test_shapes_of_relaxed_rows():
    p = RelaxedRows(0.5, torch.randn(5, 2, 3), validate_args=True)
    wide = p.expand([4, 5])
    assert wide.rsample((6,)).shape == (6, 4, 5, 2, 3)
    assert wide.log_prob(wide.sample()).shape == (4, 5)
    with pytest.raises(ValueError, match=r"within the support"):
        p.log_prob(torch.full((2, 3), 0.5))
    for field, value in (("temperature", 0.05), ("categories", 1)):
        for family in (pv.priors, pv.guides):
            with pytest.raises(pv.SpecError, match=rf"^{field}: .*expected .* at least"):
                family.Relaxed(**{field: value})
