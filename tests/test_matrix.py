"""Every prior with every guide and likelihood works, or is refused in a sentence that helps."""

from __future__ import annotations

import itertools
import random

import pytest
from contract import check, fields_of

from pyro_vae.app.matrix import combinations, summary
from pyro_vae.guides.base import Guide
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.priors.base import Prior

OURS = "pyro_vae."  # other tests define components of their own
ENCODERS = ("mlp", "gated_mlp", "linear", "conv", "gated_conv", "resnet")
WITH_FIELDS: set[str] = set()  # likelihoods that nothing but their own test can ask for


def members(registry):
    return [name for name, cls in registry.items() if cls.__module__.startswith(OURS)]


def every_combination():
    """prior x guide x likelihood that work, networks rotating."""
    pairs = [c for c in combinations() if c.works and _ours(c)]
    names = [name for name in members(Likelihood.registry) if name not in WITH_FIELDS]
    networks = itertools.cycle(itertools.product(ENCODERS, ENCODERS))
    for pair, likelihood in itertools.product(pairs, names):
        encoder, decoder = next(networks)
        yield pair.prior, pair.guide, likelihood, encoder, decoder


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


@pytest.mark.parametrize("row", COVER, ids="-".join)
def test_the_pairwise_cover_keeps_the_contract(row, tmp_path):
    fields, refused = fields_of(*row)
    assert not refused
    check(fields, folder=tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "row", [row for row in every_combination() if row not in COVER], ids="-".join
)
def test_every_combination_keeps_the_contract(row):
    fields, _ = fields_of(*row)
    check(fields)


def test_counts(capsys):
    found = [c for c in combinations() if _ours(c)]
    print(summary(found))
    assert {c.reason for c in found} <= {"", "levels differ", "supports differ", "no density there"}
    assert sum(c.works for c in found) > len(found) / 3
