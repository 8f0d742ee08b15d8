"""A categorical likelihood over the grey levels."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.likelihoods.grey_levels import GreyLevels, LevelsModule
from pyro_vae.part import Shapes

ROWS = 4096  # data counted at a time


class Categorical(Likelihood, name="categorical"):
    """p(x|z) = prod_d p_d[x_d], a probability for each of `levels` grey levels.

    x = level / (levels - 1); the decoder puts out `levels` numbers a pixel (PixelRNN,
    arXiv:1601.06759).
    """

    support = "levels"
    levels: int = Field(default=256, ge=2)

    def param_shape(self, data_shape):
        return (self.levels, *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return CategoricalModule(shapes, self.levels)


class CategoricalModule(LevelsModule):
    unit = 1

    def forward(self, outputs):
        logits = self.channels(outputs).movedim(0, -1)
        return Levels(logits, self.unit).to_event(self.event_dim)

    def initial_output(self, x):
        places = torch.arange(self.shapes.num_pixels, device=x.device)
        size = self.levels * self.shapes.num_pixels
        counts = torch.zeros(size, device=x.device)
        for rows in x.flatten(1).split(ROWS):
            level = (rows * ((self.levels - 1) / self.unit)).round().long()
            counts += torch.bincount((level * len(places) + places).flatten(), minlength=size)
        counts = counts.reshape(self.levels, *self.shapes.data)
        return (counts / len(x) + 1 / (10 * self.levels)).log()  # no level is ruled out


class Levels(GreyLevels):
    """Probabilities softmax(logits), logits `[..., levels]`."""

    arg_constraints: ClassVar = {"logits": constraints.independent(constraints.real, 1)}
    names = ("logits",)

    def __init__(self, logits: Tensor, unit: int = 1, validate_args=None):
        self.logits, self.top, self.unit = logits.log_softmax(-1), logits.shape[-1] - 1, unit
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        index = self.index(value).long()
        shape = torch.broadcast_shapes(index.shape, self.logits.shape[:-1])
        logits = self.logits.expand(*shape, -1)
        return logits.gather(-1, index.expand(shape).unsqueeze(-1)).squeeze(-1)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            drawn = torch.distributions.Categorical(logits=self.logits).sample(sample_shape)
            return self.value(drawn.to(self.logits))

    @property
    def mean(self) -> Tensor:
        levels = torch.arange(self.top + 1, dtype=self.logits.dtype, device=self.logits.device)
        return self.value((self.logits.exp() * levels).sum(-1))
