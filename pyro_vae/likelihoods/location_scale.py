"""Likelihoods with a location and a scale for each pixel, and the four ways to have the scale."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field, model_validator
from pyro.distributions import TorchDistribution as Distribution
from torch import Tensor, nn

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class LocationScale(Likelihood):
    """p(x|z) = prod_d f((x_d - loc_d) / s_d) / s_d, loc = decoder(z).

    sigma, here s: `fixed` at `scale`; one `learned` number; `per_pixel` (one learned number a
    pixel); or `predicted` by the decoder. One that is not fixed stays at or above `floor`, in units
    of x. A subclass builds a `LocationScaleModule` that writes `density`.
    """

    sigma: Literal["fixed", "learned", "per_pixel", "predicted"] = "learned"
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
        if spec.sigma in ("learned", "per_pixel"):
            shape = shapes.data if spec.sigma == "per_pixel" else ()
            self.log_sigma = nn.Parameter(torch.full(shape, math.log(spec.scale)))

    def forward(self, outputs):
        event_dim = len(self.shapes.data)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # under autocast
        if self.sigma == "predicted":
            loc, raw = outputs.unbind(-event_dim - 1)
            return self.density(loc, self._bounded(raw, 10.0))
        if self.sigma == "fixed":
            log_sigma = outputs.new_full((), math.log(self.scale))
        else:
            log_sigma = self._bounded(self.log_sigma).to(outputs)
        return self.density(outputs, log_sigma.expand(self.shapes.data))

    def density(self, loc: Tensor, log_scale: Tensor) -> Distribution:
        """p(x|z) of locations `[..., *data]` and log scales, `[*data]` or `[..., *data]`."""
        raise NotImplementedError(f"{type(self).__name__} must write density(loc, log_scale)")

    def fitted_sigma(self) -> Tensor:
        if self.sigma == "fixed":
            return torch.tensor(self.scale)
        return self._bounded(self.log_sigma).exp()

    def _bounded(self, raw: Tensor, high: float = math.inf) -> Tensor:
        """log sigma within bounds. In training, a way back stays open to what is beyond them."""
        low = math.log(self.floor)
        return _Bounded.apply(raw, low, high) if self.training else raw.clamp(low, high)

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        # The spread of the data without z: constant pixels start, and stay, at the floor.
        if self.sigma == "learned":
            self.log_sigma.copy_((x - x.mean(0)).square().mean().sqrt().clamp_min(self.floor).log())
        elif self.sigma == "per_pixel":
            self.log_sigma.copy_(x.std(0, correction=0).clamp_min(self.floor).log())

    def initial_output(self, x):
        if self.sigma != "predicted":
            return x.mean(0)
        return torch.stack([x.mean(0), x.std(0, correction=0).clamp_min(self.floor).log()])

    @torch.no_grad()
    def warnings(self, outputs=None):
        low = self.floor * (1 + 1e-5)  # exp(log(floor)) is rounded
        if self.sigma == "predicted" and outputs is not None:
            event_dim = len(self.shapes.data)
            at_floor = self(outputs).base_dist.scale.flatten(-event_dim) <= low  # [N, pixels]
            which = f"sigmas predicted for {len(outputs)} data"
        elif self.sigma in ("learned", "per_pixel"):
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


class _Bounded(torch.autograd.Function):
    """clamp, and a gradient that leads back inside passes.

    The gradient of a clamp is 0 outside: a sigma that one step took below its floor would stay
    there whatever the data say. One that leads further out is stopped as by a clamp: let through,
    it would carry the raw value away, and as many steps would be needed to come back. Inside and
    outside are told for a loss to be minimised.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(raw, low, high):
        return raw.clamp(low, high)

    @staticmethod
    def setup_context(ctx, inputs, output):
        raw, ctx.low, ctx.high = inputs
        ctx.save_for_backward(raw)

    @staticmethod
    def backward(ctx, *gradients):
        (gradient,), (raw,) = gradients, ctx.saved_tensors
        further_out = ((raw < ctx.low) & (gradient > 0)) | ((raw > ctx.high) & (gradient < 0))
        return gradient.masked_fill(further_out, 0.0), None, None
