"""The Gaussian likelihood."""

from __future__ import annotations

import math
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.likelihoods.base import LikelihoodModule
from pyro_vae.likelihoods.location_scale import LocationScale, LocationScaleModule, Sigma
from pyro_vae.part import Shapes


class Gaussian(LocationScale, name="gaussian"):
    """p(x|z) = N(x; decoder(z), sigma^2), constants kept: "L2 loss" is an honest log-likelihood.

    sigma: `fixed` at `scale`; one `learned` number; `per_pixel` (one learned number a pixel);
    `predicted` by the decoder; or `optimal`, in closed form. A sigma that is not fixed stays at or
    above `floor`, in units of x (arXiv:2006.13202 on why it matters).

    Optimal: sigma^2 is the mean squared error of the batch in training, and of all training data
    in evaluation, once `finalize` has set it. Until then evaluation uses one learned number that
    follows by its gradient, and `warnings` says so: sigma is never fitted to the data it scores.
    Where training sums over labels or codes it uses that number, too: a mean over all of their
    values would count those that are next to impossible.
    """

    sigma: Literal[Sigma, "optimal"] = "learned"  # type: ignore[assignment]

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return GaussianModule(shapes, self)


class GaussianModule(LocationScaleModule):
    finalized: Tensor

    def __init__(self, shapes: Shapes, spec: Gaussian):
        super().__init__(shapes, spec)
        self.by_batch = spec.sigma == "optimal"
        if spec.sigma == "optimal":
            self.register_buffer("finalized", torch.tensor(False))

    def bind(self, vae) -> None:
        if vae.spec.label == "latent" or vae.guide_module.infer():
            self.by_batch = False

    def density(self, loc, log_scale):
        if self.by_batch and self.training:
            return OptimalImage(loc, log_scale, self.event_dim, self.floor)
        return GaussianImage(loc, log_scale, self.event_dim)

    def marginal(self, p, mask):
        if isinstance(p, OptimalImage):
            return p.marked(mask)
        return super().marginal(p, mask)

    @torch.no_grad()
    def finalize(self, batches):
        if self.sigma != "optimal":
            return
        total, count = 0.0, 0.0
        for outputs, x, mask in batches:
            square = (x - outputs).double().square()
            kept = torch.ones_like(square) if mask is None else mask.double().expand_as(square)
            total, count = total + (kept * square).sum(), count + kept.sum()
        self.log_sigma.copy_((total / count).sqrt().clamp_min(self.floor).log())
        self.finalized.fill_(True)

    def warnings(self, outputs=None):
        said = super().warnings(outputs)
        if self.sigma == "optimal" and not self.finalized:
            said.append(
                "sigma follows its optimum by gradient steps only: finalize(...) after training "
                "sets it in closed form"
            )
        return said


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


class OptimalImage(dist.Independent):
    """N(x; loc, s^2) with s^2 the mean of (x - loc)^2 over all values given, in training.

    s maximises the sum of these log-densities, so that its own derivative is 0 there: it is held
    constant, and the gradient is that of the maximum. `log_sigma` changes no value; its gradient is
    that of log N(x; loc, sigma^2), so that it follows s for the evaluation.
    """

    def __init__(self, loc, log_sigma, event_dim: int, floor: float, mask: Tensor | None = None):
        self.log_sigma, self.floor, self.kept = log_sigma, floor, mask
        super().__init__(dist.Normal(loc, log_sigma.exp()), event_dim)

    def expand(self, batch_shape, _instance=None):
        loc = self.base_dist.loc.expand(torch.Size(batch_shape) + self.event_shape)
        return OptimalImage(
            loc, self.log_sigma, self.reinterpreted_batch_ndims, self.floor, self.kept
        )

    def marked(self, mask: Tensor) -> OptimalImage:
        """That of the values that `mask [..., *data]` marks: s, too, is theirs."""
        event_dim = self.reinterpreted_batch_ndims
        return OptimalImage(self.base_dist.loc, self.log_sigma, event_dim, self.floor, mask.bool())

    def log_prob(self, value):
        deviation = value - self.base_dist.loc
        if self.kept is None:
            mean_square = deviation.detach().square().mean()
        else:
            deviation = torch.where(self.kept, deviation, 0.0)
            count = self.kept.expand(deviation.shape).sum()
            mean_square = deviation.detach().square().sum() / count.clamp_min(1)
        fitted = 0.5 * mean_square.clamp_min(self.floor**2).log()
        follows = self._sum(deviation.detach(), self.log_sigma)
        return self._sum(deviation, fitted) + (follows - follows.detach())

    def _sum(self, deviation: Tensor, log_sigma: Tensor) -> Tensor:
        ratio = deviation * (-log_sigma).exp()
        each = -0.5 * ratio.square() - log_sigma - 0.5 * math.log(2 * math.pi)
        kept = each if self.kept is None else torch.where(self.kept, each, 0.0)
        return kept.sum(tuple(range(-self.reinterpreted_batch_ndims, 0)))
