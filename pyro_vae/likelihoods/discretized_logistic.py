"""Mixtures of discretized logistics over the grey levels."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.grey_levels import GreyLevels, LevelsModule
from pyro_vae.part import Shapes

MOST = 3.0  # of a log scale: 20 times the range of x


class DiscretizedLogistic(Likelihood, name="discretized_logistic"):
    """p(x|z) = prod_d sum_c w_cd [F((x_d + h - m_cd) / s_cd) - F((x_d - h - m_cd) / s_cd)].

    F is the logistic function and h half the distance of two grey levels; the lowest level takes
    all that lies below, the highest all above, so the masses sum to one (IAF, arXiv:1606.04934;
    mixtures: PixelCNN++, arXiv:1701.05517, here without its link between channels).
    x = level / (levels - 1). s stays at or above `floor`, in grey levels.
    """

    support = "levels"
    components: PositiveInt = 1
    levels: int = Field(default=256, ge=2)
    floor: float = Field(default=0.05, gt=0)

    def param_shape(self, data_shape):
        return (2 if self.components == 1 else 3 * self.components, *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return DiscretizedLogisticModule(shapes, self)


class DiscretizedLogisticModule(LevelsModule):
    def __init__(self, shapes: Shapes, spec: DiscretizedLogistic):
        super().__init__(shapes, spec.levels)
        self.components, self.floor = spec.components, spec.floor

    def forward(self, outputs):
        parts = self.channels(outputs).movedim(0, -1)
        loc, raw, *logits = parts.unflatten(-1, (-1, self.components)).unbind(-2)
        log_scale = self.bounded(raw, math.log(self.floor / (self.levels - 1)), MOST)
        weights = logits[0] if logits else torch.zeros_like(loc)
        pixels = DiscretizedLogistics(loc, log_scale, weights, self.levels)
        return pixels.to_event(self.event_dim)

    def initial_output(self, x):
        mean, spread = x.mean(0), x.std(0, correction=0).clamp_min(2 / (self.levels - 1))
        # Components begin side by side. A logistic's sd is pi / sqrt 3 times its scale.
        steps = torch.linspace(-1, 1, self.components + 2)[1:-1].tolist()
        loc = torch.stack([mean + step * spread for step in steps])
        log_scale = (spread * math.sqrt(3) / math.pi).log().expand_as(loc)
        if self.components == 1:
            return torch.cat([loc, log_scale])
        return torch.cat([loc, log_scale, torch.zeros_like(loc)])


class DiscretizedLogistics(GreyLevels):
    """`loc`, `log_scale` and `logits` of the weights, each `[..., components]`."""

    arg_constraints: ClassVar = {
        name: constraints.independent(constraints.real, 1)
        for name in ("loc", "log_scale", "logits")
    }
    names = ("loc", "log_scale", "logits")

    def __init__(self, loc, log_scale, logits, levels: int, validate_args=None):
        self.loc, self.log_scale, self.logits = loc, log_scale, logits
        self.top = levels - 1
        super().__init__(loc.shape[:-1], validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        level = self.index(value).unsqueeze(-1)
        precision = (-self.log_scale).exp()
        above = ((level + 0.5) / self.top - self.loc) * precision
        below = ((level - 0.5) / self.top - self.loc) * precision
        # log(F(a) - F(b)) = log F(a) + log(1 - F(b)) + log(1 - e^-(a - b)), which keeps its digits
        # in both tails; a - b is the width of a bin in scales.
        width = precision / self.top
        middle = logsigmoid(above) - softplus(below) + torch.log(-torch.expm1(-width))
        each = torch.where(level == 0, logsigmoid(above), middle)
        each = torch.where(level == self.top, -softplus(below), each)
        return torch.logsumexp(each + self.logits.log_softmax(-1), -1)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            which = torch.distributions.Categorical(logits=self.logits).sample(sample_shape)
            shape = which.shape
            loc, log_scale = (
                part.expand(*shape, -1).gather(-1, which.unsqueeze(-1)).squeeze(-1)
                for part in (self.loc, self.log_scale)
            )
            tiny = torch.finfo(loc.dtype).tiny
            u = torch.rand(shape, dtype=loc.dtype, device=loc.device).clamp_min(tiny)
            x = loc + log_scale.exp() * u.logit()
            return self.value((x.clamp(0, 1) * self.top).round())

    @property
    def mean(self) -> Tensor:
        """Sum over levels k < top of P(level > k), over top."""
        share, precision = self.logits.softmax(-1), (-self.log_scale).exp()
        total = torch.zeros_like(self.loc[..., 0])
        for level in range(self.top):  # one at a time: all at once may not fit into memory
            reached = ((self.loc - (level + 0.5) / self.top) * precision).sigmoid()
            total = total + (share * reached).sum(-1)
        return self.value(total)
