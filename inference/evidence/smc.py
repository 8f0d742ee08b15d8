"""Sequential Monte Carlo samplers (Del Moral, Doucet, Jasra 2006) on the path of AIS.

The error is told by the genealogy: Lee and Whiteley, arXiv:1509.00394.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from inference.evidence.ais import AIS, Errors, Weighed, log_mean
from inference.evidence.hmc import Chains
from inference.evidence.midway import Midway
from inference.evidence.moderation import moderated, seldom_above
from inference.evidence.space import Data
from inference.evidence.tempering import Tuned, Walk
from inference.progress import Progress

FEWEST = 25
# Particles to one degree of freedom of the genealogy's variance, roughly.
RELATED = 16
# Standard error, nats, up to which the genealogy's variance is to be believed.
MAX_ERROR = 0.12


class SMC(AIS):
    """Particles that go from f_0 to f_1, and are resampled where few carry the weight.

        p(x) ~ prod over resamplings of the mean weight since the one before

    Low in expectation, unbiased on the weight scale. Temperatures are those that the pilot of
    `AIS` finds, a quarter as many. Particles of a datum share ancestors, so the error is not that
    of independent weights: with W_i the weight of the i-th ancestor's descendants after r
    resamplings,

        s^2 = 1 - (N / (N - 1))^(r + 1) (1 - sum_i W_i^2)

    Args: those of `AIS`, and
        num_chains: N, particles of each datum.
        resample_below: the effective share of particles below which a datum's are resampled.
    """

    skew: ClassVar[float] = 0.0  # so many particles need none
    name: Literal["smc"] = "smc"  # type: ignore[assignment]
    num_chains: int = Field(default=64, ge=2)
    resample_below: float = Field(default=0.5, ge=0, le=1)

    def weigh(
        self,
        walk: Walk,
        data: Data,
        tuned: Tuned,
        betas: Tensor,
        bar: Progress | None,
        midway: Midway | None,
    ) -> Weighed:
        share = self.resample_below
        return sequential(walk, data, tuned, betas, self.num_chains, share, bar, midway)

    def errors(self, found: Weighed) -> Errors:
        own, own_degrees = found.variance, self.num_chains / RELATED
        variance, shared = moderated(own, own_degrees)
        # What is larger than chance allows is no datum like the others, and keeps its own.
        odd = own > variance * seldom_above(own_degrees)
        variance = torch.where(odd, own, variance)
        degrees = torch.where(odd, own_degrees, torch.full_like(own, shared))
        calm = variance.sqrt() <= MAX_ERROR  # NaN is not
        variance = variance.nan_to_num(1.0)  # that of one ancestor of all
        return Errors(variance.sqrt(), (self.num_chains * variance).sqrt(), degrees, calm)

    @property
    def fewest(self) -> int:
        return FEWEST

    def enough(self, tuned: Sequence[Tuned]) -> int:
        return max(FEWEST, super().enough(tuned) // 4)


def resampled(weight: Tensor, uniform: Tensor) -> Tensor:
    """Multinomial resampling of each column: ancestors `[N, data]`.

    Systematic resampling has a smaller variance, but none that its genealogy tells: the estimate of
    it would be twice too large.

    Args:
        weight: `[N, data]`, normalized over particles.
        uniform: `[N, data]`, in [0, 1).
    """
    ends = weight.cumsum(0).T.contiguous()
    places = uniform.T.contiguous() * ends[:, -1:]
    return torch.searchsorted(ends, places, right=True).clamp_max(len(weight) - 1).T


def taken(tensor: Tensor, ancestors: Tensor) -> Tensor:
    """Rows `[N, data, ...]` of the ancestors `[N, data]`."""
    index = ancestors.reshape(*ancestors.shape, *[1] * (tensor.dim() - 2)).expand_as(tensor)
    return tensor.gather(0, index)


def relative_variance(weight: Tensor, eve: Tensor, resamplings: Tensor) -> Tensor:
    """The variance of p^(x) / p(x) by the genealogy, `[data]`.

    Args:
        weight: `[N, data]`, normalized over particles.
        eve: `[N, data]`, the particle at the start that each descends from.
        resamplings: `[data]`, how many there were.
    """
    num = len(weight)
    by_eve = torch.zeros_like(weight).scatter_add_(0, eve, weight)
    grown = (num / (num - 1)) ** (resamplings + 1)
    return 1 - grown * (1 - by_eve.square().sum(0))


def sequential(
    walk: Walk,
    data: Data,
    tuned: Tuned,
    betas: Tensor,
    num_particles: int,
    resample_below: float,
    bar: Progress | None = None,
    midway: Midway | None = None,
) -> Weighed:
    """What particles that share ancestors say."""
    resumed = midway.resume() if midway else None
    if resumed is None:
        done, chains = 0, walk.begin(data, num_particles)
        bound = chains.log_ratio.mean(0)
        log_w = torch.zeros_like(chains.start)
        log_z, resamplings = torch.zeros_like(log_w[0]), torch.zeros_like(log_w[0])
        acceptance = torch.zeros_like(log_z)
        eve = torch.arange(num_particles, device=log_w.device).unsqueeze(1).expand(log_w.shape)
    else:
        done, (*parts, log_w, acceptance, bound, log_z, resamplings, eve) = resumed
        chains = Chains(*parts)
        if bar is not None:
            bar.advance(done)
    itself = torch.arange(num_particles, device=log_w.device).unsqueeze(1).expand(log_w.shape)
    for i in range(done + 1, len(betas)):
        log_w = log_w + (betas[i] - betas[i - 1]) * chains.log_ratio
        weight = log_w.softmax(0)
        due = 1 / weight.square().sum(0) < resample_below * num_particles
        uniform = torch.rand_like(log_w)
        if i < len(betas) - 1 and bool(due.any()):
            ancestors = torch.where(due, resampled(weight, uniform), itself)
            chains = Chains(*(taken(part, ancestors) for part in chains))
            eve = taken(eve, ancestors)
            log_z = torch.where(due, log_z + log_mean(log_w), log_z)
            log_w = torch.where(due, 0.0, log_w)
            resamplings = resamplings + due
        moved = walk.move(chains, betas[i], tuned, data)
        chains = moved.chains
        acceptance = acceptance + moved.acceptance.mean(0) / (len(betas) - 1)
        if bar is not None:
            bar.advance()
        if midway is not None:
            state = [*chains, log_w, acceptance, bound, log_z, resamplings, eve]
            midway.keep(i, state)
    log_z = log_z + log_mean(log_w)
    weight = log_w.softmax(0)
    variance = relative_variance(weight, eve, resamplings)
    # With too few ancestors to tell, the estimate of the variance may be negative.
    variance = torch.where((variance > 0) | (resamplings == 0), variance.clamp_min(0), math.nan)
    ess = 1 / (variance + 1 / num_particles)
    spread = (num_particles * variance).sqrt()
    return Weighed(log_z, variance, ess, spread, acceptance, bound)
