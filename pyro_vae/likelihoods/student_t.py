"""Student's t likelihood, for data with outliers."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import nn

from pyro_vae.likelihoods.base import LikelihoodModule
from pyro_vae.likelihoods.in_float64 import InFloat64
from pyro_vae.likelihoods.location_scale import LocationScale, LocationScaleModule
from pyro_vae.part import Shapes

FEWEST = 1.0  # degrees of freedom: a Cauchy's, which has no mean
MOST = 1e4  # degrees of freedom: a Gaussian's, up to 1e-4 nats a pixel


class StudentT(LocationScale, name="student_t"):
    """p(x|z) = prod_d t_nu(x_d; loc_d, s_d), s is `sigma` of `LocationScale` (arXiv:1901.08096).

    `degrees` is nu, or where it starts if `learn_degrees`: one number, learned between 1 and 10^4.
    """

    degrees: float = Field(default=5.0, gt=FEWEST, lt=MOST)
    learn_degrees: bool = False

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return StudentTModule(shapes, self)


class StudentTModule(LocationScaleModule):
    def __init__(self, shapes: Shapes, spec: StudentT):
        super().__init__(shapes, spec)
        start = torch.tensor(math.log(spec.degrees - FEWEST))
        if spec.learn_degrees:
            self.log_degrees = nn.Parameter(start)
        else:
            self.register_buffer("log_degrees", start, persistent=False)

    @property
    def degrees(self):
        """nu, float64."""
        raw = self.bounded(self.log_degrees, -5.0, math.log(MOST))
        return raw.double().exp() + FEWEST

    def density(self, loc, log_scale):
        # In float64: log Gamma((nu + 1) / 2) - log Gamma(nu / 2) cancels.
        pixels = dist.StudentT(self.degrees, loc.double(), log_scale.double().exp())
        return InFloat64(pixels, loc.dtype).to_event(self.event_dim)
