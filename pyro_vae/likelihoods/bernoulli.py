"""The Bernoulli likelihood for binary data."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class Bernoulli(Likelihood, name="bernoulli"):
    """p(x|z) = prod_d p_d^x_d (1 - p_d)^(1 - x_d), p = sigmoid(decoder(z)); x in {0, 1}."""

    support = "binary"

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return BernoulliModule(shapes)


class BernoulliModule(LikelihoodModule):
    support = "binary"

    def forward(self, outputs):
        return BinaryImage(dist.Bernoulli(logits=outputs), len(self.shapes.data))

    def initial_output(self, x):
        # Burda et al. (arXiv:1509.00519): logit of the mean image, clipped.
        return x.float().mean(0).clamp(0.001, 0.999).logit()


class BinaryImage(dist.Independent):
    """log p(x) = sum_d x_d l_d - softplus(l_d), summed in float32 or better.

    Without gradients, most of the softplus becomes products. With a = |l|,

        x l - softplus(l) = (x - 1/2) l - a/2 + log sigmoid(a),

    and sigmoid(a) lies in [1/2, 1], so that one logarithm serves up to 64 factors (2^-64 is far
    from underflow). Compiled, that takes 2.2 ms where the plain form takes 5.9 (5,000 x 784,
    one thread); in eager mode they are equal. Each factor is rounded by itself, which costs at
    most D/2 float32 ulp of 1: 2e-5 nats at D = 784 where all is certain, and less than the
    rounding of the sum elsewhere. Gradients of the plain form are cheaper and always traceable.
    """

    def log_prob(self, value):
        if self._validate_args:
            self._validate_sample(value)
        axes = self.reinterpreted_batch_ndims
        logits = self.base_dist.logits.flatten(-axes)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # under autocast
        x = value.flatten(-axes)
        if torch.is_grad_enabled() and logits.requires_grad:
            return (x * logits - softplus(logits)).sum(-1)
        size = logits.abs()
        linear = ((x - 0.5) * logits).sub_(size, alpha=0.5)  # exact for a certain pixel
        return linear.sum(-1) + _sum_of_logs(size.sigmoid())


def _sum_of_logs(factors: Tensor) -> Tensor:
    """sum_d log f_d of `[..., D]` factors in [1/2, 1]: the log of products of up to 64."""
    count = factors.shape[-1]
    width = 16 * math.ceil(count / (16 * 64))  # products side by side, in whole vectors
    groups = count // width
    grouped, rest = factors.tensor_split([groups * width], -1)
    total = grouped.unflatten(-1, (groups, width)).prod(-2).log().sum(-1)
    return total + rest.log().sum(-1) if rest.shape[-1] else total
