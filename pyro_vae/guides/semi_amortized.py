"""The semi-amortized guide: the encoder's start, refined on the datum's own bound."""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pyro_vae.given import Given
from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.guides.mean_field import MeanFieldModule
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes

FARTHEST = 3.0  # scales s that one step moves m by, at the most


class SemiAmortized(Guide, name="semi_amortized"):
    """q(z|x) = N(m_k, diag s_k^2), k = `steps` natural-gradient steps from the encoder's m_0, s_0.

        s^-2 <- (1 - r) s^-2 + r A,   m <- m + r s^2 dF/dm,   A = s^-2 (1 - dF/d log s) or 0,
        F = E_q[log p(x|z) + log p(z)] - E_q[log q(z)]

    F is the mean over points m + s e and m - s e for `pairs` fixed sign vectors e, so that q is a
    function of x; of a quadratic it is exact with as many pairs as latents. A, the larger of the
    two, keeps scales finite, and no step moves m by more than 3 of the s it starts with. The rate r
    of each step is learned, from `rate` on, and training goes through the steps (arXiv:1802.02550,
    arXiv:1807.09356; natural gradients: arXiv:1703.04265).
    """

    density = "given the prior"
    steps: PositiveInt = 2
    rate: float = Field(default=0.2, gt=0, lt=1)
    pairs: Literal[1, 2, 4, 8, 16, 32] = 2

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return SemiAmortizedModule(shapes, encoder, self)


class SemiAmortizedModule(MeanFieldModule):
    signs: Tensor
    vae: Any

    def __init__(self, shapes: Shapes, encoder: Network, spec: SemiAmortized):
        super().__init__(shapes, encoder, 2 * shapes.latent_dim)
        start = torch.logit(torch.tensor(spec.rate))
        self.raw_rate = nn.Parameter(start.repeat(spec.steps))
        signs = orthogonal_signs(spec.pairs)[:, torch.arange(shapes.latent_dim) % spec.pairs]
        self.register_buffer("signs", torch.cat([signs, -signs]), persistent=False)

    def bind(self, vae) -> None:
        self.refer("vae", vae)

    def encode(self, x, given=None):
        loc, raw = self.encoder(x).chunk(2, -1)
        loc, log_scale = self.refine(loc, positive(raw).log(), given).chunk(2, -1)
        return loc, positive(log_scale)

    def refine(self, loc: Tensor, log_scale: Tensor, given: Given) -> Tensor:
        """m_k and log s_k `[..., 2 L]`, differentiable where anything that makes them is."""
        at = torch.cat([loc, log_scale], -1)
        rates = self.raw_rate.sigmoid()
        wanted = torch.is_grad_enabled() and (
            at.requires_grad
            or rates.requires_grad
            or self.bound(loc, log_scale, given).requires_grad  # of the model's parameters
        )
        with torch.enable_grad():
            for rate in rates.unbind():
                if not (wanted and at.requires_grad):
                    at = at.detach().requires_grad_()
                loc, log_scale = at.chunk(2, -1)
                # A loss, for bounds of scales tell by its gradient what leads out of them.
                loss = -self.bound(loc, log_scale, given).sum()
                # By both at once: whatever made them, m is no function of s here.
                [slope] = torch.autograd.grad(loss, at, create_graph=wanted)
                d_loc, d_log = (-slope).chunk(2, -1)
                log_scale = log_scale - 0.5 * torch.log1p(-rate * d_log.clamp(max=1))
                # Where a density has a pole, the slope of a point beside it is no step's length.
                most = FARTHEST * at.chunk(2, -1)[1].detach().exp()
                loc = loc + (rate * (2 * log_scale).exp() * d_loc).clamp(-most, most)
                at = torch.cat([loc, log_scale], -1)
        return at if wanted else at.detach()

    def bound(self, loc: Tensor, log_scale: Tensor, given: Given) -> Tensor:
        """F of each datum `[...]` but for a constant, nats."""
        signs = self.signs.reshape(-1, *(1,) * (loc.dim() - 1), loc.shape[-1])
        z = loc + log_scale.exp() * signs
        log_p = self.vae.observation(z, given).log_prob(given.x) + self.vae.log_prior(z, given.y)
        return log_p.mean(0) + log_scale.sum(-1)


def orthogonal_signs(size: int) -> Tensor:
    """A Hadamard matrix: `size` rows of 1 and -1, a power of 2, with orthogonal columns."""
    signs = torch.ones(1, 1)
    while len(signs) < size:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs
