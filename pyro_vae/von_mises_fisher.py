"""The von Mises-Fisher distribution of directions."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Beta
from torch.distributions.kl import register_kl

from pyro_vae.bessel import log_mgf, mean_height
from pyro_vae.spherical import Rotational, SphericalUniform, log_surface

# Each proposal is taken with a probability above 0.65, so that none is with one below 3e-15.
NUM_PROPOSALS = 32
NUM_NODES = 64
WIDTHS = 12.0  # standard deviations beyond which the integrand is below 1e-15


class VonMisesFisher(Rotational):
    r"""p(z) = C exp(kappa mu'z), 1/C = (2 pi)^{D/2} I_{D/2-1}(kappa) / kappa^{D/2-1}.

    The Gaussian of the sphere. Heights are drawn by Wood's rejection sampler: `NUM_PROPOSALS` at
    once, of which one that is accepted is taken, so that no value reaches Python. All are rejected
    with probability below 3e-15 a draw, about the rounding of float64; then a rejected one is
    taken.

    The gradient of the height in kappa is implicit, through its distribution function F:

        dt/dkappa = -dF/dkappa / p(t),   dF/dkappa = int_{-1}^t (s - E[t]) p(s) ds,

    by Gauss and Legendre's rule (arXiv:1805.08498); unlike that of the accepted proposal, it needs
    no correction for the acceptance.

    References: Davidson et al., arXiv:1804.00891; Wood 1994, doi:10.1080/03610919408813161.
    """

    def draw_ends(self, shape):
        kappa = self.concentration.double().expand(shape)
        with torch.no_grad():
            down = self._accepted(kappa)
        if torch.is_grad_enabled() and kappa.requires_grad:
            with torch.no_grad():
                slope = fall_slope(self.dim, kappa, down)
            down = down + slope * (kappa - kappa.detach())
        return down, 2 - down

    def _accepted(self, kappa: Tensor) -> Tensor:
        """A draw of 1 - t."""
        half = torch.full_like(kappa, (self.dim - 1) / 2)
        y = Beta(half, half, validate_args=False).sample((NUM_PROPOSALS,))
        fall, log_accept = proposed(self.dim, kappa, y)
        accepted = torch.rand_like(y).log() <= log_accept
        # Which of those accepted does not matter, as long as their values have no say in it.
        chosen = accepted.to(torch.uint8).argmax(0, keepdim=True)
        return fall.gather(0, chosen).squeeze(0).clamp_min(torch.finfo(fall.dtype).tiny)

    def log_density(self, near, far):
        kappa = self.concentration.double()
        return -kappa * near / 2 + self.log_peak()

    def log_peak(self) -> Tensor:
        """log p at t = 1."""
        kappa = self.concentration.double()
        return kappa - log_mgf(self.dim, kappa) - log_surface(self.dim)

    def mean_height(self):
        return mean_height(self.dim, self.concentration)

    def entropy(self) -> Tensor:
        """-E[log p], nats with respect to the surface."""
        kappa = self.concentration.double()
        return (kappa * (1 - self.mean_height()) - self.log_peak()).to(self.loc.dtype)


def proposed(dim: int, kappa: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Wood's proposal 1 - t made of y ~ Beta((D-1)/2, (D-1)/2), and log of its acceptance."""
    wide = dim - 1
    b = wide / (2 * kappa + (4 * kappa.square() + wide**2).sqrt())
    rest = 1 - (1 - b) * y
    fall = 2 * b * y / rest
    return fall, kappa * (2 * b / (1 + b) - fall) + wide * ((1 + b) / (2 * rest)).log()


def fall_slope(dim: int, kappa: Tensor, fall: Tensor) -> Tensor:
    r"""d(1 - t)/dkappa at a draw, with F(t) held: int (s - E[t]) p(s) ds / p(t) over s < t.

    The integral over s > t is its negative; the side that t lies on is taken, where no two terms
    cancel. In angles, s = cos a, its integrand is smooth for every D:

        |cos a - E[t]| (sin a / sin a_t)^(D-2) exp(kappa (cos a - cos a_t)) sin a_t.
    """
    nodes, weights = _legendre(NUM_NODES, kappa.device)
    angle = 2 * (fall / 2).clamp(max=1.0).sqrt().asin()
    mean_fall = 1 - mean_height(dim, kappa)
    reach = WIDTHS * (kappa + dim - 1).rsqrt()
    inward = fall < mean_fall
    length = torch.where(inward, torch.minimum(angle, reach), torch.minimum(math.pi - angle, reach))
    step = torch.where(inward, -length, length).unsqueeze(-1)
    angles = angle.unsqueeze(-1) + step * nodes
    falls = 2 * (angles / 2).sin().square()
    log_ratio = (dim - 2) * (angles.sin() / angle.sin().unsqueeze(-1)).log()
    log_ratio = log_ratio + kappa.unsqueeze(-1) * (fall.unsqueeze(-1) - falls)
    away = (mean_fall.unsqueeze(-1) - falls).abs()
    return -angle.sin() * length * (away * log_ratio.exp() * weights).sum(-1)


@cache
def _legendre(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], float64."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return torch.from_numpy((nodes + 1) / 2).to(device), torch.from_numpy(weights / 2).to(device)


@register_kl(Rotational, VonMisesFisher)
def _kl_to_von_mises_fisher(q: Rotational, p: VonMisesFisher) -> Tensor:
    """KL(q || p) = -H[q] - E_q[log p], with 1 - mu_p'E_q[z] from differences."""
    height, apart = q.mean_height(), (q.loc - p.loc).square().sum(-1).double()
    fall = (1 - height) + height * apart / 2
    cross = p.concentration.double() * fall - p.log_peak()
    return (cross - q.entropy()).to(q.loc.dtype)


@register_kl(SphericalUniform, VonMisesFisher)
def _kl_from_uniform(q: SphericalUniform, p: VonMisesFisher) -> Tensor:
    """KL(q || p) = log E_q[exp(kappa mu'z)]."""
    kl = log_mgf(p.dim, p.concentration).to(p.loc.dtype)
    return kl.expand(torch.broadcast_shapes(kl.shape, q.batch_shape))
