"""A guide whose parameters are free for each datum, instead of an encoder's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from inference.errors import PairError
from inference.isolation import own_randomness
from inference.pair import Pair, sample_sites

Arguments = tuple[Tensor, ...]
FITS = (
    "what can be freed are sites drawn from Normal, MultivariateNormal or "
    "LowRankMultivariateNormal, or from transforms of these that are the same for all data; for "
    "any other guide hand in local=LocalGuide(start, program)"
)


@dataclass(frozen=True)
class LocalGuide:
    """q(z | lambda_n): the family of an amortized guide, with lambda_n free for each datum.

    Args:
        start: `start(*arguments)`, a tuple of tensors `[N, ...]`: the amortized lambda_n, as
            unconstrained numbers.
        program: `program(lambda_, *arguments)`, a Pyro guide whose sites have these parameters.
    """

    start: Callable[..., Arguments]
    program: Callable[..., Any]

    def guide(self, num_arguments: int) -> Callable:
        """The program as a guide of data that are followed by their lambda_n."""

        def guide(*arguments: Tensor):
            return self.program(arguments[num_arguments:], *arguments[:num_arguments])

        return guide


def without_parameters(model: Callable, num_arguments: int) -> Callable:
    """The model, blind to the lambda_n that follow the data."""

    def blind(*arguments: Tensor):
        return model(*arguments[:num_arguments])

    return blind


def freed(pair: Pair, arguments: Arguments) -> LocalGuide:
    """The Gaussians of any guide, with location and scale free for each datum.

    lambda_n = (a, b) is a change in units of the amortized guide's own scale, 0 at the start:
    N(m + s a, s e^b); with T = chol S, N(m + T a, T B B' T'), B lower triangular with e^b on its
    diagonal.
    Raises: `PairError` for a guide that does not fit; names what fits.
    """
    guide, data_dim = pair.guide, pair.data_dim
    assert data_dim is not None  # a plate of data was asked for
    few = arguments if pair.whole else tuple(a[: pair.few] for a in arguments)
    first, second = (_sites(guide, few, seed) for seed in (0, 1))
    for name, fn in first.items():
        _check(name, fn, second[name], data_dim)

    def start(*data: Tensor) -> Arguments:
        rows = []
        for fn in _sites(guide, data, 0).values():
            axis = len(fn.batch_shape) + data_dim
            rows += [part.movedim(axis, 0) for part in _unmoved(_base(fn))]
        return tuple(rows)

    def program(parameters: Arguments, *data: Tensor):
        with _Freed(parameters, data_dim, counts):
            return guide(*data)

    counts = {name: len(_unmoved(_base(fn))) for name, fn in first.items()}
    return LocalGuide(start, program)


class _Freed(Messenger):
    """Move the Gaussians of sites by these parameters, in the order of `counts`."""

    def __init__(self, parameters: Arguments, data_dim: int, counts: Mapping[str, int]):
        super().__init__()
        rest = iter(parameters)
        self.of_site = {name: [next(rest) for _ in range(n)] for name, n in counts.items()}
        self.data_dim = data_dim

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.of_site and not msg["is_observed"]:
            axis = len(msg["fn"].batch_shape) + self.data_dim
            change = [part.movedim(0, axis) for part in self.of_site[msg["name"]]]
            msg["fn"] = _moved(msg["fn"], change)


def _sites(guide: Callable, data: Arguments, seed: int) -> dict[str, Any]:
    with own_randomness(seed), torch.no_grad():
        sites = sample_sites(poutine.trace(guide).get_trace(*data))
    return {name: site["fn"] for name, site in sites.items() if not site["is_observed"]}


def _base(fn):
    """The distribution at the bottom."""
    while isinstance(fn, Independent | TransformedDistribution):
        fn = fn.base_dist
    return fn


def _unmoved(base) -> list[Tensor]:
    """The change that changes nothing."""
    if isinstance(base, torch.distributions.Normal):
        return [torch.zeros_like(base.loc), torch.zeros_like(base.loc)]
    if isinstance(base, torch.distributions.MultivariateNormal):
        return [torch.zeros_like(base.loc), torch.zeros_like(base.scale_tril)]
    return [torch.zeros_like(part) for part in (base.loc, base.cov_diag, base.cov_factor)]


def _moved(fn, change: list[Tensor]):
    """The same distribution, its Gaussian moved."""
    if isinstance(fn, Independent):
        return dist.Independent(_moved(fn.base_dist, change), fn.reinterpreted_batch_ndims)
    if isinstance(fn, TransformedDistribution):
        return dist.TransformedDistribution(_moved(fn.base_dist, change), fn.transforms)
    a, b = change[:2]
    if isinstance(fn, torch.distributions.Normal):
        return dist.Normal(fn.loc + fn.scale * a, fn.scale * b.exp())
    if isinstance(fn, torch.distributions.MultivariateNormal):
        tril = fn.scale_tril
        turn = b.tril(-1) + torch.diag_embed(b.diagonal(dim1=-2, dim2=-1).exp())
        return dist.MultivariateNormal(
            fn.loc + (tril @ a.unsqueeze(-1)).squeeze(-1), scale_tril=tril @ turn
        )
    scale = fn.cov_diag.sqrt()
    factor = fn.cov_factor + scale.unsqueeze(-1) * change[2]
    return dist.LowRankMultivariateNormal(fn.loc + scale * a, factor, fn.cov_diag * b.exp())


def _check(name: str, fn, again, data_dim: int) -> None:
    """Refuse a site that is no Gaussian of each datum. `again`: beside other draws."""
    base = _base(fn)
    gaussian = (
        torch.distributions.Normal,
        torch.distributions.MultivariateNormal,
        torch.distributions.LowRankMultivariateNormal,
    )
    if not isinstance(base, gaussian):
        raise PairError(f"site '{name}' of the guide draws from {type(base).__name__}; {FITS}")
    parts = zip(_parameters(base), _parameters(_base(again)), strict=True)
    if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in parts):
        raise PairError(
            f"site '{name}' of the guide depends on the draws of other sites, so its parameters "
            f"are not one set a datum; {FITS}"
        )
    if not _same_for_all(fn, data_dim):
        raise PairError(
            f"site '{name}' of the guide has transforms that depend on the data; {FITS}"
        )


def _parameters(base) -> list[Tensor]:
    if isinstance(base, torch.distributions.LowRankMultivariateNormal):
        return [base.loc, base.cov_diag, base.cov_factor]
    return [base.loc, base.covariance_matrix if hasattr(base, "scale_tril") else base.scale]


def _same_for_all(fn, data_dim: int) -> bool:
    """Do the site's transforms take one and the same noise to one and the same value?"""
    transforms: list[Any] = []
    axis = len(fn.batch_shape) + data_dim
    while isinstance(fn, Independent | TransformedDistribution):
        if isinstance(fn, TransformedDistribution):
            transforms = [*fn.transforms, *transforms]
        fn = fn.base_dist
    with own_randomness(0), torch.no_grad():
        value = fn.sample().narrow(axis, 0, 1).expand_as(fn.loc)
        for transform in transforms:
            value = transform(value)
    return torch.allclose(value, value.narrow(axis, 0, 1), rtol=1e-4, atol=1e-5)
