"""A mixture whose Gaussian densities are matrix products instead of a [rows, C, L] array."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import MultivariateNormal, TorchDistribution
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, constraints
from torch.nn import functional

# Whitened numbers held at once: 2^19 float64 are 4 MiB, which stay in a processor's cache.
SLICE_NUMBERS = 2**19


class Mixture(TorchDistribution):
    r"""p(z) = \sum_c \pi_c p_c(z), \pi = softmax(logits).

    A diagonal Gaussian's log density is linear in (z^2, z),

        log N(z; m, diag s^2) = -1/2 s^{-2}'z^2 + (s^{-2} m)'z + const,

    so that N points and C components cost one product [N, 2L] x [2L, C] and no [N, C, L] array. A
    full one is whitened, |T^{-1} z - T^{-1} m|^2: one product [N, L] x [L, C L] in slices of
    components; the same trick with T^{-1}'T^{-1} would square the condition number of T. The
    products are made in float64: s^{-2} z^2, z m and m^2 cancel to a few nats, which float32
    cannot hold for narrow components. Other families are evaluated through `log_prob`.

    Args:
        logits: `[..., C]`: weights of the same components, for each of a batch.
        components: a distribution with `batch_shape [C]` and `event_shape [L]`.
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    has_rsample = False

    def __init__(self, logits: Tensor, components: TorchDistribution, validate_args=None):
        if tuple(components.batch_shape) != tuple(logits.shape[-1:]):
            raise ValueError(
                f"mixture: logits {tuple(logits.shape)} and components with batch shape "
                f"{tuple(components.batch_shape)}; the last dimension of logits and the batch "
                "shape of components: both must be [C]"
            )
        self.logits = logits
        self.components = components
        batch_shape = logits.shape[:-1]
        super().__init__(batch_shape, components.event_shape, validate_args=validate_args)

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
        mean = self.logits.softmax(-1) @ self.components.mean
        return mean.expand(self.batch_shape + self.event_shape)

    def sample(self, sample_shape=()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            several = shape[: len(shape) - self.logits.dim() + 1]
            which = Categorical(logits=self.logits).sample(several)
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
        base = _base(self.components)
        if isinstance(base, Normal):
            each = _diagonal(value.double(), base.loc.double(), base.scale.double())
        elif isinstance(base, MultivariateNormal):
            each = _full(value.double(), base.loc.double(), base.scale_tril.double())
        else:
            each = self.components.log_prob(value.unsqueeze(-2))
        log_weights = self.logits.log_softmax(-1).to(each.dtype)
        return torch.logsumexp(each + log_weights, -1).to(value.dtype)


def _base(components):
    while isinstance(components, Independent):
        components = components.base_dist
    return components


def _diagonal(z: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
    """log N(z; loc_c, diag scale_c^2) `[..., C]` of z `[..., L]`."""
    precision = scale**-2
    linear = precision * loc
    constant = -0.5 * (linear * loc).sum(-1) - scale.log().sum(-1) - _half_log_2pi(loc)
    return functional.linear(
        torch.cat([z * z, z], -1), torch.cat([-0.5 * precision, linear], -1), constant
    )


def _full(z: Tensor, loc: Tensor, tril: Tensor) -> Tensor:
    """log N(z; loc_c, T_c T_c') `[..., C]` of z `[..., L]`."""
    dim = loc.shape[-1]
    eye = torch.eye(dim, dtype=tril.dtype, device=tril.device)
    whiten = torch.linalg.solve_triangular(tril, eye, upper=False)  # [C, L, L]
    shift = (whiten @ loc.unsqueeze(-1)).squeeze(-1)
    constant = -tril.diagonal(dim1=-2, dim2=-1).log().sum(-1) - _half_log_2pi(loc)
    maps = torch.cat([whiten, -shift.unsqueeze(-1)], -1)  # [C, L, L + 1]
    z = torch.cat([z, torch.ones_like(z[..., :1])], -1)
    per_slice = max(1, SLICE_NUMBERS // (z.numel() // (dim + 1) * dim))
    each = []
    for part in maps.split(per_slice):
        white = z @ part.flatten(0, 1).T  # [..., c L]
        each.append(white.unflatten(-1, (len(part), dim)).square().sum(-1))
    return -0.5 * torch.cat(each, -1) + constant


def _half_log_2pi(loc: Tensor) -> float:
    return 0.5 * loc.shape[-1] * math.log(2 * math.pi)
