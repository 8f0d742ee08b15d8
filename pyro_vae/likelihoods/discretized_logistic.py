"""Mixtures of discretized logistics over the grey levels."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid, softplus

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class DiscretizedLogistic(Likelihood, name="discretized_logistic"):
    """p(x|z) = prod_d sum_c w_cd [F((x_d + h - m_cd) / s_cd) - F((x_d - h - m_cd) / s_cd)].

    F is the logistic function and h half the distance of two grey levels; the lowest level takes
    all that lies below, the highest all above, so the masses sum to one (IAF, arXiv:1606.04934;
    mixtures: PixelCNN++, arXiv:1701.05517, here without its link between channels). s stays at or
    above `floor`, in grey levels.
    """

    support = "levels"
    components: PositiveInt = 1
    levels: int = Field(default=256, ge=2)
    floor: float = Field(default=0.05, gt=0)

    def param_shape(self, data_shape):
        return (2 if self.components == 1 else 3 * self.components, *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return DiscretizedLogisticModule(shapes, self)


class DiscretizedLogisticModule(LikelihoodModule):
    support = "levels"

    def __init__(self, shapes: Shapes, spec: DiscretizedLogistic):
        super().__init__(shapes)
        self.components, self.levels, self.floor = spec.components, spec.levels, spec.floor

    def forward(self, outputs):
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # under autocast
        parts = outputs.movedim(-len(self.shapes.data) - 1, -1)
        loc, raw, *logits = parts.unflatten(-1, (-1, self.components)).unbind(-2)
        log_scale = raw.clamp(math.log(self.floor / (self.levels - 1)), 3.0)
        weights = logits[0] if logits else torch.zeros_like(loc)
        pixels = DiscretizedLogistics(loc, log_scale, weights, self.levels)
        return pixels.to_event(len(self.shapes.data))

    def initial_output(self, x):
        mean, spread = x.mean(0), x.std(0, correction=0).clamp_min(2 / (self.levels - 1))
        # A logistic's sd is pi / sqrt 3 times its scale. Components begin side by side.
        steps = torch.linspace(-1, 1, self.components + 2, device=x.device)[1:-1]
        loc = torch.stack([mean + step * spread for step in steps])
        log_scale = (spread * math.sqrt(3) / math.pi).log().expand_as(loc)
        if self.components == 1:
            return torch.cat([loc, log_scale])
        return torch.cat([loc, log_scale, torch.zeros_like(loc)])


class DiscretizedLogistics(dist.TorchDistribution):
    """Of x = level / (levels - 1): `loc`, `log_scale`, `logits` `[..., components]`."""

    arg_constraints = {  # noqa: RUF012
        name: constraints.independent(constraints.real, 1)
        for name in ("loc", "log_scale", "logits")
    }
    support = constraints.unit_interval

    def __init__(self, loc, log_scale, logits, levels: int, validate_args=None):
        self.loc, self.log_scale, self.logits = loc, log_scale, logits
        self.top = levels - 1
        super().__init__(loc.shape[:-1], validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(DiscretizedLogistics, _instance)
        for name in ("loc", "log_scale", "logits"):
            part = getattr(self, name)
            setattr(new, name, part.expand(torch.Size(batch_shape) + part.shape[-1:]))
        new.top = self.top
        super(DiscretizedLogistics, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        x = ((value * self.top).round() / self.top).unsqueeze(-1)
        half, precision = 0.5 / self.top, (-self.log_scale).exp()
        above = (x + half - self.loc) * precision
        below = (x - half - self.loc) * precision
        # log(F(a) - F(b)) = log F(a) + log(1 - F(b)) + log(1 - e^-(a - b)), which keeps its digits
        # in both tails; a - b is one bin's width in scales.
        width = (above - below).clamp_min(1e-12)
        inside = logsigmoid(above) - softplus(below) + (-torch.expm1(-width)).log()
        each = torch.where(x <= half, logsigmoid(above), inside)
        each = torch.where(x >= 1 - half, -softplus(below), each)
        return torch.logsumexp(each + self.logits.log_softmax(-1), -1)

    def sample(self, sample_shape=()) -> Tensor:
        shape = torch.Size(sample_shape) + self.batch_shape
        with torch.no_grad():
            which = torch.distributions.Categorical(logits=self.logits).sample(sample_shape)
            loc = self.loc.expand(*shape, -1).gather(-1, which.unsqueeze(-1)).squeeze(-1)
            log_scale = self.log_scale.expand(*shape, -1)
            scale = log_scale.gather(-1, which.unsqueeze(-1)).squeeze(-1).exp()
            tiny = torch.finfo(loc.dtype).eps
            uniform = torch.rand(shape, dtype=loc.dtype, device=loc.device).clamp(tiny, 1 - tiny)
            x = loc + scale * uniform.logit()
            return (x.clamp(0, 1) * self.top).round() / self.top

    @property
    def mean(self) -> Tensor:
        """The sum of the survival function over levels, over the top one: exact."""
        edges = (torch.arange(self.top, device=self.loc.device) + 0.5) / self.top
        share = self.logits.softmax(-1).unsqueeze(-1)
        reached = ((self.loc.unsqueeze(-1) - edges) * (-self.log_scale).exp().unsqueeze(-1)).sigmoid()
        return (share * reached).sum((-1, -2)) / self.top
