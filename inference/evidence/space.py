"""Latents of a pair as points u of R^D, scored at both ends of a path of densities.

    f_beta(u) = f_0(u)^(1 - beta) f_1(u)^beta,   int f_0(u) du = 1,   int f_1(u) du = p(x)

Points are `[chains, data, D]`; log-densities float64 `[chains, data]`, in nats.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from inference.errors import PairError
from inference.evidence.maps import Bounded, map_to
from inference.evidence.points import Points, axes_of, free_of
from inference.evidence.proposals import prior_of
from inference.evidence.unmasked import Unmasked
from inference.isolation import own_randomness
from inference.particles import Given, Scorer
from inference.record import LogWeights
from inference.supports import in_a_line, plain_fn, plain_support

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
        """Data as the other methods take them, with what the space needs to know of each datum."""

    def draw(self, data: Data, num_chains: int) -> Tensor:
        """Independent points from f_0."""

    def ends(self, u: Tensor, *data: Tensor) -> Ends:
        """Both log-densities, differentiable in u."""

    def suspect(self, u: Tensor, data: Data, where: int) -> LogWeights:
        """The record that tells why log f_1 / f_0 of the datum there is no number at points u."""


class LatentSpace:
    """The latents themselves, through `biject_to` of their supports.

        f_0(u) = q(z(u)|x) |dz/du|,   f_1(u) = p(x, z(u)) |dz/du|

    With the model's own prior in the guide's place f_0 is p(z), and the ratio p(x|z). Bounds that
    are tensors (`Uniform(low, high)`) are asked of the model for the data at hand.
    Raises: `PairError` where a latent is discrete, has a support that no map reaches, or one that
        depends on other latents.
    """

    def __init__(self, scorer: Scorer, data: Data):
        self.scorer = scorer
        pair = scorer.pair
        few = data if pair.whole else tuple(a[: pair.few] for a in data)
        record = scorer(few, 2)
        free = free_of(record, pair)
        _check_continuous(free, record.model_fn)
        if record.auxiliary:
            _refuse_guide(f"auxiliary site '{next(iter(record.auxiliary))}' of the guide")
        self.maps = {name: map_to(name, record.model_fn[name]) for name in free}
        self.event_dims = {name: record.model_fn[name].event_dim for name in free}
        axes = axes_of(free, self.event_dims, pair)
        examples = dict(free)
        for name, transform in self.maps.items():
            # What is bounded has as many free numbers as it has numbers.
            if transform is not None and not isinstance(transform, Bounded):
                examples[name] = transform.inv(free[name])
        self.points = Points(examples, axes, folded=scorer.folded)
        self.num_dims = self.points.num_dims
        bounds = self._bounds(few)
        self.num_bounds = len(bounds)
        try:
            self.record(self.joined(record.latents, 2, bounds), (*few, *bounds))
        except (NotImplementedError, KeyError) as error:  # a flow without an inverse
            _refuse_guide(f"the guide has no inverse ({type(error).__name__})")

    def prepared(self, data: Data) -> Data:
        return *data, *self._bounds(data)

    def draw(self, data: Data, num_chains: int) -> Tensor:
        rows, bounds = self._apart(data)
        return self.joined(self.scorer(rows, num_chains).latents, num_chains, bounds)

    def joined(self, latents: Mapping[str, Tensor], num_chains: int, bounds: Data) -> Tensor:
        """Latents of `num_chains` draws as a point; `bounds` as `prepared` appends them."""
        parts, given = [], self._by_site(bounds)
        for name, transform in self.maps.items():
            value = latents[name]
            if isinstance(transform, Bounded):
                rows = self.points.rows(value, name, num_chains)
                parts.append(transform.inverse(name, rows, given[name]))
            else:
                free = value if transform is None else transform.inv(value)
                parts.append(self.points.rows(free, name, num_chains))
        return torch.cat(parts, -1)

    def point_of(self, latents: Mapping[str, Tensor], data: Data) -> Tensor:
        """`[1, data, D]` of latents of one draw each, without a dimension of chains."""
        values = {}
        for name in self.maps:
            value = latents[name]
            depth = 0 if self.scorer.folded else self.scorer.pair.max_plate_nesting + 1
            missing = max(0, depth - (value.dim() - self.event_dims[name]))
            values[name] = value.reshape((1,) * missing + tuple(value.shape))
        return self.joined(values, 1, self._bounds(data))

    def ends(self, u: Tensor, *data: Tensor) -> Ends:
        record, volume = self.record(u, data)
        log_q, log_p = (_total(part, len(u)) for part in (record.log_q, record.log_p))
        return Ends(log_q + volume, log_p + volume)

    def record(self, u: Tensor, data: Data) -> tuple[LogWeights, Tensor]:
        """The pair scored at a point, and log |dz/du|."""
        rows, bounds = self._apart(data)
        given = self._by_site(bounds)
        values: dict[str, Tensor] = {}
        volume = u.new_zeros(u.shape[:2], dtype=torch.float64)
        for name, free in self.points.split(u).items():
            transform = self.maps[name]
            if isinstance(transform, Bounded):
                numbers = self.points.rows(free, name, len(u))
                between = transform.map_at(given[name])
                held = between(numbers)
                values[name] = self.points.value(held, name)
                volume = volume + between.log_abs_det_jacobian(numbers, held).double().sum(-1)
                continue
            values[name] = free if transform is None else transform(free)
            if transform is not None:
                change = transform.log_abs_det_jacobian(free, values[name]).double()
                volume = volume + self.points.rows(change, name, len(u)).sum(-1)
        scorer = self.scorer.with_guide(Given(values)(self.scorer.pair.guide))
        return scorer(rows, len(u)), volume

    def suspect(self, u: Tensor, data: Data, where: int) -> LogWeights:
        return self.record(u, data)[0]

    def _bounds(self, data: Data) -> Data:
        """Of every bounded site, one after the other, each `[data, numbers]`."""
        bounded = {n: each for n, each in self.maps.items() if isinstance(each, Bounded)}
        if not bounded:
            return ()
        with own_randomness():
            record = self.scorer(data, 2)
        found = []
        for name, each in bounded.items():
            for bound in each.bounds(record.model_fn[name], record.latents[name]):
                one, other = self.points.rows(bound, name, 2)
                if not torch.allclose(one, other, equal_nan=True):
                    support = in_a_line(plain_support(record.model_fn[name]))
                    raise PairError(
                        f"site '{name}' has a support that depends on other latents ({support}); "
                        "use estimator='importance'"
                    )
                # With memory of its own, as recorded code expects of what it is given.
                found.append(one.contiguous())
        return tuple(found)

    def _apart(self, data: Data) -> tuple[Data, Data]:
        """The data, and the bounds that `prepared` appended."""
        return data[: len(data) - self.num_bounds], data[len(data) - self.num_bounds :]

    def _by_site(self, bounds: Data) -> dict[str, Data]:
        left = iter(bounds)
        return {
            name: tuple(itertools.islice(left, len(each.sides)))
            for name, each in self.maps.items()
            if isinstance(each, Bounded)
        }


class GaussianStart:
    """The latents, from a Gaussian with the moments of the guide's draws.

        f_0(u) = N(u; m_n, diag s_n^2),   m_n, s_n: of draws from q(u|x_n), s_n wider by `width`

    The guide is drawn from and never scored elsewhere, so one whose density is known at its own
    draws only will do. f_0 has a density for latents that masks take out of both programs, so f_1
    has the model's: they integrate to one.
    """

    def __init__(self, scorer: Scorer, data: Data, *, num_draws: int = 100, width: float = 1.2):
        self.guide = scorer
        pair = scorer.pair
        model = Unmasked()(pair.model)
        # In the guide's place stands the prior, which can be scored anywhere; f_0 is neither.
        inner = scorer.with_guide(prior_of(model, summed=pair.enumerated))
        inner.pair = replace(inner.pair, model=model)
        self.inner = LatentSpace(inner, data)
        self.num_draws, self.width, self.num_dims = num_draws, width, self.inner.num_dims

    def prepared(self, data: Data) -> Data:
        known = self.inner.prepared(data)
        drawn = self.guide(data, self.num_draws).latents
        u = self.inner.joined(drawn, self.num_draws, known[len(data) :])
        return *known, u.mean(0), self.width * u.std(0)

    def draw(self, data: Data, num_chains: int) -> Tensor:
        *_, loc, scale = data
        return loc + scale * torch.randn(num_chains, *loc.shape, dtype=loc.dtype, device=loc.device)

    def ends(self, u: Tensor, *data: Tensor) -> Ends:
        *rest, loc, scale = data
        record, volume = self.inner.record(u, tuple(rest))
        start = standard_normal((u - loc) / scale) - scale.double().log().sum(-1)
        return Ends(start, _total(record.log_p, len(u)) + volume)

    def suspect(self, u: Tensor, data: Data, where: int) -> LogWeights:
        *rest, loc, scale = data
        if bool((loc[where].isfinite() & scale[where].isfinite()).all()):
            record, _ = self.inner.record(u, tuple(rest))
            return replace(record, log_q={})  # that of the prior, which is part of log p
        return self.guide(tuple(rest[: len(rest) - self.inner.num_bounds]), self.num_draws)


def _total(scores: dict[str, Tensor], num_chains: int) -> Tensor:
    return sum(scores.values()).reshape(num_chains, -1)  # type: ignore[union-attr]


def standard_normal(u: Tensor) -> Tensor:
    return -0.5 * (u.double().square() + LOG_2PI).sum(-1)


def _refuse_guide(problem: str) -> NoReturn:
    """Raises: `PairError` for a guide that cannot be scored where chains go."""
    raise PairError(
        f"{problem}: its density is known at its own draws only, and chains in the latents leave "
        "them; use start='gaussian' (for a sandwich by=AIS(start='gaussian')), or "
        "estimator='importance'"
    ) from None


def check_some(latents: Mapping[str, Tensor]) -> None:
    """Raises: `PairError` where there is nothing to move in."""
    if not latents:
        raise PairError(
            "the guide draws no latents, so there is nothing for chains to move in or for a grid "
            "to cover; use estimator='importance', whose weights are then all equal and exact"
        )


def _check_continuous(latents: Mapping[str, Tensor], model_fn: Mapping[str, Any]) -> None:
    """Raises: `PairError` where there are none, or no gradient leads, naming what fits."""
    check_some(latents)
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
