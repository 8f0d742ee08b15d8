"""Distributions of directions: unit vectors z in R^D.

Densities are with respect to the surface of the sphere S^(D-1), so that the uniform one is one over
its area, 2 pi^(D/2) / Gamma(D/2).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.constraints import sphere
from torch import Tensor
from torch.distributions import Dirichlet, constraints
from torch.distributions.kl import register_kl
from torch.nn.functional import normalize


def log_surface(dim: int) -> float:
    """log of the area of the unit sphere in R^D."""
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class SphericalUniform(TorchDistribution):
    """Every direction alike: p(z) = Gamma(D/2) / (2 pi^(D/2)).

    Args:
        like: `[..., D]`, a tensor whose shape, dtype and device draws take.
    """

    arg_constraints: ClassVar = {}
    support = sphere
    has_rsample = True

    def __init__(self, like: Tensor, validate_args=None):
        self.like = like
        super().__init__(like.shape[:-1], like.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        new.like = self.like.expand(torch.Size(batch_shape) + self.event_shape)
        super(SphericalUniform, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    def rsample(self, sample_shape=()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        return normalize(torch.randn(shape, dtype=self.like.dtype, device=self.like.device), dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return value.new_full(shape, -log_surface(self.event_shape[0]))

    @property
    def mean(self) -> Tensor:
        return torch.zeros_like(self.like)

    def entropy(self) -> Tensor:
        return self.like.new_full(self.batch_shape, log_surface(self.event_shape[0]))


class Rotational(TorchDistribution):
    """Directions that are symmetric around `loc`: p(z) is a function of the height t = mu'z.

        z = t mu + sqrt(1 - t^2) v,   v uniform among the unit vectors orthogonal to mu

    Draws are reparametrized. As mu turns, v turns with it in their common plane: this rotation
    carries p(z; mu) over to p(z; mu + d mu), so the gradient is unbiased, it has no singular
    direction, and its path is not that of a draw made anew from the same noise.

    A subclass writes `draw_ends` (a draw of the height), `log_density`, `mean_height`, `entropy`.

    Args:
        loc: `[..., D]`, unit vectors mu, D >= 2. concentration: `[...]`, kappa >= 0.
    """

    arg_constraints: ClassVar = {"loc": sphere, "concentration": constraints.nonnegative}
    support = sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor, validate_args=None):
        if loc.shape[-1] < 2:
            raise ValueError(f"loc has shape {tuple(loc.shape)}; directions need [..., D >= 2]")
        batch = torch.broadcast_shapes(loc.shape[:-1], concentration.shape)
        self.loc = loc.expand(*batch, loc.shape[-1])
        self.concentration = concentration.expand(batch)
        super().__init__(batch, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        new.loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        new.concentration = self.concentration.expand(batch_shape)
        super(Rotational, new).__init__(
            torch.Size(batch_shape), self.event_shape, validate_args=False
        )
        new._validate_args = self._validate_args
        return new

    @property
    def dim(self) -> int:
        """D."""
        return self.event_shape[0]

    def draw_ends(self, shape: torch.Size) -> tuple[Tensor, Tensor]:
        """A draw of (1 - t, 1 + t), float64 of that shape, differentiable in kappa."""
        raise NotImplementedError

    def log_density(self, near: Tensor, far: Tensor) -> Tensor:
        """log p, float64, where |z - mu|^2 = 2 (1 - t) is `near`, |z + mu|^2 = 2 (1 + t) `far`."""
        raise NotImplementedError

    def mean_height(self) -> Tensor:
        """E[t], float64."""
        raise NotImplementedError

    def rsample(self, sample_shape=()) -> Tensor:
        shape = self._extended_shape(sample_shape)
        down, up = (part.unsqueeze(-1) for part in self.draw_ends(shape[:-1]))
        loc = self.loc.expand(shape)
        with torch.no_grad():
            across = normalize(_orthogonal(torch.randn_like(loc), loc), dim=-1)
        # The same vector once more, and its turn with mu as gradient.
        across = _orthogonal(across, loc)
        tiny = torch.finfo(down.dtype).tiny  # the root has no slope at 0
        height, ring = (up - down) / 2, (up * down).clamp_min(tiny).sqrt()
        return normalize(height.to(loc.dtype) * loc + ring.to(loc.dtype) * across, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        # Differences keep digits of 1 -+ t that mu'z has lost, and forgive a rounded norm.
        near = (value - self.loc).square().sum(-1)
        far = (value + self.loc).square().sum(-1)
        return self.log_density(near.double(), far.double()).to(value.dtype)

    @property
    def mean(self) -> Tensor:
        return self.mean_height().to(self.loc.dtype).unsqueeze(-1) * self.loc


def _orthogonal(vector: Tensor, loc: Tensor) -> Tensor:
    return vector - loc * (vector * loc).sum(-1, keepdim=True)


class PowerSpherical(Rotational):
    r"""p(z) = N (1 + mu'z)^kappa (De Cao and Aziz, arXiv:2006.04437).

    With \alpha = (D - 1)/2 + \kappa and \beta = (D - 1)/2,

        1 / N = 2^{\alpha + \beta} \pi^\beta \Gamma(\alpha) / \Gamma(\alpha + \beta),

    and (1 + t)/2 ~ Beta(\alpha, \beta), which torch reparametrizes. E[z] = kappa / (kappa + D - 1)
    mu.
    """

    def _shapes(self) -> tuple[Tensor, Tensor]:
        kappa = self.concentration.double()  # lgamma of large numbers cancels
        beta = torch.full_like(kappa, (self.dim - 1) / 2)
        return beta + kappa, beta

    def draw_ends(self, shape):
        # Both ends of the Beta draw, each with digits of its own.
        ends = torch.stack(self._shapes(), -1).expand(*shape, 2)
        up, down = Dirichlet(ends, validate_args=False).rsample().unbind(-1)
        return 2 * down, 2 * up

    def log_density(self, near, far):
        tiny = torch.finfo(self.loc.dtype).tiny
        above = (-near.clamp(max=2.0) / 4).log1p()
        below = (far.clamp(min=tiny) / 4).log()
        return self.concentration.double() * torch.where(near < 2, above, below) + self.log_peak()

    def log_peak(self) -> Tensor:
        """log p at t = 1."""
        alpha, beta = self._shapes()
        return (
            (alpha + beta).lgamma() - alpha.lgamma() - beta * (math.log(math.pi) + 2 * math.log(2))
        )

    def mean_height(self):
        alpha, beta = self._shapes()
        return (alpha - beta) / (alpha + beta)

    def entropy(self) -> Tensor:
        """-E[log p], nats with respect to the surface."""
        alpha, beta = self._shapes()
        log_height = alpha.digamma() - (alpha + beta).digamma()  # E[log (1 + t)/2]
        kappa = self.concentration.double()
        return (-kappa * log_height - self.log_peak()).to(self.loc.dtype)


@register_kl(Rotational, SphericalUniform)
def _kl_to_uniform(q: Rotational, p: SphericalUniform) -> Tensor:
    """KL(q || p) = log area - H[q]."""
    kl = log_surface(q.dim) - q.entropy()
    return kl.expand(torch.broadcast_shapes(kl.shape, p.batch_shape))
