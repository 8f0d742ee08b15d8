"""A Gaussian likelihood whose pixels are correlated."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class GaussianCovariance(Likelihood, name="gaussian_covariance"):
    """p(x|z) = N(x; decoder(z), F F' + diag s^2), F of `rank` columns (arXiv:1802.07079).

    `rank` "full" takes a lower triangular factor in place of F and s. The covariance is `learned`,
    one for all data, or `predicted` by the decoder. s stays at or above `floor`, in units of x.
    """

    rank: PositiveInt | Literal["full"] = 4
    covariance: Literal["learned", "predicted"] = "learned"
    floor: float = Field(default=1e-2, gt=0)

    def columns(self, num_pixels: int) -> int:
        """Numbers a pixel beside the location."""
        return num_pixels if self.rank == "full" else 1 + self.rank

    def param_shape(self, data_shape):
        if self.covariance == "learned":
            return data_shape
        return (1 + self.columns(math.prod(data_shape)), *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return GaussianCovarianceModule(shapes, self)


class GaussianCovarianceModule(LikelihoodModule):
    def __init__(self, shapes: Shapes, spec: GaussianCovariance):
        super().__init__(shapes)
        self.full, self.floor = spec.rank == "full", spec.floor
        self.covariance = spec.covariance
        if spec.covariance == "learned":
            columns = spec.columns(shapes.num_pixels)
            self.raw = nn.Parameter(0.01 * torch.randn(columns, shapes.num_pixels))

    def forward(self, outputs):
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # under autocast
        event_dim = len(self.shapes.data)
        if self.covariance == "learned":
            loc, raw = outputs.flatten(-event_dim), self.raw.to(outputs)
        else:
            flat = outputs.flatten(-event_dim)  # [..., 1 + columns, D]
            loc, raw = flat[..., 0, :], flat[..., 1:, :]
        raw = raw.transpose(-1, -2)  # [..., D, columns]
        if self.full:
            scale = self._scale(raw.diagonal(dim1=-2, dim2=-1))
            tril = raw.tril(-1) * scale.unsqueeze(-1) + torch.diag_embed(scale)
            flat = dist.MultivariateNormal(loc, scale_tril=tril)
        else:
            scale = self._scale(raw[..., 0])
            flat = dist.LowRankMultivariateNormal(loc, raw[..., 1:], scale.square())
        return Shaped(flat, self.shapes.data)

    def _scale(self, raw: Tensor) -> Tensor:
        return raw.clamp(math.log(self.floor), 10.0).exp()

    def _start(self, x: Tensor) -> Tensor:
        """log sd of each pixel without z, `[D]`."""
        return x.flatten(1).std(0, correction=0).clamp_min(self.floor).log()

    @torch.no_grad()
    def initialize(self, x):
        if self.covariance == "learned":
            start = self._start(x)
            if self.full:
                self.raw.diagonal().copy_(start)
            else:
                self.raw[0].copy_(start)

    def initial_output(self, x):
        mean = x.mean(0)
        if self.covariance == "learned":
            return mean
        return None  # a bias for each number of a covariance would start all data alike


class Shaped(dist.TorchDistribution):
    """A distribution over vectors `[D]`, of data of another shape."""

    arg_constraints: ClassVar = {}

    def __init__(self, flat, shape, validate_args=None):
        self.flat = flat
        super().__init__(flat.batch_shape, torch.Size(shape), validate_args=False)

    @constraints.dependent_property
    def support(self):
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def has_rsample(self):  # type: ignore[override]
        return self.flat.has_rsample

    def expand(self, batch_shape, _instance=None):
        return Shaped(self.flat.expand(batch_shape), self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.flat.log_prob(value.flatten(-len(self.event_shape)))

    def rsample(self, sample_shape=()) -> Tensor:
        return self.flat.rsample(sample_shape).unflatten(-1, self.event_shape)

    def sample(self, sample_shape=()) -> Tensor:
        return self.flat.sample(sample_shape).unflatten(-1, self.event_shape)

    @property
    def mean(self) -> Tensor:
        return self.flat.mean.unflatten(-1, self.event_shape)
