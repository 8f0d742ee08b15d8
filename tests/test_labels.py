"""Labels: told, summed over where they are missing, or clusters that nobody tells."""

from __future__ import annotations

import math

import pyro
import pytest
import torch

import inference
import pyro_vae as pv
from pyro_vae.errors import RequestError, SpecError

SHAPE, CLASSES = (5,), 3
NET = pv.networks.MLP(hidden=(8,))
GRID = torch.linspace(-9, 9, 4001, dtype=torch.float64)


def build(**fields):
    torch.manual_seed(3)
    nets = {"encoder": NET, "decoder": NET, "classifier": NET}
    vae = pv.VAE(data_shape=SHAPE, latent_dim=1, classes=CLASSES, **nets, **fields).double().eval()
    vae.guide_module.encoder.shrink_outputs(0.2)  # near the prior: weights without a heavy tail
    if vae.labels is not None:
        with torch.no_grad():
            vae.labels.logits.copy_(torch.tensor([0.5, -1.0, 0.2]))
    return vae


def data(rows=6):
    torch.manual_seed(0)
    x = (torch.rand(rows, *SHAPE) < 0.5).double()
    return x, torch.arange(rows) % CLASSES


@torch.no_grad()
def exact(vae, x, *, decoder_sees=True):
    """log p(x, y) `[N, classes]`, by a grid over the one latent."""
    columns = []
    for c in range(CLASSES):
        y = torch.full((len(GRID),), c)
        log_pz = vae.log_prior(GRID[:, None], y if vae.spec.prior.labelled else None)
        if not vae.spec.prior.labelled:
            log_pz = torch.distributions.Normal(0, 1).log_prob(GRID)
        p = vae.decode(GRID[:, None], y if decoder_sees else None)
        each = p.log_prob(x[:, None]) + log_pz  # [N, grid]
        columns.append(torch.logsumexp(each, 1) + math.log(float(GRID[1] - GRID[0])))
    return torch.stack(columns, 1) + vae.labels.prior().logits


def estimated(vae, *batch, samples=20_000):
    return inference.log_marginal(
        vae.model,
        vae.guide,
        batch,
        estimator=inference.Importance(num_samples=samples),
        engine="eager",
        precision="float64",
        progress=False,
    )


@pytest.mark.parametrize("prior", ["standard_normal", "conditional"])
@torch.no_grad()
def test_a_latent_label_is_told_or_summed_over(prior):
    vae, (x, y) = build(label="latent", prior=prior), data()
    joint = exact(vae, x)
    told = estimated(vae, x, y)
    of_told = joint.gather(1, y[:, None]).squeeze(1)
    assert ((told.value - of_told).abs() < 5 * told.std_error + 1e-3).all()
    untold = estimated(vae, x, torch.full_like(y, -1))
    assert ((untold.value - joint.logsumexp(1)).abs() < 5 * untold.std_error + 1e-3).all()
    # The wrong twin: log p(x|y) for log p(x, y).
    wrong = of_told - vae.labels.prior().logits[y]
    assert ((told.value - wrong).abs() > 5 * told.std_error + 1e-3).all()


@torch.no_grad()
def test_a_condition_is_not_modelled():
    vae, (x, y) = build(label="condition", prior="conditional"), data()
    given = (exact(vae, x) - vae.labels.prior().logits).gather(1, y[:, None]).squeeze(1)
    found = estimated(vae, x, y)
    assert ((found.value - given).abs() < 5 * found.std_error + 1e-3).all()


@torch.no_grad()
def test_clusters_are_summed_over():
    vae, (x, _) = build(label="cluster", prior="conditional"), data()
    joint = exact(vae, x, decoder_sees=False)
    found = estimated(vae, x)
    assert ((found.value - joint.logsumexp(1)).abs() < 5 * found.std_error + 1e-3).all()
    z = torch.randn(7, 1, dtype=torch.float64)
    parts = torch.stack([vae.log_prior(z, torch.full((7,), c)) for c in range(CLASSES)])
    whole = torch.logsumexp(parts + vae.labels.prior().logits[:, None], 0)
    torch.testing.assert_close(vae.log_prior(z), whole)
    share = vae.classify(x, num_samples=4000)
    torch.testing.assert_close(share.sum(1), torch.ones(len(x), dtype=torch.float64))


def test_the_bound_sums_over_missing_labels():
    """E_q(y|x) of each label's own bound, and the entropy; against the same by hand."""
    vae, (x, _) = build(label="latent"), data()
    untold = torch.full((len(x),), -1)
    found = inference.bound(vae.model, vae.guide, (x, untold), num_samples=4000, engine="eager")
    with torch.no_grad():
        q = vae.labels.posterior(vae.classifier_joining(x, []))
        total = -(q.probs * q.logits).sum(1)
        for c in range(CLASSES):
            y = torch.full((len(x),), c)
            own = inference.bound(
                vae.model, vae.guide, (x, y), num_samples=4000, engine="eager", seed=c
            )
            total = total + q.probs[:, c] * own.per_datum
    assert float((found.per_datum - total).abs().max()) < 0.1
    assert found.elbo == pytest.approx(float(total.mean()), abs=5 * found.elbo_std_error + 1e-3)


def test_the_classifier_has_its_term():
    vae, (x, y) = build(label="latent"), data()
    some = torch.where(torch.arange(len(x)) < 2, y, -1)
    losses = []
    for alpha in (0.0, 2.0):
        traced = inference.trace(vae.model, vae.guide, x, some, objective=inference.M2(alpha=alpha))
        pyro.set_rng_seed(0)
        losses.append(traced(traced.parameters, x, some))
    q = vae.labels.posterior(vae.classifier_joining(x, []))
    told = q.logits.detach().gather(1, y[:, None]).squeeze(1)[:2].sum() / len(x)
    found = float((losses[0] - losses[1]).detach())
    assert found == pytest.approx(2 * float(told), rel=1e-6)


def test_without_a_note_the_classifier_has_no_term():
    vae, (x, _) = build(label="cluster", prior="conditional"), data()
    with pytest.raises(inference.InferenceError, match="log_classifier"):
        inference.trace(vae.model, vae.guide, x, objective="m2")


def test_missing_labels_are_zeros_to_a_network():
    vae = build(label="latent")
    found = vae.labels.one_hot(torch.tensor([2, -1]))
    assert found.tolist() == [[0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"prior": "conditional"}, "is p\\(z\\|y\\), but there is no label"),
        ({"label": "cluster", "classes": 3}, "seen by the prior alone"),
        ({"label": "cluster", "prior": "conditional"}, "classes: missing"),
        ({"classes": 3}, "without a label"),
        ({"label": "latent"}, "needs their number"),
        ({"label": "condition", "classes": 1}, "classes"),
    ],
)
def test_roles_that_do_not_fit(fields, text):
    with pytest.raises(SpecError, match=text):
        pv.VAE(data_shape=SHAPE, **fields)


def test_what_is_handed_in_is_checked():
    vae, (x, y) = build(label="condition"), data()
    with pytest.raises(RequestError, match="y: missing"):
        vae.encode(x)
    with pytest.raises(RequestError, match="takes x, y"):
        vae.encode(x, y, y)
    with pytest.raises(RequestError, match="y: was given twice"):
        vae.encode(x, y, y=y)
    with pytest.raises(RequestError, match="expected integers"):
        vae.encode(x, y.double())
    with pytest.raises(RequestError, match="one row per datum"):
        vae.encode(x, y[:2])
    with pytest.raises(RequestError, match="y: missing"):
        vae.decode(torch.zeros(1, 1).double())
    assert vae.generate(4, y=2).shape == (4, *SHAPE)
    assert vae.generate(4).shape == (4, *SHAPE)


@pytest.mark.parametrize("label", ["latent", "condition"])
def test_exemplars_leave_out_a_datum_whatever_its_label_is_taken_for(label, own_store):
    """In training; a latent label's values, over which p(x) is summed, are not what is left out."""
    vae = build(label=label, prior={"name": "exemplar", "components": 6})
    x, y = data()
    if label == "latent":
        y = torch.where(torch.arange(6) < 3, y, -1)
    vae.initialize(x, y).train()
    trace = pyro.poutine.trace(vae.guide).get_trace(x, y)
    found = pyro.poutine.trace(pyro.poutine.replay(vae.model, trace)).get_trace(x, y)
    logits = found.nodes["z"]["fn"].logits
    assert logits.shape == (6, 6)
    assert (logits == -math.inf).sum(1).tolist() == [1] * 6
    for row, left in zip(vae._seen(vae.read(x, y)), logits == -math.inf, strict=True):
        assert torch.equal(vae.prior.exemplars[left][0], row)
    result = inference.fit(
        vae.model, vae.guide, (x, y), epochs=1, batch_size=4, engine="eager", progress=False
    )
    assert result.steps == 2


def test_a_latent_label_may_be_left_unsaid():
    """No y is the same as -1 everywhere."""
    vae = build(label="latent", prior={"name": "exemplar", "components": 6})
    x, _ = data()
    none = torch.full((6,), -1)
    torch.manual_seed(0)
    vae.initialize(x)
    exemplars = vae.prior.exemplars.clone()
    torch.manual_seed(0)
    vae.initialize(x, none)
    assert torch.equal(exemplars, vae.prior.exemplars)
    assert torch.equal(vae.encode(x).mean, vae.encode(x, none).mean)


def test_a_condition_must_be_told():
    """-1 is no label of p(x|y): not the last one, and not none."""
    vae = build(label="condition", prior="conditional")
    x, y = data()
    y[0] = -1
    for refused in (
        lambda: vae.encode(x, y),
        lambda: vae.decode(torch.zeros(6, 1).double(), y),
        lambda: vae.generate(2, y=-1),
        lambda: inference.log_marginal(vae.model, vae.guide, (x, y), progress=False),
    ):
        with pytest.raises(RequestError, match=r"y: \d of \d labels are missing .*'latent'"):
            refused()
    with pyro.validation_enabled(False):
        assert vae.encode(x, y).mean.isnan().flatten().tolist() == [True] + [False] * 5
    latent = build(label="latent")
    assert latent.encode(x, y).mean.isfinite().all()
    for of in (vae, latent):
        with pytest.raises(RequestError, match=r"y: 3 is no label; expected integers from 0 to 2"):
            of.encode(x, y.clamp_min(0) + 1)


def test_a_condition_that_is_missing_late_stops_training():
    """Training checks no values of labels, so what it makes of one must not look like a number."""
    vae = build(label="condition", prior="conditional")
    x, y = data(600)
    y[-1] = -1
    with pytest.raises(inference.errors.InferenceError, match=r"not finite|missing"):
        inference.fit(
            vae.model, vae.guide, (x, y), epochs=1, batch_size=100, engine="eager", progress=False
        )
