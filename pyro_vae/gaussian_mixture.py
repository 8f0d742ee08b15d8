"""A mixture of diagonal Gaussians for each datum, with reparametrized draws."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, constraints
from torch.nn.functional import pad


class DiagonalGaussianMixture(TorchDistribution):
    r"""q(z) = \sum_c w_c N(z; m_c, diag s_c^2), w = softmax(logits).

    Draws are reparametrized implicitly (arXiv:1805.08498, section 4.2). The distribution functions
    F_l(z) = P(z_l | z_1, ..., z_{l-1}) of a draw are uniform whatever the parameters, so

        dz = - (dF/dz)^{-1} dF,

    dF by the parameters at fixed z; dF/dz is lower triangular, with the conditional densities on
    its diagonal. Gradients are of first order only. Between components far apart dF/dz is small and
    the gradient's variance large.

    Args:
        logits: `[..., C]`.
        loc, scale: `[..., C, L]`, positive scales.
    """

    arg_constraints: ClassVar = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor, validate_args=None):
        if not logits.shape == loc.shape[:-1] == scale.shape[:-1]:
            raise ValueError(
                f"mixture: logits {tuple(logits.shape)}, loc {tuple(loc.shape)} and scale "
                f"{tuple(scale.shape)}; expected [..., C], [..., C, L] and [..., C, L]"
            )
        self.logits, self.loc, self.scale = logits, loc, scale
        super().__init__(logits.shape[:-1], loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        batch_shape = torch.Size(batch_shape)
        new.logits = self.logits.expand(batch_shape + self.logits.shape[-1:])
        new.loc = self.loc.expand(batch_shape + self.loc.shape[-2:])
        new.scale = self.scale.expand(batch_shape + self.scale.shape[-2:])
        super(DiagonalGaussianMixture, new).__init__(
            batch_shape, self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return (self.logits.softmax(-1).unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        second = self.scale.square() + (self.loc - self.mean.unsqueeze(-2)).square()
        return (self.logits.softmax(-1).unsqueeze(-1) * second).sum(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        each = self._standard(value)[1].sum(-1)
        return torch.logsumexp(self.logits.log_softmax(-1) + each, -1)

    def rsample(self, sample_shape=()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            which = Categorical(logits=self.logits, validate_args=False).sample(sample_shape)
            index = which[..., None, None].expand(*shape, 1, *self.event_shape)
            loc, scale = (
                part.expand(shape + part.shape[-2:]).gather(-2, index).squeeze(-2)
                for part in (self.loc, self.scale)
            )
            z = loc + scale * torch.randn_like(loc)
        return self._reparametrized(z) if torch.is_grad_enabled() else z

    def _standard(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(z_l - m_cl) / s_cl, and the log-density of z_l under c; both `[..., C, L]`."""
        u = (z.unsqueeze(-2) - self.loc) / self.scale
        return u, -0.5 * u.square() - self.scale.log() - 0.5 * math.log(2 * math.pi)

    def _reparametrized(self, z: Tensor) -> Tensor:
        """The same values, with the gradient of the implicit path."""
        u, log_each = self._standard(z)
        before = pad(log_each.cumsum(-1)[..., :-1], (1, 0))  # of z_1, ..., z_{l-1}
        weight = (self.logits.unsqueeze(-1) + before).softmax(-2)  # of c, given these
        below = torch.special.ndtr(u)
        cdf = (weight * below).sum(-2)
        with torch.no_grad():
            # d weight_cl / dz_j = weight_cl (a_cj - sum_c weight_cl a_cj), a = d log N_c / dz_j
            slope = -u / self.scale
            apart = weight * (below - cdf.unsqueeze(-2))
            jacobian = (apart.mT @ slope).tril(-1)
            jacobian = jacobian + torch.diag_embed((weight * log_each.exp()).sum(-2))
        # Of value 0: only its gradient counts.
        change = (cdf - cdf.detach()).unsqueeze(-1)
        return z - torch.linalg.solve_triangular(jacobian, change, upper=False).squeeze(-1)
