"""The family of priors p(z)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pyro.distributions import TorchDistribution as Distribution
from torch import Tensor

from pyro_vae.component import Component
from pyro_vae.errors import Unfinished
from pyro_vae.levels import Chain, Step, draw
from pyro_vae.part import Part, Shapes


class Prior(Component, family="prior"):
    """p(z). A subclass holds the fields and builds a `PriorModule`.

    `support` says where latents lie: `real`; `sphere` (unit vectors); `simplex` (positive, sum 1);
    `one_hot` (rows of [L, C] with a single 1); `relaxed` (rows of [L, C] in a simplex).
    """

    support: ClassVar[str] = "real"
    levels: ClassVar[str] = "one"  # or "many": z1, z2, ...
    labelled: ClassVar[bool] = False  # is it p(z|y)?
    leaves_out: ClassVar[bool] = False  # is it another one for each datum in training?
    needs_guide_density: ClassVar[bool] = False  # does p(z) evaluate q(z|u) at any z?
    fewest_dims: ClassVar[int] = 1  # a smaller latent_dim leaves no latent: 2 on sphere and simplex

    def latent_shape(self, latent_dim: int) -> tuple[int, ...]:
        """The shape of one datum's latent; a guide must have the same.

        Raises: `ValueError` for fewer dimensions than `fewest_dims`.
        """
        if latent_dim < self.fewest_dims:
            raise ValueError(
                f"latent_dim {latent_dim} is too small for prior '{self.name}', whose "
                f"{self.support} latents need {self.fewest_dims} or more"
            )
        return (latent_dim,)

    def build(self, shapes: Shapes) -> PriorModule:
        raise Unfinished(f"{type(self).__name__} must write build(shapes)")


class PriorModule(Part):
    """Makes the latent's sample statement. A single-site prior writes `distribution`."""

    def __init__(self, shapes: Shapes):
        super().__init__()
        self.shapes = shapes

    def distribution(self, y: Tensor | None = None) -> Distribution:
        """p(z), or p(z|y) for labels `y [...]`, with `event_shape` equal to the latent's shape.

        One of many levels writes `steps` in its place.
        """
        if self.shapes.levels:
            return Chain(self.steps(y), self.shapes.levels)
        raise NotImplementedError(f"{type(self).__name__} must write distribution(y)")

    def for_data(self, x: Tensor) -> PriorModule:
        """The prior that data `x [N, *seen]` are trained under; the same one for all by default."""
        return self

    def steps(self, y: Tensor | None = None) -> Sequence[Step]:
        """The sites, in the order in which they are drawn."""
        return [("z", lambda drawn: self.distribution(y))]

    def forward(self, y: Tensor | None = None) -> Tensor:
        """Make the sample statements; returns the latent `[..., *latent]`."""
        return draw(self.steps(y))

    @property
    def decoded(self) -> tuple[int, ...]:
        """The shape of what the decoder is handed of a latent."""
        return self.shapes.latent

    def handed(self, z: Tensor) -> Tensor:
        """What the decoder is handed of latents `[..., *latent]`."""
        return z
