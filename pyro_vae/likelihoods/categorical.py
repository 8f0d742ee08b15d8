"""A categorical likelihood over the grey levels."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class Categorical(Likelihood, name="categorical"):
    """p(x|z) = prod_d p_d[x_d], a probability for each of `levels` grey levels.

    The decoder puts out `levels` numbers a pixel (PixelRNN, arXiv:1601.06759).
    """

    support = "levels"
    levels: int = Field(default=256, ge=2)

    def param_shape(self, data_shape):
        return (self.levels, *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return CategoricalModule(shapes, self.levels)


class CategoricalModule(LikelihoodModule):
    support = "levels"

    def __init__(self, shapes: Shapes, levels: int):
        super().__init__(shapes)
        self.levels = levels

    def forward(self, outputs):
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # under autocast
        logits = outputs.movedim(-len(self.shapes.data) - 1, -1)
        return Levels(logits).to_event(len(self.shapes.data))

    def initial_output(self, x):
        index = (x * (self.levels - 1)).round().long()
        counts = torch.stack([(index == level).float().mean(0) for level in range(self.levels)])
        return (counts + 1 / (10 * self.levels)).log()


class Levels(dist.TorchDistribution):
    """Of x = level / (levels - 1): probabilities `logits [..., levels]`, softmaxed."""

    arg_constraints = {"logits": constraints.independent(constraints.real, 1)}  # noqa: RUF012
    support = constraints.unit_interval

    def __init__(self, logits: Tensor, validate_args=None):
        self.logits = logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @property
    def top(self) -> int:
        return self.logits.shape[-1] - 1

    @property
    def values(self) -> Tensor:
        return torch.arange(self.top + 1, device=self.logits.device) / self.top

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(Levels, _instance)
        new.logits = self.logits.expand(torch.Size(batch_shape) + self.logits.shape[-1:])
        super(Levels, new).__init__(batch_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        return (self.logits.exp() * self.values).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        index = (value * self.top).round().long()
        shape = torch.broadcast_shapes(index.shape, self.logits.shape[:-1])
        logits = self.logits.expand(*shape, -1)
        return logits.gather(-1, index.expand(shape).unsqueeze(-1)).squeeze(-1)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            drawn = torch.distributions.Categorical(logits=self.logits).sample(sample_shape)
            return drawn / self.top
