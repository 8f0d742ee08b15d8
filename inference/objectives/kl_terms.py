"""The ELBO taken apart: reconstruction, and a KL term of every site."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt, model_validator
from torch import Tensor
from torch.distributions import Independent

from inference.errors import PairError
from inference.kl import analytic_kl, site_kl
from inference.objectives.base import Objective, Rows
from inference.pair import Pair
from inference.record import LogWeights
from inference.supports import family_of

Kind = Literal["sampled", "analytic"]


class KLObjective(Objective):
    """An objective of reconstruction and KL terms, with linear warm-up of these.

    During warm-up (`warmup_epochs` or `warmup_steps`) beta grows linearly to 1 (arXiv:1602.02282).
    `kl`: terms of the draws (`sampled`), or each latent's KL in closed form given those it depends
    on (`analytic`), which has the same mean and less noise. Of a site that is enumerated both are
    the same sum over its values.
    """

    enumerates: ClassVar[bool] = True
    kl: Kind = "sampled"
    warmup_epochs: NonNegativeInt = 0
    warmup_steps: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_warmup(self):
        if self.warmup_epochs and self.warmup_steps:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} and warmup_steps {self.warmup_steps}: "
                "give one of them"
            )
        return self

    @property
    def weighs_kl(self) -> bool:
        return self.kl == "analytic" or bool(self.warmup_epochs or self.warmup_steps)

    def warmup(self, steps_per_epoch: int) -> int:
        """Steps until beta is what it stays."""
        return self.warmup_steps or self.warmup_epochs * steps_per_epoch

    def beta(self, step: int, steps_per_epoch: int) -> float:
        """The weight of the KL terms at a step counted from 0: above 0, and 1 after warm-up."""
        return min(1.0, (step + 1) / max(1, self.warmup(steps_per_epoch)))

    def check(self, pair: Pair) -> None:
        super().check(pair)
        if self.kl == "analytic" and pair.scaled_sites:
            raise PairError(
                f"site '{pair.scaled_sites[0]}' is scaled by poutine.scale, which kl 'analytic' "
                "does not see; use kl='sampled', or remove the scale"
            )


def likelihood_of(record: LogWeights, rows: Rows) -> Tensor:
    """E_q[log p(x|z)], less the guide's factors: a scalar, nats per datum."""
    terms = [rows.mean(record.log_p[name].mean(0)) for name in record.observed]
    for name, score in record.log_q.items():
        if name not in record.latents and name not in record.auxiliary:
            terms.append(-rows.mean(score.mean(0)))
    if not terms:
        return torch.zeros_like(next(iter(record.log_p.values())).flatten()[0])
    return torch.stack(terms).sum()


def kl_of(record: LogWeights, rows: Rows, kind: Kind) -> dict[str, Tensor]:
    """E_q[log q - log p] of every site that is drawn: scalars, nats per datum.

    Raises: `PairError` for `analytic` where no closed form is known.
    """
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys([*record.log_p, *record.log_q]):
        if name in record.observed or not (name in record.latents or name in record.auxiliary):
            continue
        if kind == "analytic" and name in record.latents and not _is_summed_over(record, name):
            found[name] = rows.mean(_closed(record, name).mean(0))
            continue
        terms = [-record.log_p[name]] if name in record.log_p else []
        terms += [record.log_q[name]] if name in record.log_q else []
        found[name] = torch.stack([rows.mean(term.mean(0)) for term in terms]).sum()
    return found


def weighted_elbo(record: LogWeights, rows: Rows, kind: Kind, beta: float | Tensor) -> Tensor:
    """E_q[log p(x|z)] - beta times all KL terms: a scalar, nats per datum."""
    value = likelihood_of(record, rows)
    kl = kl_of(record, rows, kind)
    return value - beta * torch.stack(list(kl.values())).sum() if kl else value


def kl_by_number(record: LogWeights, name: str, rows: Rows, kind: Kind) -> Tensor:
    """The same of one site, of each number of its vector by itself `[L]`.

    Raises: `PairError` where its numbers are not independent in guide and model.
    """
    found = []
    for part in record.draws:
        q, p = numbers_of(part.guide_fn[name], name), numbers_of(part.model_fn[name], name)
        if kind == "analytic":
            term = analytic_kl(q, p)
            if term is None:
                raise _unknown(part, name)
        else:
            term = q.log_prob(part.latents[name]) - p.log_prob(part.latents[name])
        assert part.dimensions is not None
        inside = in_plate(record, name)
        numbers = part.dimensions.summed(term.double().movedim(-1, 0), inside)
        if part.expected is not None and inside:
            numbers = torch.stack([part.expected(number) for number in numbers])
        found.append(numbers)
    every = torch.stack(found, 1) if record.parts else found[0]  # [L, K, rows], or [L, K]
    return torch.stack([rows.mean(number.mean(0)) for number in every])


def in_plate(record: LogWeights, name: str) -> bool:
    """Does a site of the guide stand in the data plate?"""
    part = record.draws[0]
    assert part.dimensions is not None
    return part.log_q[name].dim() == 1 + part.dimensions.particles


def _is_summed_over(record: LogWeights, name: str) -> bool:
    """Is it enumerated, so that its term is a sum over its values and exact?"""
    part = record.draws[0]
    fn = part.guide_fn[name]
    assert part.dimensions is not None
    batch_dim = part.latents[name].dim() - fn.event_dim
    wide = part.dimensions.plates + part.dimensions.particles
    return fn.has_enumerate_support and batch_dim > wide


def numbers_of(fn, name: str):
    """The distribution of a vector's numbers, where these are independent. Raises: `PairError`."""
    if isinstance(fn, Independent) and fn.reinterpreted_batch_ndims == 1 == len(fn.event_shape):
        return fn.base_dist
    raise PairError(
        f"site '{name}' draws from {type(fn).__name__} with event shape {tuple(fn.event_shape)}, "
        "whose numbers have no densities of their own; this asks for a vector of independent "
        "numbers, in guide and model: a distribution with .to_event(1), without a mask"
    )


def _closed(record: LogWeights, name: str) -> Tensor:
    """KL of one site in closed form `[K, rows]`, or `[K]`."""
    found = []
    for part in record.draws:
        term = site_kl(part, name)
        if term is None:
            raise _unknown(part, name)
        assert part.dimensions is not None
        term = part.dimensions.summed(term.double(), in_plate(record, name))
        if part.expected is not None and in_plate(record, name):
            term = part.expected(term)
        found.append(term)
    return torch.stack(found) if record.parts else found[0]


def _unknown(record: LogWeights, name: str) -> PairError:
    q, p = record.guide_fn[name], record.model_fn[name]
    return PairError(
        f"site '{name}': no closed form of KL({family_of(q)} || {family_of(p)}) is known here "
        f"(batch shapes {tuple(q.batch_shape)} and {tuple(p.batch_shape)}, event shapes "
        f"{tuple(q.event_shape)} and {tuple(p.event_shape)}); use kl='sampled'"
    )
