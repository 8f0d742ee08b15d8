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

    Without gradients, most logarithms of the softplus become products. With a = |l|,

        x l - softplus(l) = (x - 1/2) l - a/2 + log sigmoid(a),

    and sigmoid(a) lies in [1/2, 1], so that one logarithm serves up to 64 factors: 2^-64 is far
    from underflow. Compiled, 5,000 x 784 logits take 2.2 ms in place of 5.9 (one thread); in eager
    mode neither form is clearly faster. The error stays near that of the plain form: each factor
    adds at most half a float32 ulp of 1, so 3e-5 nats at D = 784 where every pixel is certain and
    the sum is near 0. With gradients the plain form is used: the backward pass of a product is
    not traceable.
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
        # Exact for a certain pixel. In place: in eager mode, time is what memory takes.
        linear = ((x - 0.5) * logits).sub_(size, alpha=0.5).sum(-1)
        return linear + _sum_of_logs(size.sigmoid_())


def _sum_of_logs(factors: Tensor) -> Tensor:
    """sum_d log f_d of `[..., D]` factors in [1/2, 1]: the log of products of up to 64."""
    count = factors.shape[-1]
    width = 16 * math.ceil(count / (16 * 64))  # products side by side, in whole vectors
    groups = count // width
    grouped, rest = factors.tensor_split([groups * width], -1)
    total = grouped.unflatten(-1, (groups, width)).prod(-2).log().sum(-1)
    return total + rest.log().sum(-1) if rest.shape[-1] else total
