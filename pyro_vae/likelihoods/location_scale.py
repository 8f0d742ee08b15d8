"""Likelihoods with a location and a scale for each pixel, and the four ways to have the scale."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes

Sigma = Literal["fixed", "learned", "per_pixel", "predicted"]
MOST = 10.0  # of a predicted log scale


class LocationScale(Likelihood):
    """p(x|z) = prod_d f((x_d - loc_d) / s_d) / s_d, loc = decoder(z).

    sigma, here s: `fixed` at `scale`; one `learned` number; `per_pixel` (one learned number a
    pixel); or `predicted` by the decoder. One that is not fixed stays at or above `floor`, in units
    of x. A subclass builds a `LocationScaleModule` that writes `density`.
    """

    sigma: Sigma = "learned"
    scale: float = Field(default=1.0, gt=0)
    floor: float = Field(default=1e-2, gt=0)

    @model_validator(mode="after")
    def _scale_above_floor(self):
        if self.sigma != "fixed" and self.scale < self.floor:
            raise ValueError(f"scale {self.scale} lies below floor {self.floor}; lower the floor")
        return self

    def param_shape(self, data_shape):
        return (2, *data_shape) if self.sigma == "predicted" else data_shape


class LocationScaleModule(LikelihoodModule):
    def __init__(self, shapes: Shapes, spec: LocationScale):
        super().__init__(shapes)
        self.sigma, self.floor, self.scale = spec.sigma, spec.floor, spec.scale
        if spec.sigma not in ("fixed", "predicted"):
            shape = shapes.data if spec.sigma == "per_pixel" else ()
            self.log_sigma = nn.Parameter(torch.full(shape, math.log(spec.scale)))

    def forward(self, outputs):
        if self.sigma == "predicted":
            loc, raw = self.channels(outputs)
            return self.density(loc, self._log_scale(raw, MOST))
        loc = self.precise(outputs)
        if self.sigma == "fixed":
            log_scale = loc.new_full((), math.log(self.scale))
        else:
            log_scale = self._log_scale(self.log_sigma).to(loc)
        return self.density(loc, log_scale.expand(self.shapes.data))

    def density(self, loc: Tensor, log_scale: Tensor) -> TorchDistribution:
        """p(x|z) of locations `[..., *data]` and log scales, `[*data]` or `[..., *data]`."""
        raise NotImplementedError(f"{type(self).__name__} must write density(loc, log_scale)")

    def spread(self, deviation: Tensor, dim: int | tuple[int, ...]) -> Tensor:
        """The scale that fits deviations from the location best, over some dimensions."""
        return deviation.square().mean(dim).sqrt()

    def fitted_sigma(self) -> Tensor:
        if self.sigma == "fixed":
            return torch.tensor(self.scale)
        return self._log_scale(self.log_sigma).exp()

    def _log_scale(self, raw: Tensor, high: float = math.inf) -> Tensor:
        return self.bounded(raw, math.log(self.floor), high)

    def _start(self, x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
        """log of the spread without z: constant pixels start, and stay, at the floor."""
        return self.spread(x - x.mean(0), dim).clamp_min(self.floor).log()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        if self.sigma == "per_pixel":
            self.log_sigma.copy_(self._start(x, 0))
        elif self.sigma not in ("fixed", "predicted"):
            self.log_sigma.copy_(self._start(x, tuple(range(x.dim()))))

    def initial_output(self, x):
        if self.sigma != "predicted":
            return x.mean(0)
        return torch.stack([x.mean(0), self._start(x, 0)])

    @torch.no_grad()
    def warnings(self, outputs=None):
        low = self.floor * (1 + 1e-5)  # exp(log(floor)) is rounded
        if self.sigma == "predicted" and outputs is not None:
            scale = self._log_scale(self.channels(outputs)[1], MOST).exp()
            at_floor = scale.flatten(-self.event_dim) <= low  # [N, pixels]
            which = f"sigmas predicted for {len(outputs)} data"
        elif self.sigma not in ("fixed", "predicted"):
            at_floor = (self.fitted_sigma() <= low).flatten()
            which = "sigmas"
        else:
            return []
        count = int(at_floor.sum())
        if count == 0:
            return []
        shift = count / at_floor.numel() * math.log(10) * self.shapes.num_pixels
        return [
            f"{count} of {at_floor.numel()} {which} stand at their floor of {self.floor:g}: a "
            f"floor ten times lower would move log p(x) by up to {shift:.0f} nats per "
            "datum, so log p(x) says more about the floor than about the model"
        ]
