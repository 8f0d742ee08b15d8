"""The record of one pass over a pair: draws, and what both programs say of them, site by site.

Everything else (importance weights, the ELBO, KL terms, latent usage) is a function of this record;
nothing else traces a model for estimation.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import constraints

from inference.dimensions import Dimensions
from inference.pair import Pair, frame_of, sample_sites
from inference.stopped import Taps
from inference.supports import is_mixture, plain_support


@dataclass(frozen=True)
class LogWeights:
    """K draws z_k ~ q(z|x_n) of every datum, scored.

    `latents[name]` is `[K, ...]` with the site's own batch and event dimensions; `log_p[name]` and
    `log_q[name]` are log-densities in nats, float64 `[K, N]` (or `[K]` outside the data plate),
    summed over everything but particles and the data plate, not scaled by its subsampling (a scale
    that the user gave is kept; evidence refuses it). `model_fn` and `guide_fn` are the
    distributions themselves, masked where their sites are. `auxiliary` holds draws of guide sites
    that the model does not have. Observed sites of the guide alone (`pyro.factor`) are terms of
    log q, as in Pyro's `Trace_ELBO`. `ulp` is the rounding of one unit in the last place of every
    summed log-density, as a root of the sum of squares. `entangled` names latents whose log p is
    part of an observed site's term, for they share values that the model sums over.

    `dimensions` says where particles and data stand in `latents` and in the batch shapes of the
    distributions. Draws that were made one at a time have none in common; `parts` holds each one's
    record, without a particle dimension. `log_q_stopped`, on request, is log q as a function of
    the draws alone, the guide's parameters held still; the draws then pass `taps`. `notes` are
    values that the guide tells by `pyro.deterministic`. `expected` takes the mean, over values that
    the guide enumerates, of a term made of the distributions, whose dimensions of them stand left
    of all others; it raises `PairError` for a term that depends on values that the model sums over.
    """

    latents: dict[str, Tensor]
    auxiliary: dict[str, Tensor]
    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    observed: tuple[str, ...]
    model_fn: dict[str, Any]
    guide_fn: dict[str, Any]
    ulp: Tensor
    entangled: tuple[tuple[str, str], ...] = ()
    dimensions: Dimensions | None = None
    parts: tuple[LogWeights, ...] = ()
    log_q_stopped: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Tensor] = field(default_factory=dict)
    taps: Taps | None = None
    expected: Callable[[Tensor], Tensor] | None = None

    @property
    def log_weight(self) -> Tensor:
        """log w_k = log p(x, z_k) - log q(z_k|x), in nats."""
        return sum(self.log_p.values()) - sum(self.log_q.values())  # type: ignore[return-value]

    @property
    def log_likelihood(self) -> Tensor:
        """log p(x|z_k): the observed sites."""
        return sum(self.log_p[name] for name in self.observed)  # type: ignore[return-value]

    @property
    def draws(self) -> tuple[LogWeights, ...]:
        """Records whose tensors and distributions belong together: of all draws, or of each."""
        return self.parts or (self,)

    def scale_taps(self, weight: Tensor) -> None:
        """Multiply the gradients that come back to the draws by `weight [K, N]`, or `[K]`."""
        if self.taps is not None:
            self.taps.weight = weight
        if self.parts:
            for part, own in zip(self.parts, weight, strict=True):
                part.scale_taps(own)


def from_traces(model_trace, guide_trace, reduce) -> LogWeights:
    in_model, in_guide = sample_sites(model_trace), sample_sites(guide_trace)
    latents = {n: s["value"] for n, s in in_model.items() if not s["is_observed"]}
    p = {name: reduce(site, latent=name in latents) for name, site in in_model.items()}
    q = {
        name: reduce(site, latent=False)
        for name, site in in_guide.items()
        # Data that a guide sees by running the model (Pyro's GuideMessenger) are no term of log q.
        if not (site["is_observed"] and name in in_model)
    }
    return LogWeights(
        latents=latents,
        auxiliary={
            n: s["value"] for n, s in in_guide.items() if n not in in_model and not s["is_observed"]
        },
        log_p={name: score for name, (score, _) in p.items()},
        log_q={name: score for name, (score, _) in q.items()},
        observed=tuple(name for name, site in in_model.items() if site["is_observed"]),
        model_fn={name: _masked(site) for name, site in in_model.items()},
        guide_fn={name: _masked(site) for name, site in in_guide.items()},
        ulp=_root_of_squares([ulp for _, ulp in (*p.values(), *q.values())]),
        notes={
            name: site["value"]
            for name, site in guide_trace.nodes.items()
            if site["type"] == "sample" and site["infer"].get("_deterministic")
        },
    )


def stacked(records: list[LogWeights]) -> LogWeights:
    """Records of one draw each, without a particle dimension, as one."""

    def stack(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([part[name] for part in parts]) for name in parts[0]}

    return replace(
        records[-1],
        latents=stack([r.latents for r in records]),
        auxiliary=stack([r.auxiliary for r in records]),
        log_p=stack([r.log_p for r in records]),
        log_q=stack([r.log_q for r in records]),
        log_q_stopped=stack([r.log_q_stopped for r in records]),
        dimensions=None,
        taps=None,
        expected=None,
        parts=tuple(records),
        ulp=torch.stack([r.ulp for r in records]),
    )


def score_of(site, pair: Pair, *, particles: bool, latent: bool) -> tuple[Tensor, Tensor]:
    """A site's log-density over everything but particles and the data plate, unscaled; its ulp."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    if latent:
        log_prob = _inside(site, log_prob)
    log_prob = scale_and_mask(log_prob, own_scale(site, pair), site["mask"])
    dimensions = Dimensions.of(pair, particles=particles)
    kept = dimensions.kept(frame_of(site, pair.plate) is not None)
    if log_prob.dim() < pair.max_plate_nesting + particles:
        missing = pair.max_plate_nesting + particles - log_prob.dim()
        log_prob = log_prob.reshape((1,) * missing + tuple(log_prob.shape))
    epsilon = torch.finfo(log_prob.dtype).eps
    # Dimensions to the left of plates and particles are those of enumerated sites.
    first = -min(log_prob.dim(), pair.max_plate_nesting + particles)
    summed = [d for d in range(first, 0) if d not in kept]
    if pair.plate is None:  # as many terms as data, each rounded by itself
        terms = log_prob.double()
        squares = terms.detach().nan_to_num(0, 0, 0).square()
        if summed:  # an empty list would stand for every dimension
            terms, squares = terms.sum(summed), squares.sum(summed)
        return terms, epsilon * squares.sqrt()
    total = (log_prob.sum(summed) if summed else log_prob).double()
    size = total.detach().abs().nan_to_num(0, 0, 0)
    if size.dim() > len(kept):
        size = size.flatten(0, size.dim() - len(kept) - 1).amax(0)
    return total, epsilon * size


def own_scale(site, pair: Pair) -> float | Tensor:
    """A site's scale but for what its data plate's subsampling puts there; 1 in evidence."""
    subsampling = subsampling_of(site, pair)
    return site["scale"] if subsampling == 1 else site["scale"] / subsampling


def subsampling_of(site, pair: Pair) -> float:
    """What the data plate's subsampling scales a site by."""
    frame = frame_of(site, pair.plate)
    return 1.0 if frame is None or not frame.full_size else frame.full_size / frame.size


def _inside(site, log_prob: Tensor) -> Tensor:
    """-inf where a draw lies outside the model's support: its density there is 0, not NaN."""
    support = plain_support(site["fn"])
    if support is constraints.real:
        return log_prob
    try:
        outside = ~site["fn"].support.check(site["value"])
    except NotImplementedError:  # a support that is not known cannot be checked
        return log_prob
    unknown = site["value"].isnan()
    outside = outside & ~(
        unknown.flatten(outside.dim()).any(-1) if unknown.dim() > outside.dim() else unknown
    )
    if support.event_dim > 0 or is_mixture(site["fn"]):
        # Draws lie in a simplex up to rounding only; torch asks for all of a mixture's components.
        outside = outside & log_prob.isnan()
    return torch.where(outside, -math.inf, log_prob)


def _masked(site):
    return site["fn"] if site["mask"] is None else site["fn"].mask(site["mask"])


def _root_of_squares(parts: list[Tensor]) -> Tensor:
    """sqrt(sum of squares); what stands outside the data plate `[K]` counts for every datum."""
    widest = max(part.dim() for part in parts)
    wide = (part if part.dim() == widest else part.unsqueeze(-1) for part in parts)
    return torch.stack(torch.broadcast_tensors(*(part.square() for part in wide))).sum(0).sqrt()
