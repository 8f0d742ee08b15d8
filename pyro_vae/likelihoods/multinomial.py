"""The multinomial likelihood for bags of words."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.marked import MarkedSupport
from pyro_vae.part import Shapes


class Multinomial(Likelihood, name="multinomial"):
    """p(x|z) = n! prod_v p_v^x_v / x_v!, p = softmax(decoder(z)), n = sum_v x_v given.

    Words of a document (arXiv:1703.01488). Its length n is not modelled but read off x, so that
    documents that the model draws have the mean length of the training data. Where counts are
    missing, n is that of the others, and p is that of their words over its sum: what the whole
    document says of them, given n.
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
        return BagOfWords(self.precise(outputs), self.length, self.event_dim)

    def marginal(self, p, mask):
        return p.marked(mask)

    @torch.no_grad()
    def initialize(self, x):
        self.length.copy_(x.flatten(1).sum(1).mean())

    def initial_output(self, x):
        return (x.float().mean(0) + 1e-3).log()


class BagOfWords(TorchDistribution):
    """Counts `[..., *data]` whose total is that of each x; words that `mask` leaves out are 0.

    `logits [..., *data]` are softmaxed over the words; draws have `length` words.
    """

    arg_constraints: ClassVar = {}

    def __init__(self, logits: Tensor, length: Tensor, event_dim: int, mask: Tensor | None = None):
        self.logits, self.length, self.kept = logits, length, mask
        shape = logits.shape if mask is None else torch.broadcast_shapes(logits.shape, mask.shape)
        cut = len(shape) - event_dim
        super().__init__(shape[:cut], shape[cut:], validate_args=False)

    @constraints.dependent_property(is_discrete=True)
    def support(self):
        if self.kept is not None:
            return MarkedSupport(constraints.nonnegative_integer, self.kept, self.event_dim, 0.0)
        return constraints.independent(constraints.nonnegative_integer, self.event_dim)

    def expand(self, batch_shape, _instance=None):
        logits = self.logits.expand(torch.Size(batch_shape) + self.event_shape)
        return BagOfWords(logits, self.length, self.event_dim, self.kept)

    def marked(self, mask: Tensor) -> BagOfWords:
        """The words that `mask [..., *data]` marks, given how many they are."""
        return BagOfWords(self.logits, self.length, self.event_dim, mask.bool())

    @property
    def _log_p(self) -> Tensor:
        """log p of each word, float64; of those left out, one that nothing is multiplied with."""
        logits = self.logits.double()
        if self.kept is not None:
            logits = torch.where(self.kept, logits, -1e3)
        return logits.flatten(-self.event_dim).log_softmax(-1).unflatten(-1, self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        # In float64: log n! cancels with the rest.
        words, x = tuple(range(-self.event_dim, 0)), value.double()
        if self.kept is not None:
            x = torch.where(self.kept, x, 0.0)
        ways = torch.lgamma(x.sum(words) + 1) - torch.lgamma(x + 1).sum(words)
        return (ways + (x * self._log_p).sum(words)).to(self.logits.dtype)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            shape = torch.Size(sample_shape) + self.batch_shape + self.event_shape
            logits = self._log_p.flatten(-self.event_dim)
            total = int(self.length.round())
            drawn = torch.distributions.Multinomial(total, logits=logits).sample(sample_shape)
            return drawn.reshape(shape).to(self.logits.dtype)

    @property
    def mean(self) -> Tensor:
        return self.length * self._log_p.exp().to(self.logits.dtype)
