"""The family of likelihoods p(x|z)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.bounds import bounded
from pyro_vae.component import Component
from pyro_vae.errors import Unfinished
from pyro_vae.likelihoods.marked import MarkedPixels
from pyro_vae.part import Part, Shapes

# Which data a likelihood of each support can score: values in {0, 1}; grey levels k / (levels - 1);
# in [0, 1]; inside (0, 1), as dequantized levels are; counts 0, 1, 2, ...; anywhere.
SCORES: dict[str, tuple[str, ...]] = {
    "binary": ("binary",),
    "levels": ("levels",),
    "unit": ("binary", "levels", "unit", "inside"),
    "inside": ("inside",),
    "count": ("count",),
    "real": ("binary", "levels", "unit", "inside", "count", "real"),
}
DISCRETE = ("binary", "levels", "count")

# Decoder outputs, x and mask (or None) of some data.
Decoded = tuple[Tensor, Tensor, Tensor | None]


class Likelihood(Component, family="likelihood"):
    """p(x|z). A subclass holds the fields and builds a `LikelihoodModule`."""

    support: ClassVar[str] = "real"
    takes_exposure: ClassVar[bool] = False  # does forward(outputs, exposure) scale a rate?

    @property
    def measure(self) -> str:
        """What p(x|z) is: `probabilities` or `densities`, which have no common unit."""
        return "probabilities" if self.support in DISCRETE else "densities"

    def param_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of decoder outputs that one datum needs."""
        return data_shape

    def build(self, shapes: Shapes) -> LikelihoodModule:
        raise Unfinished(f"{type(self).__name__} must write build(shapes)")


class LikelihoodModule(Part):
    """Turns decoder outputs `[..., *param_shape]` into a distribution over x."""

    support: str = "real"
    safe: float = 0.0  # a value that each pixel's support holds

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.shapes = shapes

    def forward(self, outputs: Tensor) -> TorchDistribution:
        """p(x | outputs), with `event_shape` equal to the data shape.

        One that takes an exposure writes `forward(outputs, exposure=None)`: positive numbers, one
        for each datum `[batch]` or for each value `[batch, *data]`.
        """
        raise NotImplementedError(f"{type(self).__name__} must write forward(outputs)")

    def marginal(self, p: TorchDistribution, mask: Tensor) -> TorchDistribution:
        """p of the values that `mask [..., *data]` marks, the others integrated out.

        `p` is what `forward` returned. Values that are not marked may be any: they are not read.
        """
        if not isinstance(p, Independent) or p.reinterpreted_batch_ndims != self.event_dim:
            raise NotImplementedError(f"{type(self).__name__} must write marginal(p, mask)")
        return MarkedPixels(p.base_dist, mask, self.event_dim, self.safe)

    def initial_output(self, x: Tensor) -> Tensor | None:
        """Decoder outputs `[*param_shape]` that fit training data `x [N, *data]` without z."""
        return None

    def finalize(self, batches: Iterable[Decoded]) -> None:
        """After training: set what is fitted to all training data in closed form.

        `batches`: decoder outputs `[batch, *param_shape]` at a posterior draw of each datum, with
        x and its mask (None: nothing is missing).
        """

    def warnings(self, outputs: Tensor | None = None) -> list[str]:
        """What a reader of log p(x) under this fitted likelihood should know.

        `outputs`: decoder outputs `[N, *param_shape]` at a posterior draw for each of N data.
        """
        return []

    # For subclasses --------------------------------------------------------------------------

    @property
    def event_dim(self) -> int:
        return len(self.shapes.data)

    def precise(self, outputs: Tensor) -> Tensor:
        """Outputs in float32 or better, under autocast, too."""
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def channels(self, outputs: Tensor) -> Tensor:
        """Several outputs a value, `[..., C, *data]`, as `[C, ..., *data]`, precise."""
        return self.precise(outputs).movedim(-self.event_dim - 1, 0)

    def bounded(self, raw: Tensor, low: float, high: float) -> Tensor:
        return bounded(raw, low, high, self.training)
