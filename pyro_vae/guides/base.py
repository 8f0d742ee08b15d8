"""The family of amortized guides q(z|x)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import pyro
import torch
from pyro.distributions import TorchDistribution as Distribution
from pyro.poutine.runtime import InferDict
from torch import Tensor

from pyro_vae.component import Component
from pyro_vae.networks.base import Network
from pyro_vae.part import Part, Shapes

Density = Literal["anywhere", "sequential", "own samples"]


class Guide(Component, family="guide"):
    """q(z|x). A subclass holds the fields and builds a `GuideModule` around the encoder.

    `density` says where log q(z|x) can be evaluated: `anywhere`, `sequential` (one dimension at a
    time: slow), or only at the guide's `own samples`.
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

    def infer(self) -> InferDict:
        """What the sample statement tells Pyro, e.g. {"enumerate": "parallel"}: sum over values."""
        return {}

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        return pyro.sample("z", self.distribution(self.encode(x, y)), infer=self.infer())


# Bounds of log scale: exp stays a positive finite float32 and posteriors no narrower than 1e-4.
LOG_SCALE_BOUNDS = (-9.2, 7.0)


def positive(raw: Tensor) -> Tensor:
    """exp(raw) within bounds: the scale of a guide."""
    return raw.clamp(*LOG_SCALE_BOUNDS).exp()


def full_precision(outputs: Tensor) -> Tensor:
    """Network outputs as float32 or better, also under autocast."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
