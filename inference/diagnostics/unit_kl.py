"""KL per latent dimension: how many nats each unit costs, and which have collapsed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from inference.diagnostics.aggregate import Aggregate, check_latents
from inference.diagnostics.units import (
    by_datum,
    error_by_data,
    error_by_draws,
    factors,
    marginals,
    unit_names,
)
from inference.errors import NonFiniteError, PairError, RequestError
from inference.evidence.points import Points
from inference.evidence.proposals import points_of
from inference.kl import analytic_kl
from inference.pair import Data
from inference.progress import Progress
from inference.record import LogWeights
from inference.requests import whole_number
from inference.tiles import Tile, Tiles, tiled

# The KL of a unit whose activity (see active_units) is 0.01, where Gaussian and calibrated:
# -1/2 log(1 - 0.01).
COLLAPSED = 0.005

# What is given for the units of a site.
KINDS = {
    "analytic": "KL(q(z_i|x) || p(z_i)) in closed form",
    "monte_carlo": "KL(q(z_i|x) || p(z_i)) by draws",
    "marginal": "KL of the marginals q(z_i|x) of a guide that does not factorize, which leaves out "
    "the dependence between units",
    "out_of_order": "E_q[log q(z_i|.) - log p(z_i|.)], no KL by itself, for the guide draws what "
    "p(z_i|.) depends on later",
    "information": "KL(q(z_i|x) || q(z_i)) against the aggregate posterior, for the prior does not "
    "factorize; it leaves out what units share and what the prior costs",
    "unknown": "nothing, for the marginals q(z_i|x) are not known; use active_units",
}


@dataclass(frozen=True)
class UnitKL:
    """Per latent dimension, nats per datum: `kl` `[D]`, the mean over data. See `unit_kl`.

    Args:
        kl: `[D]` float64; NaN where the kind is `unknown`.
        mc_std_error: `[D]`, what more draws would remove; 0 in closed form, NaN for one draw.
        std_error: `[D]`, sd over data / sqrt(N), for the population; contains the former.
        per_datum: `[N, D]`.
        units: names of the D latent dimensions.
        kinds: by site, what its units' numbers are, see `KINDS`.
        site_kl, site_std_error: by site, mean E_q[log q - log p] of all its numbers together.
        threshold: below it a unit counts as collapsed.
    """

    kl: Tensor
    mc_std_error: Tensor
    std_error: Tensor
    per_datum: Tensor
    units: tuple[str, ...]
    kinds: dict[str, str]
    site_kl: dict[str, float]
    site_std_error: dict[str, float]
    num_samples: int
    seed: int
    seconds: float
    threshold: float = COLLAPSED

    @property
    def num_units(self) -> int:
        return len(self.kl)

    @property
    def num_data(self) -> int:
        return len(self.per_datum)

    @property
    def total(self) -> float:
        """The mean KL of all latents together, by sites."""
        return sum(self.site_kl.values())

    @property
    def collapsed(self) -> Tensor:
        """`[D]`, which units lie below the threshold; an unknown one does not."""
        return self.kl < self.threshold

    @property
    def num_known(self) -> int:
        return int((~self.kl.isnan()).sum())

    @property
    def num_collapsed(self) -> int:
        return int(self.collapsed.sum())

    @property
    def num_unsure(self) -> int:
        """Units whose draws do not tell on which side of the threshold they lie."""
        return int(((self.kl - self.threshold).abs() < 2 * self.mc_std_error).sum())

    @property
    def all_collapsed(self) -> bool:
        """Do the latents say nothing of x? Where no unit is known, by the whole sites' KL."""
        if self.num_known:
            return self.num_collapsed == self.num_known == self.num_units
        return self.total < self.threshold

    def arrays(self) -> dict[str, Tensor]:
        """The per-unit tensors `[D]`, and `per_datum` `[N, D]`."""
        return {
            "kl": self.kl,
            "mc_std_error": self.mc_std_error,
            "std_error": self.std_error,
            "per_datum": self.per_datum,
        }

    def summary(self) -> dict[str, Any]:
        """The scalars by name, for JSON."""
        return {
            "total_kl": self.total,
            "site_kl": self.site_kl,
            "site_kl_std_error": self.site_std_error,
            "kinds": self.kinds,
            "num_units": self.num_units,
            "num_collapsed": self.num_collapsed,
            "num_unsure": self.num_unsure,
            "num_unknown": self.num_units - self.num_known,
            "all_collapsed": self.all_collapsed,
            "threshold": self.threshold,
            "num_data": self.num_data,
            "num_samples": self.num_samples,
            "seed": self.seed,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        """One honest paragraph."""
        sites = ", ".join(
            f"{value:.3f} at '{name}' (standard error {self.site_std_error[name]:.2g})"
            for name, value in self.site_kl.items()
        )
        said = [f"Mean KL(q(z|x) || p(z)) over {self.num_data} data: {sites} nats."]
        by_kind = {kind: [n for n, k in self.kinds.items() if k == kind] for kind in KINDS}
        for kind, names in by_kind.items():
            if names:
                where = ", ".join(f"'{name}'" for name in names)
                said.append(f"By unit, at {where}: {KINDS[kind]}.")
        if self.num_known:
            most = int(self.kl.nan_to_num(-math.inf).argmax())
            said.append(
                f"{self.num_collapsed} of {self.num_known} units lie below {self.threshold:g} nats "
                f"and count as collapsed; the largest is {self.units[most]} with "
                f"{float(self.kl[most]):.3f} +- {float(self.std_error[most]):.2g}."
            )
        if self.num_unsure:
            said.append(
                f"{self.num_unsure} lie within two Monte-Carlo errors of that: take more samples."
            )
        if self.all_collapsed:
            said.append(
                "Posterior collapse: the guide says nothing of x, and the model runs on its "
                "likelihood alone; try KL warm-up, free bits, or a weaker decoder."
            )
        return " ".join(said)


def unit_kl(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    num_samples: int = 10,
    seed: int = 0,
    plate: str = "data",
    device: str | torch.device | None = None,
    progress: bool = True,
) -> UnitKL:
    """How many nats each latent dimension takes of the bound: 1/N sum_n KL(q(z_i|x_n) || p(z_i)).

    In closed form where one is known, else by draws; given a site's predecessors where it has any.
    The units of a site sum to its KL where guide and prior are products of single numbers. Where
    one is not, something else is given, and `kinds` says what: a Gaussian guide with covariances
    has its marginals compared with the prior's factors; under a prior that does not factorize
    (a mixture, a VampPrior) the marginals are compared with the aggregate posterior's, 1/N sum_n
    KL(q(z_i|x_n) || q(z_i)) = I(x; z_i) <= log N, which costs N^2 `num_samples` densities; a guide
    of unknown marginals (IAF) has NaN, and its site's KL alone.

    A unit below 0.005 nats counts as collapsed: about where `active_units` draws its line. The two
    differ for a guide that is far from the prior, and equally so for every x: such a unit costs
    nats and is not active. `surgery` tells information from that cost.

    Args:
        model, guide: any Pyro pair whose latents stand in the plate.
        data: tensor `[N, ...]` or a tuple of such.
        num_samples: draws of each datum.
        seed, plate, device: as in `log_marginal`.
    Returns: a `UnitKL`, in nats, float64 on the CPU.
    Raises: `PairError`, `RequestError` for fewer than two data, `NonFiniteError`.
    References: arXiv:1509.00519 (active units), arXiv:1911.02469 (collapse by the KL of units).
    """
    whole_number("num_samples", num_samples)
    started = time.perf_counter()
    with tiled(
        model, guide, data, num_samples, seed=seed, plate=plate, device=device, whole_rows=True
    ) as tiles:
        check_latents(tiles.pair)
        if tiles.num_data < 2:
            raise RequestError("data: one datum; errors of a mean need at least two")
        with Progress("KL per unit", len(tiles.rows()), progress, unit="tiles") as bar:
            found = [_look(tiles, tiles.tile(start), bar) for start in tiles.rows()]
        kinds, points = found[0].kinds, found[0].points
        terms, site_terms = (torch.cat(c, 1) for c in zip(*(f[:2] for f in found), strict=True))
        informed = [name for name, kind in kinds.items() if kind == "information"]
        if informed:
            parts = [found[0].points.places[name].part for name in informed]
            information, known = _information(tiles, informed, progress)
            for name, part in zip(informed, parts, strict=True):
                terms[..., part] = information[..., part] if name in known else math.nan
                kinds[name] = "information" if name in known else "unknown"
    if not bool(site_terms.isfinite().all()):
        where = int((~site_terms.isfinite().all(0)).any(-1).nonzero()[0])
        raise NonFiniteError(
            f"log q(z|x) - log p(z) of datum {where} is NaN or infinite; check the parameters of "
            "guide and prior"
        )
    means, squares = (part.cpu() for part in by_datum(terms))
    # Of several sites, a closed form is one given the draws of others.
    closed = len(kinds) == 1 and all(f.closed for f in found)
    site_means, _ = by_datum(site_terms.cpu())
    errors = error_by_data(site_means).tolist()
    return UnitKL(
        kl=means.mean(0),
        mc_std_error=torch.zeros_like(means[0]) if closed else error_by_draws(squares),
        std_error=error_by_data(means),
        per_datum=means,
        units=unit_names(points),
        kinds=kinds,
        site_kl=dict(zip(kinds, site_means.mean(0).tolist(), strict=True)),
        site_std_error=dict(zip(kinds, errors, strict=True)),
        num_samples=num_samples,
        seed=seed,
        seconds=time.perf_counter() - started,
    )


class _Look(NamedTuple):
    """Of one tile: terms `[K, n, D]` by unit and `[K, n, sites]` by site, float64."""

    units: Tensor
    sites: Tensor
    kinds: dict[str, str]
    points: Points
    closed: bool


def _look(tiles: Tiles, tile: Tile, bar: Progress) -> _Look:
    record = tiles.score(tile)
    if record.auxiliary:
        raise PairError(
            f"auxiliary site '{next(iter(record.auxiliary))}' of the guide: its draws make the "
            "latents, which have no density of their own to be split by unit; use active_units"
        )
    points = points_of(record, tiles.pair, folded=tiles.scorer.folded)
    units, sites, kinds, all_closed = [], [], {}, True
    for name, place in points.places.items():
        term, kinds[name], closed = _terms(record, name)
        all_closed &= closed
        joint = (record.log_q[name] - record.log_p[name]).reshape(tile.count, -1)
        if term is None:
            size = place.part.stop - place.part.start
            units.append(joint.new_full((*joint.shape, size), math.nan))
        else:
            units.append(points.rows(term, name, tile.count).double())
            if kinds[name] in ("analytic", "monte_carlo"):
                joint = units[-1].sum(-1)
        sites.append(joint)
    bar.advance()
    return _Look(torch.cat(units, -1), torch.stack(sites, -1), kinds, points, all_closed)


def _terms(record: LogWeights, name: str) -> tuple[Tensor | None, str, bool]:
    """log q - log p of each number of a site, in its value's shape; its kind; is it their KL?"""
    value, q_fn = record.latents[name], record.guide_fn[name]
    q, p = factors(q_fn), factors(record.model_fn[name])
    if p is None:
        return None, "unknown" if marginals(q_fn) is None else "information", False
    kind = "analytic"
    if q is None:
        q, kind = marginals(q_fn), "marginal"
    if q is None:
        return None, "unknown", False
    # p(z_i|.) may depend on what comes before it in the model; with all of that drawn, the closed
    # form integrates over z_i alone.
    model_order, guide_order = list(record.model_fn), list(record.guide_fn)
    earlier = set(model_order[: model_order.index(name)]) - set(record.observed)
    if not earlier <= set(guide_order[: guide_order.index(name)]):
        return q.log_prob(value) - p.log_prob(value), "out_of_order", False
    closed = analytic_kl(q, p)
    if closed is None:
        kind = "monte_carlo" if kind == "analytic" else kind
        return q.log_prob(value) - p.log_prob(value), kind, False
    return closed.expand_as(value), kind, True


def _information(tiles: Tiles, sites: list[str], progress: bool) -> tuple[Tensor, list[str]]:
    """log q(z_i|x_n) - log q(z_i) `[K, N, D]` of draws, at sites whose marginals are known."""
    aggregate = Aggregate(tiles)
    known = [name for name in sites if aggregate.marginals(name)]
    drawn, own = [], []
    for start in tiles.rows():
        tile = tiles.tile(start)
        record = tiles.score(tile)
        drawn.append(aggregate.points.join(record.latents, tile.count))
        own.append(aggregate.unit_log_q(record, drawn[-1], known).double())
    u, log_q = torch.cat(drawn, 1), torch.cat(own, 1)
    total = aggregate.num_blocks(u[..., 0].numel())
    with Progress("information of units", total, progress, unit="blocks") as bar:
        others = aggregate.others(u, units=known, bar=bar).units
    assert others is not None
    return log_q - (torch.logaddexp(others, log_q) - math.log(tiles.num_data)), known
