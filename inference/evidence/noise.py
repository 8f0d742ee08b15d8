"""Chains in the Gaussian noise that a guide's draws are made of."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import (
    LowRankMultivariateNormal,
    MultivariateNormal,
    Normal,
    TransformedDistribution,
)

from inference.errors import PairError
from inference.evidence.points import Points, axes_of
from inference.evidence.space import Data, Ends, check_some, standard_normal
from inference.particles import Scorer
from inference.record import LogWeights
from inference.supports import is_point, plain_fn


class NoiseSpace:
    """The guide's own noise e: z = g(e; x) with e ~ N(0, I).

        f_0(e) = N(e; 0, I),   f_1(e) = N(e; 0, I) p(x, g(e; x)) / q(g(e; x)|x)

    Only the forward map is needed, so it serves guides that cannot be scored anywhere (planar,
    radial, IAF; Pyro's automatic ones, whose latents are functions of auxiliary draws); where the
    guide is right the target is N(0, I), whatever the posterior's shape.
    Raises: `PairError` where a guide's site is not made of Gaussian noise.
    """

    def __init__(self, scorer: Scorer, data: Data):
        self.scorer = scorer
        pair = scorer.pair
        few = data if pair.whole else tuple(a[: pair.few] for a in data)
        record = scorer(few, 2)
        sites = {
            n: fn
            for n, fn in record.guide_fn.items()
            # Points are functions of the other draws: the guide makes them.
            if n in record.latents | record.auxiliary and not is_point(fn)
        }
        bottoms = {name: _gaussian(fn) for name, fn in sites.items()}
        for name, fn in bottoms.items():
            _check_gaussian(name, fn, auxiliary=bool(record.auxiliary))
        noise = {name: fn.loc for name, fn in bottoms.items()}
        check_some(noise)
        axes = axes_of(noise, {name: fn.event_dim for name, fn in sites.items()}, pair)
        self.points = Points(noise, axes, folded=scorer.folded)
        self.num_dims = self.points.num_dims
        self.like = next(iter(noise.values()))

    def prepared(self, data: Data) -> Data:
        return data

    def draw(self, data: Data, num_chains: int) -> Tensor:
        num_data = 1 if self.scorer.pair.data_dim is None else len(data[0])
        shape = num_chains, num_data, self.num_dims
        return torch.randn(shape, dtype=self.like.dtype, device=self.like.device)

    def ends(self, u: Tensor, *data: Tensor) -> Ends:
        record, start = self.record(u, data)
        return Ends(start, start + record.log_weight.reshape(len(u), -1))

    def record(self, u: Tensor, data: Data) -> tuple[LogWeights, Tensor]:
        """The pair scored at a point, and log N(u; 0, I)."""
        noise = _Noise(self.points.split(u))
        record = self.scorer.with_guide(noise(self.scorer.pair.guide))(data, len(u))
        return record, standard_normal(u)

    def suspect(self, u: Tensor, data: Data, where: int) -> LogWeights:
        return self.record(u, data)[0]


class _Noise(Messenger):
    """Let the guide's sites be made of this noise."""

    def __init__(self, noise: dict[str, Tensor]):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.noise:
            msg["value"], msg["done"] = _pushed(msg["fn"], self.noise[name]), True


def _gaussian(fn):
    """The distribution at the bottom of a site's."""
    fn = plain_fn(fn)
    while isinstance(fn, TransformedDistribution):
        fn = plain_fn(fn.base_dist)
    return fn


def _check_gaussian(name: str, fn, *, auxiliary: bool) -> None:
    """Raises: `PairError` for a site that is not made of Gaussian noise.

    `auxiliary`: draws the guide beside the model's latents? Then it is not scored at these alone.
    """
    if isinstance(fn, Normal | MultivariateNormal | LowRankMultivariateNormal):
        return
    way_out = "start='gaussian'" if auxiliary else "space='latent'"
    if fn.support.is_discrete:
        way_out = "estimator='importance'"
    raise PairError(
        f"site '{name}' of the guide: {type(fn).__name__} is not made of one Gaussian number for "
        f"each of its own; use {way_out}"
    )


def _pushed(fn, noise: Tensor) -> Tensor:
    """A site's value, made of standard normal noise."""
    fn = plain_fn(fn)
    if isinstance(fn, TransformedDistribution):
        value = _pushed(fn.base_dist, noise)
        for transform in fn.transforms:
            value = transform(value)
        return value
    base = _gaussian(fn)
    if isinstance(base, Normal):
        return base.loc + base.scale * noise
    return base.loc + (base.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
