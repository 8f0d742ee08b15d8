"""A decoder of proportions of topics: a mixture of their distributions of words."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_vae.networks.base import Network

LEAST = 1e-30  # of a word's probability: as small as proportions are held


class Topics(Network, name="topics"):
    """log sum_k z_k softmax(b + w_k): topics are mixed, as in LDA (Blei et al. 2003, JMLR 3:993).

    For a latent on the simplex and `multinomial` counts: topic k is the distribution
    softmax(b + w_k) of words, z_k its share of the document. `linear` multiplies topics instead,
    softmax(b + sum_k z_k w_k) (ProdLDA, arXiv:1703.01488). Of inputs that are no proportions it
    takes the sizes.
    """

    def build(self, in_shape, out_shape) -> nn.Module:
        return nn.Sequential(nn.Flatten(), Mixed(math.prod(in_shape), math.prod(out_shape)))


class Mixed(nn.Module):
    """Proportions `[n, K]` to log-probabilities `[n, V]`. `weight [V, K]`, `bias [V]`.

    Topics that begin alike share the same documents for long, and some stay merged; so w ~ N(0, 1).
    """

    def __init__(self, num_topics: int, num_words: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_words, num_topics))
        self.bias = nn.Parameter(torch.zeros(num_words))

    def forward(self, z: Tensor) -> Tensor:
        topics = (self.weight + self.bias.unsqueeze(1)).softmax(0)
        return (z.abs() @ topics.T).clamp_min(LEAST).log()
