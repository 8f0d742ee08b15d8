"""Discrete codes: rows with a single 1."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints
from torch.distributions.kl import register_kl

MOST_VALUES = 4096  # so many values of a code are listed, and summed over in training


class OneHotRows(TorchDistribution):
    """L independent one-hot rows of C categories: p(z) = prod_l softmax(logits_l)'z_l.

    Unlike `OneHotCategorical(...).to_event(1)` it lists its values: all C^L of them, where they are
    `MOST_VALUES` at most (`has_enumerate_support`). Draws have no gradient.

    Args:
        logits: `[..., L, C]`.
    """

    arg_constraints: ClassVar = {"logits": constraints.independent(constraints.real_vector, 1)}
    support = constraints.independent(constraints.one_hot, 1)
    has_rsample = False

    def __init__(self, logits: Tensor, validate_args=None):
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-2], logits.shape[-2:], validate_args=validate_args)

    @property
    def has_enumerate_support(self) -> bool:  # type: ignore[override]
        return is_listed(self.event_shape)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(OneHotRows, _instance)
        new.logits = self.logits.expand(torch.Size(batch_shape) + self.event_shape)
        super(OneHotRows, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            index = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
            return self._one_hot(index)

    def _one_hot(self, index: Tensor) -> Tensor:
        categories = torch.arange(self.event_shape[1], device=index.device)
        return (index.unsqueeze(-1) == categories).to(self.logits.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum((-2, -1))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values, `[C^L, *batch, L, C]`; without `expand`, 1 in place of each batch size."""
        rows, categories = self.event_shape
        if not self.has_enumerate_support:
            raise NotImplementedError(
                f"{rows} rows of {categories} categories take {num_values(self.event_shape):,} "
                f"values; up to {MOST_VALUES:,} are listed"
            )
        # The digits of 0 .. C^L - 1 in base C.
        number = torch.arange(num_values(self.event_shape), device=self.logits.device)
        places = categories ** torch.arange(rows - 1, -1, -1, device=number.device)
        values = self._one_hot(number.unsqueeze(-1) // places % categories)
        lead = (1,) * len(self.batch_shape)
        values = values.reshape(-1, *lead, rows, categories)
        return values.expand(-1, *self.batch_shape, rows, categories) if expand else values

    @property
    def mean(self) -> Tensor:
        return self.logits.exp()

    def entropy(self) -> Tensor:
        return -(self.logits.exp() * self.logits).sum((-2, -1))


def num_values(shape: tuple[int, ...]) -> int:
    """C^L, of codes `[L, C]`."""
    rows, categories = shape
    return categories**rows


def is_listed(shape: tuple[int, ...]) -> bool:
    """Are the values of codes `[L, C]` few enough to be listed?"""
    return num_values(shape) <= MOST_VALUES


@register_kl(OneHotRows, OneHotRows)
def _kl(q: OneHotRows, p: OneHotRows) -> Tensor:
    """sum_l sum_c q_lc log q_lc / p_lc."""
    return (q.logits.exp() * (q.logits - p.logits)).sum((-2, -1))
