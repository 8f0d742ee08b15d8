"""Where importance draws come from, if not from the guide as it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import LowRankMultivariateNormal, MultivariateNormal, Normal, StudentT
from pyro.distributions import TransformedDistribution as PyroTransformed
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

from inference.errors import PairError
from inference.evidence.points import Points, axes_of, free_of
from inference.isolation import own_randomness
from inference.pair import Pair
from inference.particles import Given, Scorer
from inference.record import LogWeights
from inference.supports import is_point


def prior_of(model: Callable, summed: Collection[str] = ()) -> Callable:
    """The model's own latents as a guide: q(z) = p(z), so that log w = log p(x|z).

    Sites in `summed` are left out: the density of the others is then that given one draw of them.
    """
    return poutine.block(
        model, hide_fn=lambda site: bool(site.get("is_observed")) or site["name"] in summed
    )


class Defensive:
    """Draws from guide and prior in turn, each weighed by the mixture of both.

        q_a(z|x) = a q(z|x) + (1 - a) p(z),   w = p(x, z) / q_a(z|x) <= p(x|z) / (1 - a)

    Of K draws a K come from the guide (Owen and Zhou 2000: weights of a mixture whose shares are
    kept exactly), so that no region of the prior has weights without bound. Stands in a scorer's
    place; the guide's density must be known anywhere.
    """

    def __init__(self, scorer: Scorer, share: float, arguments: tuple[Tensor, ...]):
        self.scorer, self.share = scorer, share
        self.pair: Pair = scorer.pair
        if self.pair.enumerated:
            raise PairError(
                f"proposal: 'defensive' needs the prior's density of what is drawn, and site "
                f"'{self.pair.enumerated[0]}' is summed over; use estimator='importance' with "
                "proposal='guide' or 'prior'"
            )
        self.folded = scorer.folded
        self.prior = scorer.with_guide(prior_of(scorer.pair.model))
        self._check_density(arguments)

    def __call__(
        self,
        arguments: tuple[Tensor, ...],
        num_particles: int,
        subset: Tensor | None = None,
        *,
        check: bool = False,
    ) -> LogWeights:
        of_guide = self.scorer(arguments, num_particles, subset, check=check)
        of_prior = self.prior(arguments, num_particles, subset)
        points = points_of(of_guide, self.pair, folded=self.folded)
        from_prior, prior_share = self._turns(num_particles, arguments[0].device)
        u = torch.where(
            from_prior.reshape(-1, 1, 1),
            points.join(of_prior.latents, num_particles),
            points.join(of_guide.latents, num_particles),
        )
        given = Given(points.split(u))(self.pair.guide)
        record = self.scorer.with_guide(given)(arguments, num_particles, subset)
        log_q: Tensor = sum(record.log_q.values())  # type: ignore[assignment]
        log_prior: Tensor = sum(record.log_p[n] for n in record.latents)  # type: ignore[assignment]
        mixture = torch.logaddexp(
            log_q + math.log(1 - prior_share), log_prior + math.log(prior_share)
        )
        return replace(record, log_q={"mixture": mixture})

    def _turns(self, count: int, device: torch.device) -> tuple[Tensor, float]:
        """Which of so many draws come from the prior, and what share that is."""
        if count == 1:
            return torch.rand(1, device=device) < 1 - self.share, 1 - self.share
        # Of both at least one, as evenly in turn as the number allows: 0, 1, 0, 1 for a half.
        of_prior = min(max(round(count * (1 - self.share)), 1), count - 1)
        turns = torch.arange(count + 1, device=device) * of_prior
        turns = turns.div(count, rounding_mode="floor")
        return turns[1:] > turns[:-1], of_prior / count

    def _check_density(self, arguments: tuple[Tensor, ...]) -> None:
        """Refuse guides whose density is known at their own draws only."""
        few = arguments if self.pair.whole else tuple(a[: self.pair.few] for a in arguments)
        subset = None
        if self.pair.subsampling == "own":
            subset = torch.arange(self.pair.subsample_size, device=few[0].device)
        problem = ""
        with own_randomness(0):
            drawn, prior = (each(few, 2, subset) for each in (self.scorer, self.prior))
            if drawn.auxiliary:
                problem = f"auxiliary site '{next(iter(drawn.auxiliary))}' of the guide"
            else:
                try:
                    again = _rescored(self.scorer, drawn.latents, few, subset)
                    _rescored(self.scorer, prior.latents, few, subset)
                    if not torch.allclose(again, _total_log_q(drawn), rtol=1e-3, atol=1e-2):
                        problem = "the guide's log q of one and the same draw changes"
                except (NotImplementedError, KeyError) as error:  # a flow without an inverse
                    problem = f"the guide has no inverse ({type(error).__name__})"
        if problem:
            raise PairError(
                f"{problem}: its density is known at its own draws only, and a mixture scores it "
                "at the prior's; use proposal 'guide' or 'prior'"
            )


def _rescored(scorer: Scorer, values: dict[str, Tensor], few, subset) -> Tensor:
    """log q of given latents."""
    return _total_log_q(scorer.with_guide(Given(values)(scorer.pair.guide))(few, 2, subset))


def _total_log_q(record: LogWeights) -> Tensor:
    return sum(record.log_q.values())  # type: ignore[return-value]


def points_of(record: LogWeights, pair: Pair, *, folded: bool) -> Points:
    """How the latents of a record lie side by side. Raises: `PairError`."""
    free = free_of(record, pair)
    event_dims = {name: record.model_fn[name].event_dim for name in free}
    return Points(free, axes_of(free, event_dims, pair), folded=folded)


class Widened(Messenger):
    """Let Gaussian sites of a guide draw `width` times as far from their centre.

    Of transformed Gaussians (flows), the noise that they begin with; of points that are functions
    of auxiliary draws (Pyro's automatic guides), these draws.
    Raises: `PairError` for other sites.
    """

    def __init__(self, width: float):
        super().__init__()
        self.width = width

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["type"] != "sample" or not hasattr(msg["fn"], "event_shape"):
            return
        if type(msg["fn"]).__name__ != "_Subsample" and not is_point(msg["fn"]):
            msg["fn"] = _widened(msg, msg["fn"], self.width)


def _widened(site: Any, fn, width: float):
    if isinstance(fn, Independent):
        return _widened(site, fn.base_dist, width).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, Normal):
        return Normal(fn.loc, width * fn.scale)
    if isinstance(fn, StudentT):
        return StudentT(fn.df, fn.loc, width * fn.scale)
    if isinstance(fn, MultivariateNormal):
        return MultivariateNormal(fn.loc, scale_tril=width * fn.scale_tril)
    if isinstance(fn, LowRankMultivariateNormal):
        return LowRankMultivariateNormal(
            fn.loc, width * fn._unbroadcasted_cov_factor, width**2 * fn._unbroadcasted_cov_diag
        )
    if isinstance(fn, TransformedDistribution):
        # Not its own kind (LogNormal), which is made of other arguments.
        return PyroTransformed(_widened(site, fn.base_dist, width), fn.transforms)
    # Draws beside the latents have no density that a mixture could take at the prior's.
    beside = site["infer"].get("is_auxiliary")
    others = "" if beside else ", or 'defensive' where the guide can be scored at any latents"
    raise PairError(
        f"site '{site['name']}' of the guide draws from {type(fn).__name__}, which has no width to "
        f"widen; use proposal='prior'{others}"
    )
