"""The multinomial likelihood for bags of words."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class Multinomial(Likelihood, name="multinomial"):
    """p(x|z) = n! prod_v p_v^x_v / x_v!, p = softmax(decoder(z)), n = sum_v x_v given.

    Words of a document (arXiv:1703.01488); its length n is not modelled, and documents that the
    model draws have the mean length of the training data.
    """

    support = "count"

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return MultinomialModule(shapes)


class MultinomialModule(LikelihoodModule):
    support = "count"
    length: Tensor

    def __init__(self, shapes: Shapes):
        super().__init__(shapes)
        self.register_buffer("length", torch.tensor(100.0))

    def forward(self, outputs):
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # under autocast
        return BagOfWords(outputs, self.length, len(self.shapes.data))

    @torch.no_grad()
    def initialize(self, x):
        self.length.copy_(x.flatten(1).sum(1).mean())

    def initial_output(self, x):
        count = x.float().sum(0)
        return (count + 0.1).log() - (count + 0.1).sum().log()


class BagOfWords(dist.TorchDistribution):
    """Of counts `[..., *data]` with a total of their own: `logits` alike, softmaxed over data."""

    arg_constraints: ClassVar = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, logits: Tensor, length: Tensor, event_dim: int, validate_args=None):
        self.length, self._event_dim = length, event_dim
        flat = logits.flatten(-event_dim)
        self.log_p = flat.log_softmax(-1).reshape(logits.shape)
        cut = logits.dim() - event_dim
        super().__init__(logits.shape[:cut], logits.shape[cut:], validate_args=False)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(BagOfWords, _instance)
        new.length, new._event_dim = self.length, self._event_dim
        new.log_p = self.log_p.expand(torch.Size(batch_shape) + self.event_shape)
        super(BagOfWords, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        words = tuple(range(-self._event_dim, 0))
        ways = torch.lgamma(value.sum(words) + 1) - torch.lgamma(value + 1).sum(words)
        return ways + (value * self.log_p).sum(words)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
            flat = self.log_p.flatten(-self._event_dim)
            total = int(self.length.round())
            drawn = torch.distributions.Multinomial(total, logits=flat).sample(sample_shape)
            return drawn.reshape(shape)

    @property
    def mean(self) -> Tensor:
        return self.length * self.log_p.exp()
