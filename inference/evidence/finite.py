"""Supports that can be written down: all values of a discrete latent."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.errors import PairError
from inference.evidence.points import Points
from inference.record import LogWeights
from inference.supports import plain_fn


def is_finite(fn) -> bool:
    return bool(getattr(plain_fn(fn), "has_enumerate_support", False))


def ends_at_a_count(fn) -> bool:
    """Are the values 0 .. total_count, which data may have each their own of (Binomial)?"""
    return is_finite(fn) and hasattr(plain_fn(fn), "total_count")


def values_of(record: LogWeights, name: str) -> Tensor:
    """All values of one number, or of one vector, of a site: `[S, e]`.

    Where they end at a count, those up to the largest.
    Raises: `PairError` where they are not the same for all numbers.
    """
    fn, like = plain_fn(record.model_fn[name]), record.latents[name]
    if ends_at_a_count(fn):
        most = int(torch.as_tensor(fn.total_count).max())
        return torch.arange(1 + most, dtype=like.dtype, device=like.device).unsqueeze(1)
    try:
        values = fn.enumerate_support(expand=False)
    except NotImplementedError as error:
        raise PairError(
            f"enumerate: site '{name}' cannot list the values of {type(fn).__name__} ({error}); "
            "use estimator='importance'"
        ) from None
    if values[0].numel() != fn.event_shape.numel():
        raise PairError(
            f"enumerate: site '{name}' draws from {type(fn).__name__}, whose values differ from "
            "datum to datum; use estimator='importance'"
        )
    return values.reshape(len(values), -1)


def check_own(name: str, record: LogWeights, points: Points) -> None:
    """Refuse a count that depends on other latents: two draws of them tell. Raises: `PairError`."""
    fn = record.model_fn[name]
    if not ends_at_a_count(fn):
        return
    count = torch.as_tensor(plain_fn(fn).total_count).expand(record.latents[name].shape)
    one, other = points.rows(count, name, 2)
    if not torch.equal(one, other):
        raise PairError(
            f"enumerate: site '{name}' draws from {type(plain_fn(fn)).__name__} with a total_count "
            "that depends on other latents, so its values cannot be listed beside theirs; use "
            "estimator='importance'"
        )


def check_listed(record: LogWeights, counts: dict[str, int]) -> None:
    """Refuse sites with other values than those that are summed over. Raises: `PairError`."""
    for name, listed in counts.items():
        fn = record.model_fn[name]
        here = len(values_of(record, name))
        if here > listed or (here < listed and not ends_at_a_count(fn)):
            raise PairError(
                f"enumerate: site '{name}' takes {here} values for some data or other latents, and "
                f"{listed} for others; use estimator='importance'"
            )
