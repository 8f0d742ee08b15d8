"""The logistic-normal distribution on the simplex."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.kl import register_kl

from pyro_vae.simplex import held


class LogisticNormal(TorchDistribution):
    r"""z = softmax(h), h ~ N(m, diag s^2), h in R^K.

    h is known from z up to a shift c, h = log z + c, which is integrated out. With w = s^{-2} and
    d_k = log z_k - m_k,

        log p(z) = -1/2 \sum_k w_k (d_k - \bar d)^2 - (K-1)/2 log 2 pi - \sum_k log s_k
                   - 1/2 log \sum_k w_k - \sum_k log z_k,   \bar d = \sum_k w_k d_k / \sum_k w_k,

    with respect to Lebesgue's measure on the first K - 1 coordinates, as torch's Dirichlet. The
    log-ratios log z_k / z_K are Gaussian with covariance diag(s_k^2) + s_K^2. Entries of
    draws below 1e-30 are held there. No mean in closed form.

    Args:
        loc: `[..., K]`, m. scale: `[..., K]`, s.
    References: Aitchison and Shen 1980, doi:10.1093/biomet/67.2.261; Srivastava and Sutton,
        arXiv:1703.01488.
    """

    arg_constraints: ClassVar = {
        "loc": constraints.real_vector,
        "scale": constraints.independent(constraints.positive, 1),
    }
    support = constraints.simplex
    has_rsample = True

    def __init__(self, loc: Tensor, scale: Tensor, validate_args=None):
        self.loc, self.scale = torch.broadcast_tensors(loc, scale)
        super().__init__(self.loc.shape[:-1], self.loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(LogisticNormal, _instance)
        shape = torch.Size(batch_shape) + self.event_shape
        new.loc, new.scale = self.loc.expand(shape), self.scale.expand(shape)
        super(LogisticNormal, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=()) -> Tensor:
        loc = self.loc.expand(self._extended_shape(sample_shape))
        return held((loc + self.scale * torch.randn_like(loc)).softmax(-1))

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        log_z = value.log()
        precision = self.scale.square().reciprocal()
        return (
            -0.5 * _spread(precision, log_z - self.loc)
            - 0.5 * (self.event_shape[0] - 1) * math.log(2 * math.pi)
            - self.scale.log().sum(-1)
            - 0.5 * precision.sum(-1).log()
            - log_z.sum(-1)
        )


def _spread(weights: Tensor, values: Tensor) -> Tensor:
    """sum_k w_k (d_k - mean)^2 around the weighted mean."""
    mean = (weights * values).sum(-1, keepdim=True) / weights.sum(-1, keepdim=True)
    return (weights * (values - mean).square()).sum(-1)


@register_kl(LogisticNormal, LogisticNormal)
def _kl(q: LogisticNormal, p: LogisticNormal) -> Tensor:
    """KL(q || p): of the log-ratios, which are Gaussian; the change of variables cancels."""
    w, v = p.scale.square().reciprocal(), q.scale.square()
    variance = (w * v).sum(-1) - (w.square() * v).sum(-1) / w.sum(-1)  # E_q of p's spread
    return (
        0.5 * (_spread(w, q.loc - p.loc) + variance - (q.event_shape[0] - 1))
        + (p.scale.log() - q.scale.log()).sum(-1)
        + 0.5 * (w.sum(-1).log() - v.reciprocal().sum(-1).log())
    )
