"""Invertible flows without context, parallel both ways: couplings of affine maps or splines.

Affine: arXiv:1605.08803. Rational-linear splines: arXiv:1906.04032, arXiv:2001.05168.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from torch.nn.functional import softplus

from pyro_vae.networks.base import dense

Steps = Literal["affine", "spline"]
MOST = 3.0  # of a log scale, reached softly
BOUND = 5.0  # splines are the identity beyond
BINS = 8


class Coupling(nn.Module):
    """Alternating couplings of `[..., dim]`; begins as the identity.

    Half of the dimensions stay and tell how each of the others is moved; then the halves change
    places.
    """

    def __init__(self, dim: int, depth: int, hidden: int, steps: Steps = "affine"):
        super().__init__()
        self.steps = steps
        per_dim = 2 if steps == "affine" else 4 * BINS - 1
        self.layers = nn.ModuleList()
        for step in range(depth):
            halves = torch.arange(step % 2, dim, 2), torch.arange(1 - step % 2, dim, 2)
            for name, index in zip(("stays", "moves"), halves, strict=True):
                self.register_buffer(f"{name}_{step}", index, persistent=False)
            back = torch.cat(halves).argsort()
            self.register_buffer(f"back_{step}", back, persistent=False)
            num_kept = len(halves[0])
            last = dense(hidden, per_dim * (dim - num_kept))
            nn.init.zeros_(last.weight)
            layers = [dense(num_kept, hidden), nn.SiLU(), dense(hidden, hidden), nn.SiLU(), last]
            self.layers.append(nn.Sequential(*layers))

    def transform(self) -> CouplingTransform:
        return CouplingTransform(self)

    def run(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        """The image of x (or what it is the image of), and log|det| of the way forth."""
        move = _affine if self.steps == "affine" else _spline
        order = range(len(self.layers))
        total: Any = 0.0
        for step in reversed(order) if inverse else order:
            stays = x.index_select(-1, getattr(self, f"stays_{step}"))
            moves = x.index_select(-1, getattr(self, f"moves_{step}"))
            numbers = self.layers[step](stays).unflatten(-1, (moves.shape[-1], -1))
            moved, log_slope = move(numbers, moves, inverse)
            x = torch.cat([stays, moved], -1).index_select(-1, getattr(self, f"back_{step}"))
            total = total + log_slope.sum(-1)
        return x, total


class CouplingTransform(Transform):
    """The map of a `Coupling`, with its inverse."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, flow: Coupling):
        super().__init__(cache_size=1)
        self.flow = flow

    def _call(self, x):
        return self.flow.run(x, inverse=False)[0]

    def _inverse(self, y):
        return self.flow.run(y, inverse=True)[0]

    def log_abs_det_jacobian(self, x, y):
        return self.flow.run(x, inverse=False)[1]


def _affine(numbers: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    shift, raw = numbers.unbind(-1)
    log_scale = MOST * (raw / MOST).tanh()
    moved = (x - shift) * (-log_scale).exp() if inverse else x * log_scale.exp() + shift
    return moved, log_scale


def _spline(numbers: Tensor, x: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    widths, heights, inner, middles = numbers.split([BINS, BINS, BINS - 1, BINS], -1)
    parts = (
        widths.softmax(-1),
        heights.softmax(-1),
        softplus(inner + math.log(math.e - 1)),  # 1 at the start
        middles.sigmoid(),
    )
    spline = ConditionedSpline(parts, bound=BOUND)
    moved, log_slope = spline.spline_op(x, inverse=inverse)
    return moved, -log_slope if inverse else log_slope
