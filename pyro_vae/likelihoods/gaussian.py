"""The Gaussian likelihood, with its four ways to have a sigma."""

from __future__ import annotations

import math
from typing import Literal

import pyro.distributions as dist
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class Gaussian(Likelihood, name="gaussian"):
    """p(x|z) = N(x; decoder(z), sigma^2), constants kept: "L2 loss" is an honest log-likelihood.

    sigma: `fixed` at `scale`; one `learned` number; `per_pixel` (one learned number a pixel); or
    `predicted` by the decoder. A sigma that is not fixed stays at or above `floor`, in units of x
    (arXiv:2006.13202 on why it matters).
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

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return GaussianModule(shapes, self)


class GaussianModule(LikelihoodModule):
    def __init__(self, shapes: Shapes, spec: Gaussian):
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
            return GaussianImage(loc, self._bounded(raw, 10.0), event_dim)
        if self.sigma == "fixed":
            log_sigma = outputs.new_full((), math.log(self.scale))
        else:
            log_sigma = self._bounded(self.log_sigma).to(outputs)
        return GaussianImage(outputs, log_sigma.expand(self.shapes.data), event_dim)

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


class GaussianImage(dist.Independent):
    """log p(x) = -1/2 |(x - loc) / sigma|^2 - sum_d log sigma_d - D/2 log 2 pi.

    `log_sigma` is `[*data]`, or `[..., *data]` where each datum has its own. `Normal` would take a
    logarithm and a division for each pixel of each datum; what depends on sigma alone is computed
    once here (5,000 x 784, one thread: 0.3 ms in place of 1 to 3 compiled, 4 in place of 15 eager).
    """

    def __init__(self, loc: Tensor, log_sigma: Tensor, event_dim: int):
        self.log_sigma = log_sigma
        super().__init__(dist.Normal(loc, log_sigma.exp()), event_dim)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(GaussianImage, _instance)
        new.log_sigma = self.log_sigma  # it broadcasts by itself
        return super().expand(batch_shape, _instance=new)

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        pixels = tuple(range(-self.reinterpreted_batch_ndims, 0))
        ratio = (value - self.base_dist.loc) * (-self.log_sigma).exp()
        constant = 0.5 * self.event_shape.numel() * math.log(2 * math.pi)
        if self.log_sigma.dim() == len(pixels):  # one for all data
            return -0.5 * ratio.square().sum(pixels) - (self.log_sigma.sum() + constant)
        return (-0.5 * ratio.square() - self.log_sigma).sum(pixels) - constant


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
