"""The family of amortized guides q(z|x)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pyro
from pyro.distributions import TorchDistribution as Distribution
from torch import Tensor

from pyro_vae.component import Component
from pyro_vae.networks.base import Network
from pyro_vae.part import Part, Shapes

Density = Literal["anywhere", "sequential", "own samples", "given the prior", "joint"]


class Guide(Component, family="guide"):
    """q(z|x). A subclass holds the fields and builds a `GuideModule` around the encoder.

    `density` says where log q(z|x) can be evaluated: `anywhere`, `sequential` (one dimension at a
    time: slow), only at the guide's `own samples`, anywhere `given the prior` (which therefore
    cannot be made of it), or only as `joint` density with an auxiliary latent.
    """

    support: ClassVar[str] = "real"
    density: ClassVar[Density] = "anywhere"

    def latent_shape(self, latent_dim: int) -> tuple[int, ...]:
        """The shape of one datum's latent; a prior must have the same."""
        return (latent_dim,)

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        raise NotImplementedError(f"{type(self).__name__} must write build(shapes, encoder)")


class GuideModule(Part):
    """Owns the encoder. A single-site guide writes `encode` (once per datum) and `distribution`.

    The split serves encode-once estimation, the VampPrior (q at pseudo-inputs) and local
    optimisation of the same family.
    """

    def __init__(self, shapes: Shapes, encoder: Network, num_outputs: int):
        super().__init__()
        self.shapes = shapes
        self.encoder = encoder.make(shapes.data, (num_outputs,))

    def encode(self, x: Tensor, y: Tensor | None = None) -> Any:
        """The variational parameters of each datum: tensors `[..., batch, *]`."""
        # Not called `parameters`, as in the literature: nn.Module has a method of that name.
        raise NotImplementedError(f"{type(self).__name__} must write encode(x, y)")

    def distribution(self, parameters: Any) -> Distribution:
        """q(z | parameters), with `event_shape` equal to the latent's shape."""
        raise NotImplementedError(f"{type(self).__name__} must write distribution(parameters)")

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return pyro.sample("z", self.distribution(self.encode(x, y)))

    def widen_model(self, x: Tensor, z: Tensor) -> None:
        """Sample statements that the guide adds to the model, of densities normalized given x, z.

        They leave p(x, z) as it is. Called after x is drawn.
        """


# Bounds of log scale: exp stays a positive finite float32 and posteriors no narrower than 1e-4.
LOG_SCALE_BOUNDS = (-9.2, 7.0)


def positive(raw: Tensor) -> Tensor:
    """exp(raw) within bounds: the scale of a guide."""
    return raw.clamp(*LOG_SCALE_BOUNDS).exp()
