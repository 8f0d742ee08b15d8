"""Student's t likelihood, for data with outliers."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from pydantic import Field
from torch import nn

from pyro_vae.likelihoods.base import LikelihoodModule
from pyro_vae.likelihoods.location_scale import LocationScale, LocationScaleModule
from pyro_vae.part import Shapes

FEWEST = 1.0  # degrees of freedom: a Cauchy's, below which little is left to tell


class StudentT(LocationScale, name="student_t"):
    """p(x|z) = prod_d t_nu(x_d; loc_d, s_d), s is `sigma` of `LocationScale` (arXiv:1901.08096).

    `degrees` is nu, or where it starts if `learn_degrees`; learned ones stay above 1.
    """

    degrees: float = Field(default=5.0, gt=FEWEST)
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
        return self.log_degrees.exp() + FEWEST

    def density(self, loc, log_scale):
        degrees = self.degrees.to(loc)
        return dist.StudentT(degrees, loc, log_scale.exp()).to_event(len(self.shapes.data))
