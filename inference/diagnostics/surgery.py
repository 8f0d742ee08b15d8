"""ELBO surgery: what the KL term of the bound is made of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.diagnostics.aggregate import Aggregate, joint_log_q
from inference.diagnostics.units import (
    by_datum,
    error_by_data,
    error_by_draws,
    factors,
    follows_other_draws,
    unit_names,
)
from inference.errors import NonFiniteError, PairError
from inference.pair import Data
from inference.particles import Given
from inference.progress import Progress
from inference.record import LogWeights
from inference.requests import whole_number
from inference.tiles import Tiles, tiled

MOST_APART = 0.5  # nats between the two bounds on the population's information

MEANING = {
    "kl": "KL(q(z|x) || p(z))",
    "information": "I(x; z)",
    "information_upper": "I(x; z), own component left out",
    "aggregate_kl": "KL(q(z) || p(z))",
    "total_correlation": "total correlation",
    "dimension_kl": "dimension-wise KL",
}


@dataclass(frozen=True)
class SurgeryTerm:
    """One term in nats: the mean over the data, and its errors.

    `mc_std_error`: what more draws would remove (NaN for one draw of each datum). `std_error`: for
    the population that the data come from, sd of the data's own terms / sqrt(N), the Monte-Carlo
    part within. q(z) itself changes with the data; to first order that adds nothing, for the
    derivative of each term by a datum's share of q(z) is that datum's own term, less a constant.
    """

    mean: float
    mc_std_error: float
    std_error: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} +- {self.mc_std_error:.2g}"


@dataclass(frozen=True)
class Surgery:
    """Mean KL(q(z|x) || p(z)), taken apart; nats per datum. See `surgery`.

    Args:
        terms: by name, see `MEANING`; `total_correlation` is missing where the guide's marginals
            are not known, `dimension_kl` also where the prior does not factorize.
        per_datum: the same names, `[N]` float64: a datum's own terms, whose means are the terms.
        unit_kl: `[D]`, KL(q(z_i) || p(z_i)); None where `dimension_kl` is missing.
        units: names of the D latent dimensions.
        notes: what is missing, and why.
    """

    terms: dict[str, SurgeryTerm]
    per_datum: dict[str, Tensor]
    unit_kl: Tensor | None
    unit_kl_std_error: Tensor | None
    units: tuple[str, ...]
    num_samples: int
    seed: int
    seconds: float
    notes: tuple[str, ...] = ()

    @property
    def num_data(self) -> int:
        return len(self.per_datum["kl"])

    @property
    def cap(self) -> float:
        """log N: the most that the information of N data can be."""
        return math.log(self.num_data)

    @property
    def population_information(self) -> tuple[float, float]:
        """Bounds, in expectation, on the population's I(x; z), which never exceeds the mean KL."""
        upper = min(self.terms["information_upper"].mean, self.terms["kl"].mean)
        return self.terms["information"].mean, max(upper, self.terms["information"].mean)

    @property
    def too_few_data(self) -> bool:
        """Are the bounds more than 0.5 nats apart, so that the terms tell N beside the guide?"""
        low, high = self.population_information
        return high - low > MOST_APART

    def arrays(self) -> dict[str, Tensor]:
        """The per-datum tensors by name, and `unit_kl` `[D]`."""
        found = dict(self.per_datum)
        if self.unit_kl is not None and self.unit_kl_std_error is not None:
            found |= {"unit_kl": self.unit_kl, "unit_kl_std_error": self.unit_kl_std_error}
        return found

    def summary(self) -> dict[str, Any]:
        """The scalars by name, for JSON."""
        found: dict[str, Any] = {}
        for name, term in self.terms.items():
            found[name] = term.mean
            found[f"{name}_mc_std_error"] = term.mc_std_error
            found[f"{name}_std_error"] = term.std_error
        return {
            **found,
            "log_num_data": self.cap,
            "population_information": list(self.population_information),
            "too_few_data": self.too_few_data,
            "num_data": self.num_data,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        """One honest paragraph."""
        t = self.terms
        said = [
            f"Mean {MEANING['kl']} = {t['kl']} nats over {self.num_data} data: information "
            f"{MEANING['information']} {t['information']}, and {MEANING['aggregate_kl']} "
            f"{t['aggregate_kl']} (Monte-Carlo standard errors, {self.num_samples} draws a datum)."
        ]
        if "dimension_kl" in t:
            said.append(
                f"The latter is total correlation {t['total_correlation']} and dimension-wise KL "
                f"{t['dimension_kl']}."
            )
        elif "total_correlation" in t:
            said.append(f"The total correlation of q(z) is {t['total_correlation']}.")
        low, high = self.population_information
        whole = t["kl"].mean
        said.append(
            f"q(z) is the mixture of these data's guides, so the information is at most log N = "
            f"{self.cap:.2f}. For the population that the data come from, I(x; z) lies between "
            f"{low:.3f} and {high:.3f} in expectation (each datum's own component in q(z), or left "
            f"out), and {MEANING['aggregate_kl']} between {whole - high:.3f} and "
            f"{whole - low:.3f}; standard errors for the population, to first order: "
            f"{t['kl'].std_error:.2g} of the mean KL, {t['information'].std_error:.2g} of the "
            f"information."
        )
        if self.too_few_data:
            said.append(
                "These are too few data for that: the terms tell their number as much as the guide."
            )
        return " ".join([*said, *self.notes])


def surgery(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    num_samples: int = 4,
    seed: int = 0,
    plate: str = "data",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Surgery:
    """Take the mean KL of a bound apart, with q(z) = 1/N sum_n q(z|x_n) exact for these N data.

        1/N sum_n KL(q(z|x_n) || p(z)) = I(x; z) + KL(q(z) || p(z))
        KL(q(z) || p(z)) = KL(q(z) || prod_i q(z_i)) + sum_i KL(q(z_i) || p(z_i))

    with I(x; z) = 1/N sum_n KL(q(z|x_n) || q(z)) <= log N; the last line, total correlation and
    dimension-wise KL, where the prior factorizes and the guide's marginals are known (products of
    single numbers, Gaussians). All terms are means over the same draws z ~ q(z|x_n), so both lines
    hold exactly. Under the data's population the information is biased down, and KL(q(z) || p(z))
    up by as much; `information_upper`, 1/N sum_n E_q[log q(z|x_n) - log 1/(N-1) sum_{m != n}
    q(z|x_m)], is biased up (arXiv:1905.06922).

    Args:
        model, guide: any Pyro pair whose latents stand in the plate. The guide's density must be
            known anywhere (planar flows: refused); that of an IAF is found one dimension at a
            time, which is slow.
        data: tensor `[N, ...]` or a tuple of such. The cost is N^2 `num_samples` guide densities.
        num_samples: draws of each datum.
        seed, plate, device: as in `log_marginal`.
    Returns: a `Surgery`, in nats, float64 on the CPU.
    Raises: `PairError` (also where p(z) differs from datum to datum), `RequestError` for one
        datum, `NonFiniteError`.
    References: Hoffman and Johnson 2016, "ELBO surgery"; Makhzani et al., arXiv:1511.05644; Chen
        et al., arXiv:1802.04942, whose estimator is of minibatches, and biased, where this is not.
    """
    whole_number("num_samples", num_samples)
    started = time.perf_counter()
    with tiled(
        model, guide, data, num_samples, seed=seed, plate=plate, device=device, whole_rows=True
    ) as tiles:
        aggregate = Aggregate(tiles)
        _check_one_prior(aggregate)
        split, known, notes = _what_is_known(aggregate)
        total = aggregate.num_blocks(num_samples * tiles.num_data)
        with Progress("ELBO surgery", total, progress, unit="blocks") as bar:
            drawn = _draw(tiles, aggregate, split, known)
            others = aggregate.others(drawn.u, units=tiles.pair.latents if known else (), bar=bar)
        log_n, log_rest = math.log(tiles.num_data), math.log(tiles.num_data - 1)
        log_aggregate = torch.logaddexp(others.joint, drawn.log_q) - log_n
        found = {
            "kl": drawn.log_q - drawn.log_p,
            "information": drawn.log_q - log_aggregate,
            "information_upper": drawn.log_q - (others.joint - log_rest),
            "aggregate_kl": log_aggregate - drawn.log_p,
        }
        by_unit = None
        if others.units is not None:
            log_units = torch.logaddexp(others.units, drawn.unit_log_q) - log_n  # [K, N, D]
            found["total_correlation"] = log_aggregate - log_units.sum(-1)
            if split:
                by_unit = log_units - drawn.unit_log_p
                found["dimension_kl"] = by_unit.sum(-1)
        names = unit_names(aggregate.points)
    terms, per_datum = {}, {}
    for name, each in found.items():
        means, squares = by_datum(each.cpu())
        per_datum[name] = means
        errors = error_by_draws(squares), error_by_data(means)
        terms[name] = SurgeryTerm(float(means.mean()), float(errors[0]), float(errors[1]))
    unit_means = None if by_unit is None else by_unit.mean(0).cpu()
    return Surgery(
        terms=terms,
        per_datum=per_datum,
        unit_kl=None if unit_means is None else unit_means.mean(0),
        unit_kl_std_error=None if unit_means is None else error_by_data(unit_means),
        units=names,
        num_samples=num_samples,
        seed=seed,
        seconds=time.perf_counter() - started,
        notes=notes,
    )


@dataclass(frozen=True)
class _Drawn:
    """Draws `[K, N, D]` and what guide and prior say of them; by unit as far as it is known."""

    u: Tensor
    log_q: Tensor
    log_p: Tensor
    unit_log_q: Tensor
    unit_log_p: Tensor


def _draw(tiles: Tiles, aggregate: Aggregate, split: bool, known: bool) -> _Drawn:
    points, sites, parts = aggregate.points, tiles.pair.latents, []
    for start in tiles.rows():
        tile = tiles.tile(start)
        record = tiles.score(tile)
        u = points.join(record.latents, tile.count)
        shape = u.shape[:2]
        log_q = joint_log_q(record, tiles.pair).reshape(shape)
        log_p: Any = sum(record.log_p[name] for name in sites)
        if not bool((log_q.isfinite() & (log_p < math.inf).reshape(shape)).all()):
            raise NonFiniteError(
                f"log q(z|x) or log p(z) is NaN or infinite for a datum in rows {tile.start} to "
                f"{tile.stop - 1}; check the parameters of guide and prior"
            )
        none = log_q.new_zeros(())
        parts.append(
            (
                u,
                log_q,
                log_p.reshape(shape),
                aggregate.unit_log_q(record, u, sites).double() if known else none,
                _unit_log_p(record, aggregate, u).double() if split else none,
            )
        )
    columns = list(zip(*parts, strict=True))
    return _Drawn(*(torch.cat(c, 1) if c[0].dim() else c[0] for c in columns))


def _unit_log_p(record: LogWeights, aggregate: Aggregate, u: Tensor) -> Tensor:
    points = aggregate.points
    return torch.cat(
        [
            points.rows(factors(record.model_fn[name]).log_prob(value), name, len(u))
            for name, value in points.split(u).items()
        ],
        -1,
    )


def _what_is_known(aggregate: Aggregate) -> tuple[bool, bool, tuple[str, ...]]:
    """Does the prior factorize, are the guide's marginals known, and which sites are to blame?"""
    record, sites = aggregate.record, aggregate.pair.latents
    joined = [name for name in sites if not _factorizes(aggregate, name)]
    unknown = [name for name in sites if not aggregate.marginals(name)]
    notes = []
    if unknown:
        kind = type(record.guide_fn[unknown[0]]).__name__
        notes.append(
            f"No total correlation and no dimension-wise KL: the marginals of q(z|x) at site "
            f"'{unknown[0]}' ({kind}) are not known."
        )
    elif joined:
        kind = type(record.model_fn[joined[0]]).__name__
        notes.append(
            f"No dimension-wise KL: the prior of site '{joined[0]}' ({kind}) is no product of "
            "single numbers, so KL(q(z) || p(z)) does not split."
        )
    return not joined and not unknown, not unknown, tuple(notes)


def _factorizes(aggregate: Aggregate, name: str) -> bool:
    fn = factors(aggregate.record.model_fn[name])
    return fn is not None and not follows_other_draws(fn, name, aggregate.record, aggregate.points)


def _check_one_prior(aggregate: Aggregate) -> None:
    """Raises: `PairError` if draws have another log p(z) beside another datum."""
    record, pair, points = aggregate.record, aggregate.pair, aggregate.points
    u = points.join(record.latents, 2)
    given = Given(points.split(u.roll(1, 1)))(pair.guide)
    moved = aggregate.tiles.scorer.with_guide(given)(aggregate.few, 2)
    for name in pair.latents:
        before, after = record.log_p[name].roll(1, 1), moved.log_p[name]
        if not torch.allclose(before, after, rtol=1e-3, atol=1e-3):
            raise PairError(
                f"site '{name}': its prior differs from datum to datum (it sees y, a covariate, or "
                "part of x), so KL(q(z|x) || p(z|.)) has no aggregate posterior to be split by; "
                "use unit_kl, which needs none"
            )
