"""What every combination of a prior, a guide, a likelihood, a network and an objective must do."""

from __future__ import annotations

import math

import torch
from torch.nn.functional import normalize

import inference
import pyro_vae as pv
from pyro_vae.app.experiment import ExperimentSpec
from pyro_vae.app.matrix import combination
from pyro_vae.app.run import Run
from pyro_vae.likelihoods.base import Likelihood

# So many values tell which pattern a datum shows: there is much to learn.
SHAPE = (8, 8)
LEVELS = 16  # of grey, for a likelihood with an output for each; they are among the 256, too
COLUMNS = {"gaussian": 16, "bernoulli": 12, "poisson": 4}  # of a table
ROWS = 64
STEPS = 30
RATE = 1e-2
WIDE = {"hidden": (24,)}
PICTURES = ("conv", "gated_conv", "resnet")
# What a likelihood must be told of the data.
OWN: dict[str, dict] = {
    "categories": {"levels": 4},
    "categorical": {"levels": LEVELS},
    "mixed": {"parts": [{"likelihood": name, "columns": num} for name, num in COLUMNS.items()]},
}


def codes(rows=ROWS, seed=0):
    """Which of four patterns a datum shows."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(4, *SHAPE, generator=generator)
    y = torch.arange(rows) % 4
    return patterns[y] + 0.2 * torch.randn(rows, *SHAPE, generator=generator), y % 3


def data_for(support: str, rows=ROWS):
    """Data `[rows, 4, 4]` of four patterns, of values that a likelihood of this support scores."""
    raw, _ = codes(rows)
    share = (3 * raw).sigmoid()
    if support == "mixed":
        real, yes, rate = raw.flatten(1)[:, : sum(COLUMNS.values())].split([*COLUMNS.values()], 1)
        return torch.cat([real, (yes > 0).float(), (3 * (3 * rate).sigmoid()).round()], 1)
    return {
        "binary": (raw > 0).float(),
        "levels": (share * (LEVELS - 1)).round() / (LEVELS - 1),
        "unit": share,
        "inside": share.clamp(0.01, 0.99),
        "count": (3 * share).round(),
        "real": raw,
    }[support]


BESIDE: dict[str, dict] = {  # what a datum has beside its values
    "alone": {},
    "condition": {"label": "condition", "classes": 3},
    "missing": {"missing": True},
}


def fields_of(prior, guide, likelihood, encoder="mlp", decoder="mlp", beside="alone"):
    """The fields of a VAE with small networks, or a refused combination's sentence."""
    found = combination(prior, guide)
    if not found.works:
        return None, found.text
    shape = SHAPE
    if likelihood == "mixed":  # of one row: no picture
        shape = (sum(COLUMNS.values()),)
        encoder, decoder = ("mlp" if n in PICTURES else n for n in (encoder, decoder))
    nets = {
        "encoder": {"name": encoder, **small(encoder)},
        "decoder": {"name": decoder, **small(decoder)},
    }
    scored = {"name": likelihood, **OWN.get(likelihood, {})}
    fields = {**BESIDE[beside], **found.fields, **nets, "likelihood": scored, "data_shape": shape}
    if fields["prior"] in ("vamp", "exemplar"):
        fields["prior"] = {"name": fields["prior"], "components": 10}
    if fields["prior"] in ("categorical", "relaxed"):  # all codes are summed over
        few = {"categories": 3}
        fields |= {role: {"name": fields[role], **few} for role in ("prior", "guide")}
    return fields, ""


def small(network: str) -> dict:
    return {
        "mlp": WIDE,
        "gated_mlp": WIDE,
        "counts": WIDE,
        "bayesian_mlp": WIDE,
        "conv": {"channels": (4,), "hidden": 16},
        "gated_conv": {"channels": (4,), "hidden": 16},
        "resnet": {"channels": (4,), "hidden": 16},
    }.get(network, {})


def batch_for(vae: pv.VAE):
    x = data_for(vae.likelihood.support)
    _, y = codes()
    generator = torch.Generator().manual_seed(1)
    beside = {
        "y": y,
        "mask": torch.rand(x.shape, generator=generator) < 0.7,
        "exposure": torch.ones(len(x)),
    }
    return tuple(x if name == "x" else beside[name] for name in vae.columns)


def check(fields, objective="elbo", *, folder=None, record=True):
    """Raises `AssertionError` with what a combination does not do."""
    torch.manual_seed(0)
    vae = pv.VAE(**fields)
    batch = batch_for(vae)
    vae.initialize(*batch)
    # A calm start: a few wild draws before training would hide what it gains.
    vae.guide_module.encoder.shrink_outputs(0.3)
    vae.decoder.shrink_outputs(0.3)
    assert Likelihood.registry[vae.spec.likelihood.name].support == vae.likelihood.support
    before = bounds(vae, batch)
    inference.fit(
        vae.model,
        vae.guide,
        batch,
        objective=objective,
        epochs=STEPS,
        batch_size=ROWS,
        learning_rate=RATE,
        clip_norm=100.0,
        engine="eager",
        progress=False,
    )
    after = bounds(vae, batch)
    gain = after - before
    error = float(gain.std()) / math.sqrt(len(gain))
    assert float(gain.mean()) > 3 * error, f"the bound rose by {float(gain.mean())} +- {error}"
    shapes(vae, batch)
    samples_have_the_density(vae, batch)
    if record:
        traced(vae, batch)
    estimated(vae, batch)
    again = pv.VAE.from_spec(pv.VAESpec.from_dict(vae.spec.to_dict()))
    assert again.spec == vae.spec
    if folder is not None:
        round_trip(vae, batch, after, folder)
    return vae


def pair_of(vae: pv.VAE):
    if not vae.bayesian:
        return vae.model, vae.guide
    weights = {"decoder_weights": vae.decoder.loc.detach()}
    return inference.given_globals(vae.model, vae.guide, weights)


def bounds(vae, batch):
    """The bound of each datum, always with the same noise; the objective of a guide of points."""
    if vae.spec.guide.density == "none":
        return mode_value(vae, batch)
    return inference.bound(*pair_of(vae), batch, num_samples=20, seed=0).per_datum


def mode_value(vae, batch):
    """log p(x, z) at the guide's point."""
    vae.eval()
    with torch.no_grad():
        z, y = vae.encode(*batch).sample(), vae.likely_labels(*batch)
        labels = y if vae.spec.prior.labelled else None
        return vae.decode(z, y).log_prob(batch[0]) + vae.log_prior(z, labels)


def shapes(vae, batch):
    """encode, decode, generate, reconstruct; a batch of one."""
    vae.eval()
    latent = vae.shapes.latent
    for rows in (ROWS, 1):
        some = tuple(item[:rows] for item in batch)
        z = vae.encode(*some).sample()
        assert z.shape == (rows, *latent)
        p = vae.decode(z, vae.likely_labels(*some))
        assert p.batch_shape == (rows,)
        assert p.event_shape == vae.shapes.data
        made = vae.reconstruct(*some)
        assert made.shape == (rows, *vae.shapes.data)
        assert bool(made.isfinite().all())
    assert vae.generate(5).shape == (5, *vae.shapes.data)
    assert vae.generate(1, mean=False).shape == (1, *vae.shapes.data)
    if vae.spec.guide.density != "none":
        record = inference.log_weights(*pair_of(vae), *batch, num_particles=3)
        assert record.log_weight.shape == (3, ROWS)


def samples_have_the_density(vae, batch, draws=400):
    """E[d/dv log p] = 0 under p itself, of p(x|z) by its outputs and of q(z|x) by its parameters.

    It fails where draws come from another density than `log_prob`; v is one random direction.
    """
    given = vae.read(*(item[:1].expand(draws, *item.shape[1:]) for item in batch))
    y = vae.likely_labels(*batch)
    with torch.no_grad():
        seen = vae._seen(given)
        parameters = vae.guide_module.encode(seen, given)
        outputs = vae.outputs(vae.encode(*(item[:1] for item in batch)).sample(), _first(y))
    outputs = outputs.expand(draws, *outputs.shape[1:]).clone().requires_grad_()
    p = vae.likelihood(outputs)
    _centred(p, p.sample(), [outputs], "p(x|z)")
    if vae.spec.guide.density == "anywhere":
        single = torch.is_tensor(parameters)
        leaves = [p.clone().requires_grad_() for p in ([parameters] if single else parameters)]
        made = list(leaves)
        if vae.spec.guide.support == "sphere":  # the first is a direction
            made[0] = normalize(made[0], dim=-1)
        q = vae.guide_module.distribution(made[0] if single else tuple(made))
        _centred(q, q.sample(), leaves, "q(z|x)")


def _first(y):
    return None if y is None else y[:1]


def _centred(distribution, value, leaves, name):
    scores = torch.autograd.grad(
        distribution.log_prob(value.detach()).sum(), leaves, allow_unused=True
    )
    generator = torch.Generator().manual_seed(2)
    along = 0
    for leaf, score in zip(leaves, scores, strict=True):
        if score is not None:
            ahead = torch.randn(leaf.shape[1:], generator=generator)
            along = along + (score * ahead).reshape(len(score), -1).sum(1)
    mean, error = float(along.mean()), float(along.std()) / math.sqrt(len(along))
    assert abs(mean) < 5 * error + 1e-4, f"{name}: its score is {mean} +- {error} on its own draws"


def traced(vae, batch):
    """The trace equals the handlers, which `trace` itself sees to; what has none says why."""
    try:
        found = inference.trace(vae.model, vae.guide, *batch)
    except inference.Untraceable as error:
        assert "reparametrized" in str(error) or "score function" in str(error), str(error)  # noqa: PT017
        return
    found.check(*batch)


def estimated(vae, batch):
    if vae.spec.guide.density == "none":
        return
    some = tuple(item[:4] for item in batch)
    found = inference.log_marginal(
        *pair_of(vae),
        some,
        estimator=inference.Importance(num_samples=50),
        engine="eager",
        progress=False,
    )
    assert bool(found.value.isfinite().all())
    assert bool((found.std_error >= 0).all())


def round_trip(vae, batch, expected, folder):
    """Through a run folder: YAML and safetensors; the bounds are those of before."""
    run = Run.create(Run(folder), ExperimentSpec(model=vae.spec))
    run.write_weights(vae)
    other = pv.load(folder)
    assert other.spec == vae.spec
    torch.testing.assert_close(bounds(other, batch), expected)
