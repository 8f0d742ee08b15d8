"""A mixture whose Gaussian densities are two matrix products instead of a [rows, C, L] array."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, constraints


class Mixture(TorchDistribution):
    r"""p(z) = \sum_c \pi_c p_c(z), \pi = softmax(logits).

    For Gaussian components the log density is linear in (z z', z),

        log N(z; m, P^{-1}) = -1/2 <P, z z'> + (P m)'z + const,

    so that N points and C components cost one product [N, F] x [F, C] with F = 2L (diagonal) or
    L(L+1)/2 + L (full) and no [N, C, L] array. The products are made in float64: z z', m z and
    m m' cancel to a few nats out of |z|^2 / scale^2, which float32 cannot hold for narrow
    components. Other component families are evaluated one by one through `log_prob`.

    Args:
        logits: `[C]`.
        components: a distribution with `batch_shape [C]` and `event_shape [L]`.
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    has_rsample = False

    def __init__(self, logits: Tensor, components: TorchDistribution, validate_args=None):
        if tuple(components.batch_shape) != tuple(logits.shape) or logits.dim() != 1:
            raise ValueError(
                f"mixture: logits {tuple(logits.shape)} and components with batch shape "
                f"{tuple(components.batch_shape)}; both must be [C]"
            )
        self.logits = logits
        self.components = components
        super().__init__(torch.Size(), components.event_shape, validate_args=validate_args)

    @property
    def support(self):
        return self.components.support

    def expand(self, batch_shape, _instance=None):
        # Densities and draws broadcast by themselves: only the shape is noted.
        new = self._get_checked_instance(type(self), _instance)
        new.logits, new.components = self.logits, self.components
        super(Mixture, new).__init__(torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        mean = self.logits.softmax(0) @ self.components.mean
        return mean.expand(self.batch_shape + self.event_shape)

    def sample(self, sample_shape=()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            which = Categorical(logits=self.logits).sample(shape)
            base = _base(self.components)
            if isinstance(base, Normal):
                noise = torch.randn_like(base.loc[which])
                return base.loc[which] + base.scale[which] * noise
            if isinstance(base, MultivariateNormal):
                noise = torch.randn_like(base.loc[which])
                tril = base.scale_tril[which]
                return base.loc[which] + (tril @ noise.unsqueeze(-1)).squeeze(-1)
            every = self.components.sample(shape)  # [*shape, C, L]
            index = which[..., None, None].expand(*shape, 1, self.event_shape[0])
            return every.gather(-2, index).squeeze(-2)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        value = value.expand(
            torch.broadcast_shapes(value.shape, self.batch_shape + self.event_shape)
        )
        log_weights = self.logits.log_softmax(0)
        natural = _natural_parameters(_base(self.components))
        if natural is None:
            each = self.components.log_prob(value.unsqueeze(-2))
            return torch.logsumexp(each + log_weights, -1)
        quadratic, linear, constant = natural
        z = value.double()
        if quadratic.shape[-1] == z.shape[-1]:
            squares = z * z
        else:
            rows, columns = torch.tril_indices(z.shape[-1], z.shape[-1], device=z.device)
            squares = z[..., rows] * z[..., columns]
        each = torch.cat([squares, z], -1) @ torch.cat([quadratic, linear], -1).T
        return torch.logsumexp(each + (constant + log_weights.double()), -1).to(value.dtype)


def _base(components):
    while isinstance(components, Independent):
        components = components.base_dist
    return components


def _natural_parameters(base) -> tuple[Tensor, Tensor, Tensor] | None:
    """(quadratic [C, F2], linear [C, L], constant [C]) in float64, or None for other families."""
    if isinstance(base, Normal):
        loc, scale = base.loc.double(), base.scale.double()
        precision = scale**-2
        linear = precision * loc
        log_norm = scale.log().sum(-1)
        quadratic = -0.5 * precision
    elif isinstance(base, MultivariateNormal):
        loc, tril = base.loc.double(), base.scale_tril.double()
        precision = torch.cholesky_inverse(tril)
        linear = (precision @ loc.unsqueeze(-1)).squeeze(-1)
        log_norm = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        rows, columns = torch.tril_indices(*precision.shape[-2:], device=loc.device)
        # Off-diagonal products z_i z_j stand twice in z'Pz.
        twice = torch.where(rows == columns, -0.5, -1.0).to(loc)
        quadratic = twice * precision[..., rows, columns]
    else:
        return None
    half_log_2pi = 0.5 * loc.shape[-1] * math.log(2 * math.pi)
    constant = -0.5 * (linear * loc).sum(-1) - log_norm - half_log_2pi
    return quadratic, linear, constant
