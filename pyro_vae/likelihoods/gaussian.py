"""The Gaussian likelihood."""

from __future__ import annotations

import math

import pyro.distributions as dist
from torch import Tensor

from pyro_vae.likelihoods.base import LikelihoodModule
from pyro_vae.likelihoods.location_scale import LocationScale, LocationScaleModule
from pyro_vae.part import Shapes


class Gaussian(LocationScale, name="gaussian"):
    """p(x|z) = N(x; decoder(z), sigma^2), constants kept: "L2 loss" is an honest log-likelihood.

    sigma: `fixed` at `scale`; one `learned` number; `per_pixel` (one learned number a pixel); or
    `predicted` by the decoder. A sigma that is not fixed stays at or above `floor`, in units of x
    (arXiv:2006.13202 on why it matters).
    """

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return GaussianModule(shapes, self)


class GaussianModule(LocationScaleModule):
    def density(self, loc, log_scale):
        return GaussianImage(loc, log_scale, len(self.shapes.data))


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
