"""Latents of a pair as points u of R^D, scored at both ends of a path of densities.

    f_beta(u) = f_0(u)^(1 - beta) f_1(u)^beta,   int f_0(u) du = 1,   int f_1(u) du = p(x)

Points are `[chains, data, D]`; log-densities float64 `[chains, data]`, in nats.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch
from pyro.distributions.constraints import sphere
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import (
    MultivariateNormal,
    Normal,
    TransformedDistribution,
    biject_to,
    constraints,
)

from inference.errors import PairError
from inference.evidence.points import Points, axes_of, free_of
from inference.evidence.proposals import prior_of
from inference.evidence.stereographic import Stereographic
from inference.particles import Given, Scorer
from inference.record import LogWeights
from inference.supports import in_a_line, is_angle, plain_fn, plain_support

Data = tuple[Tensor, ...]
LOG_2PI = math.log(2 * math.pi)


class Ends(NamedTuple):
    """log f_0 and log f_1 at some points."""

    start: Tensor
    target: Tensor


class Space(Protocol):
    """Where chains move, and from what to what."""

    num_dims: int

    def prepared(self, data: Data) -> Data:
        """Data as the other methods take them, with what f_0 needs of each datum."""

    def draw(self, data: Data, num_chains: int) -> Tensor:
        """Independent points from f_0."""

    def ends(self, u: Tensor, *data: Tensor) -> Ends:
        """Both log-densities, differentiable in u."""


class LatentSpace:
    """The latents themselves, through `biject_to` of their supports.

        f_0(u) = q(z(u)|x) |dz/du|,   f_1(u) = p(x, z(u)) |dz/du|

    With the model's own prior in the guide's place f_0 is p(z), and the ratio p(x|z).
    Raises: `PairError` where a latent is discrete, has a support that no map reaches, or one that
        depends on other latents.
    """

    def __init__(self, scorer: Scorer, data: Data):
        self.scorer = scorer
        pair = scorer.pair
        few = data if pair.whole else tuple(a[: pair.few] for a in data)
        record, again = scorer(few, 2), scorer(few, 2)
        if record.auxiliary:
            raise PairError(
                f"auxiliary site '{next(iter(record.auxiliary))}' of the guide: chains move in the "
                "model's latents alone; use estimator='importance'"
            )
        free = free_of(record, pair)
        _check_continuous(free, record.model_fn)
        self.maps = {
            name: _map_to(name, record.model_fn[name], again.model_fn[name]) for name in free
        }
        self.event_dims = {name: record.model_fn[name].event_dim for name in free}
        axes = axes_of(free, self.event_dims, pair)
        self.points = Points(self._free(free), axes, folded=scorer.folded)
        self.num_dims = self.points.num_dims

    def prepared(self, data: Data) -> Data:
        return data

    def draw(self, data: Data, num_chains: int) -> Tensor:
        return self.joined(self.scorer(data, num_chains).latents, num_chains)

    def joined(self, latents: Mapping[str, Tensor], num_chains: int) -> Tensor:
        """Latents of `num_chains` draws as a point."""
        return self.points.join(self._free(latents), num_chains)

    def point_of(self, latents: Mapping[str, Tensor]) -> Tensor:
        """`[1, data, D]` of latents of one draw each, without a dimension of chains."""
        values = {}
        for name in self.maps:
            value = latents[name]
            depth = 0 if self.scorer.folded else self.scorer.pair.max_plate_nesting + 1
            missing = max(0, depth - (value.dim() - self.event_dims[name]))
            values[name] = value.reshape((1,) * missing + tuple(value.shape))
        return self.joined(values, 1)

    def ends(self, u: Tensor, *data: Tensor) -> Ends:
        record, volume = self.record(u, data)
        log_q, log_p = (_total(part, len(u)) for part in (record.log_q, record.log_p))
        return Ends(log_q + volume, log_p + volume)

    def record(self, u: Tensor, data: Data) -> tuple[LogWeights, Tensor]:
        """The pair scored at a point, and log |dz/du|."""
        values: dict[str, Tensor] = {}
        volume = u.new_zeros(u.shape[:2], dtype=torch.float64)
        for name, free in self.points.split(u).items():
            transform = self.maps[name]
            values[name] = free if transform is None else transform(free)
            if transform is not None:
                change = transform.log_abs_det_jacobian(free, values[name]).double()
                volume = volume + self.points.rows(change, name, len(u)).sum(-1)
        scorer = self.scorer.with_guide(Given(values)(self.scorer.pair.guide))
        return scorer(data, len(u)), volume

    def _free(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The latents without their constraints."""
        return {
            name: latents[name] if transform is None else transform.inv(latents[name])
            for name, transform in self.maps.items()
        }


class GaussianStart:
    """The latents, from a Gaussian with the moments of the guide's draws.

        f_0(u) = N(u; m_n, diag s_n^2),   m_n, s_n: of draws from q(u|x_n), s_n wider by `width`

    The guide is drawn from and never scored elsewhere, so one whose density is known at its own
    draws only will do.
    """

    def __init__(self, scorer: Scorer, data: Data, *, num_draws: int = 100, width: float = 1.2):
        self.guide = scorer
        # In the guide's place stands the prior, which can be scored anywhere; f_0 is neither.
        pair = scorer.pair
        self.inner = LatentSpace(
            scorer.with_guide(prior_of(pair.model, summed=pair.enumerated)), data
        )
        self.num_draws, self.width, self.num_dims = num_draws, width, self.inner.num_dims

    def prepared(self, data: Data) -> Data:
        u = self.inner.joined(self.guide(data, self.num_draws).latents, self.num_draws)
        return *data, u.mean(0), self.width * u.std(0)

    def draw(self, data: Data, num_chains: int) -> Tensor:
        *_, loc, scale = data
        return loc + scale * torch.randn(num_chains, *loc.shape, dtype=loc.dtype, device=loc.device)

    def ends(self, u: Tensor, *data: Tensor) -> Ends:
        *rest, loc, scale = data
        record, volume = self.inner.record(u, tuple(rest))
        start = _standard_normal((u - loc) / scale) - scale.double().log().sum(-1)
        return Ends(start, _total(record.log_p, len(u)) + volume)


class NoiseSpace:
    """The guide's own noise e: z = g(e; x) with e ~ N(0, I).

        f_0(e) = N(e; 0, I),   f_1(e) = N(e; 0, I) p(x, g(e; x)) / q(g(e; x)|x)

    Only the forward map is needed, so it serves guides that cannot be scored anywhere (planar,
    radial, IAF); where the guide is right the target is N(0, I), whatever the posterior's shape.
    Raises: `PairError` where a guide's site is not made of Gaussian noise.
    """

    def __init__(self, scorer: Scorer, data: Data):
        self.scorer = scorer
        pair = scorer.pair
        few = data if pair.whole else tuple(a[: pair.few] for a in data)
        record = scorer(few, 2)
        sites = {
            n: fn for n, fn in record.guide_fn.items() if n in record.latents | record.auxiliary
        }
        noise = {name: _gaussian(name, fn).loc for name, fn in sites.items()}
        _check_some(noise)
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
        return record, _standard_normal(u)


class _Noise(Messenger):
    """Let the guide's sites be made of this noise."""

    def __init__(self, noise: dict[str, Tensor]):
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.noise:
            msg["value"], msg["done"] = _pushed(name, msg["fn"], self.noise[name]), True


def _gaussian(name: str, fn):
    """The Gaussian at the bottom of a site's distribution."""
    fn = plain_fn(fn)
    while isinstance(fn, TransformedDistribution):
        fn = plain_fn(fn.base_dist)
    if isinstance(fn, Normal | MultivariateNormal):
        return fn
    way_out = "estimator='importance'" if fn.support.is_discrete else "space='latent'"
    raise PairError(
        f"site '{name}' of the guide: {type(fn).__name__} is not made of one Gaussian number for "
        f"each of its own; use {way_out}"
    )


def _pushed(name: str, fn, noise: Tensor) -> Tensor:
    """A site's value, made of standard normal noise."""
    fn = plain_fn(fn)
    if isinstance(fn, TransformedDistribution):
        value = _pushed(name, fn.base_dist, noise)
        for transform in fn.transforms:
            value = transform(value)
        return value
    base = _gaussian(name, fn)
    if isinstance(base, MultivariateNormal):
        return base.loc + (base.scale_tril @ noise.unsqueeze(-1)).squeeze(-1)
    return base.loc + base.scale * noise


def _total(scores: dict[str, Tensor], num_chains: int) -> Tensor:
    return sum(scores.values()).reshape(num_chains, -1)  # type: ignore[union-attr]


def _standard_normal(u: Tensor) -> Tensor:
    return -0.5 * (u.double().square() + LOG_2PI).sum(-1)


def _check_some(latents: Mapping[str, Tensor]) -> None:
    """Raises: `PairError` where there is nothing to move in."""
    if not latents:
        raise PairError(
            "the guide draws no latents, so there is nothing for chains to move in or for a grid "
            "to cover; use estimator='importance', whose weights are then all equal and exact"
        )


def _check_continuous(latents: Mapping[str, Tensor], model_fn: Mapping[str, Any]) -> None:
    """Raises: `PairError` where there are none, or no gradient leads, naming what fits."""
    _check_some(latents)
    discrete = [name for name in latents if model_fn[name].support.is_discrete]
    if not discrete:
        return
    finite = all(getattr(plain_fn(model_fn[n]), "has_enumerate_support", False) for n in discrete)
    way_out = "estimator='importance'"
    if finite and len(discrete) == len(latents):
        way_out = "estimator='enumerate', which is exact, or 'importance'"
    elif finite:
        way_out += (
            ", or leave it out of the guide (and chains with the guide's start), and mark it in "
            "the model (infer={'enumerate': 'parallel'}), which sums over it"
        )
    support = in_a_line(plain_support(model_fn[discrete[0]]))
    raise PairError(
        f"site '{discrete[0]}' is discrete ({support}), where no gradient leads; use {way_out}"
    )


def _map_to(name: str, fn, again):
    """The map from R^d to a site's support; None where that is R^d itself."""
    support = plain_support(fn)
    if is_angle(fn):
        return biject_to(constraints.interval(-math.pi, math.pi))
    if support is constraints.real:
        return None
    if support is sphere:
        return Stereographic()
    for bound in ("lower_bound", "upper_bound"):
        ends = [getattr(plain_support(each), bound, None) for each in (fn, again)]
        if isinstance(ends[0], Tensor) and not torch.equal(ends[0], ends[1]):  # type: ignore[arg-type]
            raise PairError(
                f"site '{name}' has a support that depends on other latents "
                f"({in_a_line(support)}); use estimator='importance'"
            )
    try:
        return biject_to(fn.support)
    except NotImplementedError:
        raise PairError(
            f"site '{name}': no map leads from R^d to its support {in_a_line(support)}; use "
            "estimator='importance'"
        ) from None
