"""An encoder of sets of counts: words of a document, genes of a cell."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pyro_vae.networks.mlp import MLP


class Counts(MLP, name="counts"):
    """An MLP of log(1 + x) and x / sum x side by side: how many of each, and of which share.

    For encoders of counts, whose sizes differ by orders of magnitude (log1p as in Lopez et al.
    2018, Nature Methods 15; shares as in arXiv:1703.01488).
    """

    def build(self, in_shape, out_shape) -> nn.Module:
        return nn.Sequential(CountFeatures(), super().build((2 * math.prod(in_shape),), out_shape))


class CountFeatures(nn.Module):
    """Counts `[n, ...]` to features `[n, 2 D]`."""

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        # By size: a decoder's inputs, which may be negative, give finite features, too.
        size = x.abs()
        share = x / size.sum(1, keepdim=True).clamp_min(1.0)
        return torch.cat([x.sign() * torch.log1p(size), share], 1)
