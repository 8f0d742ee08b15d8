"""The family of amortized guides q(z|x)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pyro.distributions import TorchDistribution as Distribution
from pyro.poutine.runtime import InferDict
from torch import Tensor

from pyro_vae.component import Component
from pyro_vae.errors import Unfinished
from pyro_vae.given import Given
from pyro_vae.levels import Chain, Step, draw
from pyro_vae.networks.base import Network
from pyro_vae.part import Part, Shapes

Density = Literal["anywhere", "sequential", "own samples", "given the prior", "joint", "none"]


class Guide(Component, family="guide"):
    """q(z|x). A subclass holds the fields and builds a `GuideModule` around the encoder.

    `density` says where log q(z|x) can be evaluated: `anywhere`, `sequential` (one dimension at a
    time: slow), only at the guide's `own samples`, anywhere `given the prior` (which therefore
    cannot be made of it), only as `joint` density with an auxiliary latent, or not at all (`none`).
    """

    support: ClassVar[str] = "real"
    density: ClassVar[Density] = "anywhere"
    levels: ClassVar[str] = "one"  # or "many": z1, z2, ...
    widens_model: ClassVar[bool] = False  # does it add sites to the model?
    needs_mask: ClassVar[bool] = False  # does it look at which values are known?
    knows_top: ClassVar[bool] = True  # is q(z_M|x) of the last level known in closed form?

    def latent_shape(self, latent_dim: int) -> tuple[int, ...]:
        """The shape of one datum's latent; a prior must have the same."""
        return (latent_dim,)

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        raise Unfinished(f"{type(self).__name__} must write build(shapes, encoder)")


class GuideModule(Part):
    """Owns the encoder. A single-site guide writes `encode` (once per datum) and `distribution`.

    The encoder is handed x `[..., *seen]`: the datum, which a label or a mask may have joined.
    The split serves encode-once estimation, the VampPrior (q at pseudo-inputs) and local
    optimisation of the same family.
    """

    def __init__(self, shapes: Shapes, encoder: Network, num_outputs: int):
        super().__init__()
        self.shapes = shapes
        self.encoder = encoder.make(shapes.seen, (num_outputs,))

    def encode(self, x: Tensor, given: Given | None = None) -> Any:
        """The variational parameters of each datum: tensors `[..., batch, *]`.

        `given`: the batch by name, for guides that ask the model about it.
        """
        # Not called `parameters`, as in the literature: nn.Module has a method of that name.
        raise NotImplementedError(f"{type(self).__name__} must write encode(x, given)")

    def distribution(self, parameters: Any) -> Distribution:
        """q(z | parameters), with `event_shape` equal to the latent's shape.

        One of many levels writes `steps` in its place.
        """
        if self.shapes.levels:
            return Chain(self.steps(parameters), self.shapes.levels)
        raise NotImplementedError(f"{type(self).__name__} must write distribution(parameters)")

    def infer(self) -> InferDict:
        """What the sample statements tell Pyro, e.g. {"enumerate": "parallel"}: sum over values."""
        return {}

    def top(self, x: Tensor) -> Distribution:
        """q of the level farthest from the data, given x alone."""
        return self.distribution(self.encode(x, None))

    def steps(self, parameters: Any) -> Sequence[Step]:
        """The sites, in the order in which they are drawn."""
        return [("z", lambda drawn: self.distribution(parameters))]

    def forward(self, x: Tensor, given: Given | None = None) -> Tensor:
        """Make the sample statements; returns the latent `[..., *latent]`."""
        return draw(self.steps(self.encode(x, given)), self.infer())

    def widen_model(self, x: Tensor, z: Tensor) -> None:
        """Sample statements that the guide adds to the model, of densities normalized given x, z.

        They leave p(x, z) as it is. Called after x is drawn.
        """


# Bounds of log scale: exp stays a positive finite float32 and posteriors no narrower than 1e-4.
LOG_SCALE_BOUNDS = (-9.2, 7.0)


def positive(raw: Tensor) -> Tensor:
    """exp(raw) within bounds: the scale of a guide."""
    return raw.clamp(*LOG_SCALE_BOUNDS).exp()


def full_precision(outputs: Tensor) -> Tensor:
    """Network outputs as float32 or better, also under autocast."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
