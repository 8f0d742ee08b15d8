"""The family of likelihoods p(x|z)."""

from __future__ import annotations

from typing import ClassVar

from pyro.distributions import Distribution
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.component import Component
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


class Likelihood(Component, family="likelihood"):
    """p(x|z). A subclass holds the fields and builds a `LikelihoodModule`."""

    support: ClassVar[str] = "real"
    takes_exposure: ClassVar[bool] = False  # does forward(outputs, exposure) scale a rate?

    def param_shape(self, data_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of decoder outputs that one datum needs."""
        return data_shape

    def build(self, shapes: Shapes) -> LikelihoodModule:
        raise NotImplementedError(f"{type(self).__name__} must write build(shapes)")


class LikelihoodModule(Part):
    """Turns decoder outputs `[..., *param_shape]` into a distribution over x."""

    support: str = "real"

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.shapes = shapes

    def forward(self, outputs: Tensor) -> Distribution:
        """p(x | outputs), with `event_shape` equal to the data shape."""
        raise NotImplementedError(f"{type(self).__name__} must write forward(outputs)")

    def marginal(self, p: Distribution, mask: Tensor) -> Distribution:
        """p of the values that `mask [..., *data]` marks, the others integrated out.

        Values that are not marked may be any that the support allows, zeros for example.
        """
        base = getattr(p, "base_dist", None)
        if not isinstance(p, Independent) or p.reinterpreted_batch_ndims != len(self.shapes.data):
            raise NotImplementedError(f"{type(self).__name__} must write marginal(p, mask)")
        return base.mask(mask).to_event(len(self.shapes.data))

    def initial_output(self, x: Tensor) -> Tensor | None:
        """Decoder outputs `[*param_shape]` that fit training data `x [N, *data]` without z."""
        return None

    def warnings(self, outputs: Tensor | None = None) -> list[str]:
        """What a reader of log p(x) under this fitted likelihood should know.

        `outputs`: decoder outputs `[N, *param_shape]` at a posterior draw for each of N data.
        """
        return []
