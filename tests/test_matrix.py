"""Every prior with every guide and likelihood works, or is refused in a sentence that helps."""

from __future__ import annotations

import itertools
import random
import re

import pytest
import torch
from contract import BESIDE, batch_for, check, fields_of, traced

import inference
import pyro_vae as pv
from pyro_vae.app.matrix import combination, combinations, summary
from pyro_vae.guides.base import Guide
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.priors.base import Prior

OURS = "pyro_vae."  # other tests define components of their own
ENCODERS = ("mlp", "gated_mlp", "linear", "conv", "gated_conv", "resnet")


def members(registry):
    return [name for name, cls in registry.items() if cls.__module__.startswith(OURS)]


def every_combination():
    """prior x guide x likelihood that work; networks, and what a datum has beside x, rotating."""
    pairs = [c for c in combinations() if c.works and _ours(c)]
    names = members(Likelihood.registry)
    rotating = itertools.cycle(itertools.product(ENCODERS, ENCODERS, BESIDE))
    for pair, likelihood in itertools.product(pairs, names):
        yield pair.prior, pair.guide, likelihood, *next(rotating)


def _ours(c):
    return c.prior in members(Prior.registry) and c.guide in members(Guide.registry)


def pairwise_cover():
    """So few of them that every two parts that work together stand in one of them."""
    every = list(every_combination())
    random.Random(0).shuffle(every)
    left = {pair for row in every for pair in itertools.combinations(enumerate(row), 2)}
    chosen = []
    while left:
        best = max(every, key=lambda row: len(left & _pairs(row)))
        chosen.append(best)
        left -= _pairs(best)
    return sorted(chosen)


def _pairs(row):
    return set(itertools.combinations(enumerate(row), 2))


COVER = pairwise_cover()


def covering(rows):
    """So few of these rows that every part stands in one of them."""
    left, chosen = {part for row in rows for part in enumerate(row)}, []
    while left:
        chosen.append(max(rows, key=lambda row: len(left & set(enumerate(row)))))
        left -= set(enumerate(chosen[-1]))
    return chosen


# Recording takes as long as all else: here once a part, in the slow tests everywhere.
RECORDED = covering(COVER)


@pytest.mark.parametrize("row", COVER, ids="-".join)
def test_the_pairwise_cover_keeps_the_contract(row, tmp_path):
    fields, refused = fields_of(*row)
    assert not refused
    check(fields, folder=tmp_path / "run", record=row in RECORDED)


@pytest.mark.slow
@pytest.mark.parametrize("row", [row for row in COVER if row not in RECORDED], ids="-".join)
def test_the_pairwise_cover_is_recorded(row):
    fields, _ = fields_of(*row)
    torch.manual_seed(0)
    vae = pv.VAE(**fields)
    batch = batch_for(vae)
    traced(vae.initialize(*batch), batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [row for row in every_combination() if row not in COVER], ids="-".join
)
def test_every_combination_keeps_the_contract(row):
    fields, _ = fields_of(*row)
    check(fields)


def test_counts():
    found = [c for c in combinations() if _ours(c)]
    print(summary(found))
    assert {c.reason for c in found} <= {"", "levels differ", "supports differ", "no density there"}
    assert sum(c.works for c in found) > len(found) / 3


MUST_WORK = """
standard_normal mean_field bernoulli; standard_normal full_rank gaussian; vamp mean_field bernoulli
standard_normal iaf bernoulli; standard_normal spline gaussian; standard_normal planar bernoulli
standard_normal sylvester bernoulli; standard_normal semi_amortized bernoulli
standard_normal auxiliary bernoulli; standard_normal low_rank laplace; flow iaf gaussian
standard_normal mixture bernoulli; gaussian_mixture mean_field bernoulli; flow mean_field gaussian
gaussian full_rank student_t; laplace mean_field gaussian; horseshoe mean_field gaussian
exemplar mean_field bernoulli; vamp full_rank gaussian; vamp coupling bernoulli
hierarchical bottom_up bernoulli; hierarchical ladder bernoulli; hierarchical top_down gaussian
hyperspherical power_spherical bernoulli; hyperspherical von_mises_fisher bernoulli
dirichlet logistic_normal multinomial; logistic_normal logistic_normal multinomial
categorical categorical bernoulli; relaxed relaxed bernoulli; conditional mean_field poisson
standard_normal mean_field discretized_logistic; standard_normal mean_field negative_binomial
standard_normal product_of_experts bernoulli; standard_normal mean_field mixed
"""

MUST_BE_REFUSED = """
vamp iaf no density there; vamp planar no density there; vamp semi_amortized no density there
vamp auxiliary no density there; exemplar sylvester no density there; vamp point no density there
exemplar spline no density there; standard_normal ladder levels differ
hierarchical mean_field levels differ; vamp bottom_up levels differ
hyperspherical mean_field supports differ; standard_normal categorical supports differ
dirichlet mean_field supports differ; categorical relaxed supports differ
relaxed logistic_normal supports differ; standard_normal power_spherical supports differ
"""


def _rows(text):
    return [line.strip() for line in text.replace("\n", ";").split(";") if line.strip()]


@pytest.mark.parametrize("row", _rows(MUST_WORK))
def test_must_work(row):
    fields, refused = fields_of(*row.split())
    assert not refused
    pv.VAE(**fields)


@pytest.mark.parametrize("row", _rows(MUST_BE_REFUSED))
def test_must_be_refused(row):
    prior, guide, reason = row.split(maxsplit=2)
    found = combination(prior, guide)
    assert found.reason == reason
    assert " that fit: " in found.text
    assert ". " not in found.text.replace("e.g. ", "")
    with pytest.raises(pv.SpecError, match="that fit"):
        pv.VAE(**found.fields, data_shape=(4, 4))


def test_so_many_are_listed():
    assert len(_rows(MUST_WORK)) >= 30
    assert len(_rows(MUST_BE_REFUSED)) >= 15


# Objectives ------------------------------------------------------------------------------------

# The first prior that fits a guide.
PAIRS = {c.guide: c for c in reversed([c for c in combinations() if c.works and _ours(c)])}
OF_LABELS = ("m2",)
QUICK = [("iwae", "full_rank"), ("stl", "ladder"), ("free_bits", "mean_field")]
OBJECTIVE_PAIRS = [
    pytest.param(o, g, marks=() if (o, g) in QUICK else pytest.mark.slow, id=f"{o}-{g}")
    for o in inference.OBJECTIVES
    if o not in OF_LABELS
    for g in PAIRS
]


@pytest.mark.parametrize(("objective", "guide"), OBJECTIVE_PAIRS)
def test_every_objective_with_every_guide(objective, guide):
    """It climbs, or is refused in a sentence that names what fits."""
    fields, _ = fields_of(PAIRS[guide].prior, guide, "bernoulli")
    torch.manual_seed(0)
    vae = pv.VAE(**fields)
    batch = batch_for(vae)
    vae.initialize(*batch)
    how = {"epochs": 60, "batch_size": 64, "learning_rate": 5e-3, "clip_norm": 100.0}
    try:
        found = inference.fit(
            vae.model, vae.guide, batch, objective=objective, engine="eager", progress=False, **how
        )
    except inference.PairError as error:
        assert re.search(r"train by|use kl=|take the site out|give", str(error), re.I), str(error)  # noqa: PT017
        return
    climbed = [row["train_bound"] for row in found.history]
    assert sum(climbed[-10:]) > sum(climbed[:10])
