"""The semi-amortized guide: the encoder's start, refined on the datum's own bound."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.guides.mean_field import MeanFieldModule
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes


class SemiAmortized(Guide, name="semi_amortized"):
    """q(z|x) = N(m_k, diag s_k^2), k = `steps` natural-gradient steps from the encoder's m_0, s_0.

        s^-2 <- (1 - r) s^-2 + r A,   m <- m + r s^2 dF/dm,   A = s^-2 (1 - dF/d log s),
        F = E_q[log p(x|z) + log p(z)] - E_q[log q(z)]

    F is the mean over `pairs` of points m + s e and m - s e with fixed random signs e, so that q is
    a function of x. The rate r of each step is learned and begins at `rate`; training goes through
    the steps (arXiv:1802.02550, arXiv:1807.09356; natural gradients: arXiv:1703.04265). Where
    dF/d log s > 0 the log of the first update is taken to first order, which keeps s^-2 positive.
    """

    density = "given the prior"
    steps: PositiveInt = 2
    rate: float = Field(default=0.2, gt=0, lt=1)
    pairs: PositiveInt = 1

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return SemiAmortizedModule(shapes, encoder, self)


class SemiAmortizedModule(MeanFieldModule):
    signs: Tensor
    vae: Any

    def __init__(self, shapes: Shapes, encoder: Network, spec: SemiAmortized):
        dim = shapes.latent_dim
        super().__init__(shapes, encoder, 2 * dim)
        start = torch.logit(torch.tensor(spec.rate))
        self.raw_rate = nn.Parameter(start.repeat(spec.steps))
        signs = torch.randint(2, (spec.pairs, dim)) * 2.0 - 1.0
        self.register_buffer("signs", torch.cat([signs, -signs]))

    def bind(self, vae) -> None:
        self.refer("vae", vae)

    def encode(self, x, y=None):
        loc, raw = self.encoder(x).chunk(2, -1)
        loc, log_scale = self.refine(loc, positive(raw).log(), x, y)
        return loc, positive(log_scale)

    def refine(
        self, loc: Tensor, log_scale: Tensor, x: Tensor, y: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """m_k and log s_k `[..., L]`, differentiable where gradients are wanted."""
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            for rate in self.raw_rate.sigmoid().unbind():
                # Of these alone, whether or not what they come from has a gradient.
                at = [
                    t if t.requires_grad and wanted else t.detach().requires_grad_()
                    for t in (loc, log_scale)
                ]
                bound = self.bound(at[0], at[1], x, y).sum()
                d_loc, d_log = torch.autograd.grad(bound, at, create_graph=wanted)
                down = -0.5 * torch.log1p(-rate * d_log.clamp(max=0))
                log_scale = at[1] + down + 0.5 * rate * d_log.clamp(min=0)
                loc = at[0] + rate * (2 * log_scale).exp() * d_loc
        return (loc, log_scale) if wanted else (loc.detach(), log_scale.detach())

    def bound(self, loc: Tensor, log_scale: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """F of each datum `[...]` but for a constant, nats."""
        signs = self.signs.reshape(-1, *(1,) * (loc.dim() - 1), loc.shape[-1])
        z = loc + log_scale.exp() * signs
        log_p = self.vae.decode(z).log_prob(x) + self.vae.prior.distribution(y).log_prob(z)
        return log_p.mean(0) + log_scale.sum(-1)
