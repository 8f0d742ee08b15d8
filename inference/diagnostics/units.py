"""Latent dimensions one by one: what a site's density says of each number that it draws."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import (
    Independent,
    LowRankMultivariateNormal,
    MultivariateNormal,
    TransformedDistribution,
)

from inference.evidence.points import Points
from inference.record import LogWeights
from inference.supports import is_point, plain_fn


def factors(fn) -> Any:
    """The distributions of single numbers where `fn` is their product; None where it is not.

    Their `log_prob` has the shape of the site's whole value.
    """
    if is_point(fn) or isinstance(fn, dist.MaskedDistribution):
        return None
    if isinstance(fn, Independent):
        return factors(fn.base_dist)
    if len(fn.event_shape) == 0:
        return fn
    if isinstance(fn, TransformedDistribution) and all(
        t.domain.event_dim == t.codomain.event_dim == 0 for t in fn.transforms
    ):
        base = factors(fn.base_dist)
        return None if base is None else dist.TransformedDistribution(base, fn.transforms)
    return None


def marginals(fn) -> Any:
    """The marginal distributions of single numbers, independent or not; None if not known."""
    found, plain = factors(fn), plain_fn(fn)
    gaussian = isinstance(plain, MultivariateNormal | LowRankMultivariateNormal)
    if found is None and gaussian and not isinstance(fn, dist.MaskedDistribution):
        return dist.Normal(plain.loc, plain.variance.sqrt())
    return found


def follows_other_draws(fn, name: str, record: LogWeights, points: Points) -> bool:
    """Do a site's distributions of single numbers, `fn`, change with the draws of other sites?

    `record` holds two draws or more of each datum.
    """
    if len(record.latents) < 2:
        return False
    count = len(record.log_q[name])
    u = points.join(record.latents, count)
    value = points.split(u[:1].expand_as(u))[name]  # the same under all draws
    found = points.rows(fn.log_prob(value), name, count)
    return not torch.allclose(found, found[:1].expand_as(found), rtol=1e-4, atol=1e-4)


def unit_names(points: Points) -> tuple[str, ...]:
    """`z[0]`, `z[1]`, ... in the order of points; a site's name alone if it is one number."""
    found: list[str] = []
    for name, place in points.places.items():
        size = place.part.stop - place.part.start
        found += [name] if size == 1 else [f"{name}[{i}]" for i in range(size)]
    return tuple(found)


def by_datum(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Of draws' terms `[K, N, ...]`: each datum's mean and its squared error, NaN for one draw."""
    count = len(terms)
    error = terms.var(0) / count if count > 1 else torch.full_like(terms[0], torch.nan)
    return terms.mean(0), error


def error_by_draws(squares: Tensor) -> Tensor:
    """The Monte-Carlo error of a data set's mean, of each datum's squared error `[N, ...]`."""
    return squares.sum(0).sqrt() / len(squares)


def error_by_data(means: Tensor) -> Tensor:
    """sd / sqrt(N) of each datum's mean `[N, ...]`: for the population the data come from."""
    return means.std(0) / len(means) ** 0.5
