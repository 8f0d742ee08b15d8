"""Increasing maps of single numbers, whose parameters are numbers that a network puts out."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad, softplus

Steps = Literal["affine", "spline"]


class Monotone(Protocol):
    """y = f(x; raw), increasing in x; `raw [..., num_raw]` of 0 makes it the identity."""

    num_raw: int

    def forth(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """f(x), and log df/dx; all `[...]`."""

    def back(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The x of which y = f(x), and log df/dx there."""


class Affine:
    """y = a + e^b x, with b within (-`most`, `most`) (arXiv:1605.08803)."""

    num_raw = 2

    def __init__(self, most: float = 3.0):
        self.most = most

    def _numbers(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = raw.unbind(-1)
        return shift, self.most * (log_scale / self.most).tanh()

    def forth(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._numbers(raw)
        return shift + log_scale.exp() * x, log_scale

    def back(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        shift, log_scale = self._numbers(raw)
        return (y - shift) * (-log_scale).exp(), log_scale


class Piece(NamedTuple):
    """The piece of a spline that a number lies in: its lower left corner, size and end slopes."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    low: Tensor
    high: Tensor


class RationalQuadraticSpline:
    """A monotone rational-quadratic spline on [-`bound`, `bound`], the identity beyond.

    `bins` pieces with knots (x_k, y_k) and slopes d_k there, d = 1 at both ends. Within a piece,
    with t = (x - x_k) / w, s = h / w and r = d_k + d_{k+1} - 2 s,

        y = y_k + h (s t^2 + d_k t (1 - t)) / (s + r t (1 - t))

    (Durkan et al., Neural spline flows, arXiv:1906.04032, equations 4 to 8; Gregory and Delbourgo
    1982). No piece is narrower or lower than a thousandth of the whole; no slope below 1e-3.
    """

    LEAST = 1e-3

    def __init__(self, bins: int = 8, bound: float = 5.0):
        self.bins, self.bound = bins, bound
        self.num_raw = 3 * bins - 1

    def forth(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        within = x.clamp(-self.bound, self.bound)
        piece = self._piece(raw, within, of_y=False)
        t = (within - piece.x) / piece.width
        y, log_slope = _rise(piece, t)
        return self._or_identity(x, piece.y + y, log_slope)

    def back(self, raw: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        within = y.clamp(-self.bound, self.bound)
        piece = self._piece(raw, within, of_y=True)
        t = _root(piece, within - piece.y)
        return self._or_identity(y, piece.x + t * piece.width, _rise(piece, t)[1])

    def _or_identity(self, given: Tensor, moved: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        inside = given.abs() < self.bound
        return torch.where(inside, moved, given), torch.where(inside, slope, 0.0)

    def _piece(self, raw: Tensor, value: Tensor, *, of_y: bool) -> Piece:
        widths, heights, slopes = raw.split([self.bins, self.bins, self.bins - 1], -1)
        x, y = self._knots(widths), self._knots(heights)
        start = math.log(math.expm1(1 - self.LEAST))  # a slope of 1 where raw is 0
        d = pad(self.LEAST + softplus(slopes + start), (1, 1), value=1.0)
        inner = (y if of_y else x)[..., 1:-1]
        left = (value.unsqueeze(-1) >= inner).sum(-1, keepdim=True)
        shape = (*left.shape[:-1], self.bins + 1)
        x, y, d = x.expand(shape), y.expand(shape), d.expand(shape)
        ends = [(k.gather(-1, left)[..., 0], k.gather(-1, left + 1)[..., 0]) for k in (x, y, d)]
        (x0, x1), (y0, y1), (low, high) = ends
        return Piece(x0, y0, x1 - x0, y1 - y0, low, high)

    def _knots(self, raw: Tensor) -> Tensor:
        """Positions from -bound to bound `[..., bins + 1]`."""
        shares = self.LEAST + (1 - self.LEAST * self.bins) * raw.softmax(-1)
        inner = 2 * self.bound * shares.cumsum(-1)[..., :-1] - self.bound
        # The ends exactly, so that the spline meets the identity.
        return pad(pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)


def _rise(piece: Piece, t: Tensor) -> tuple[Tensor, Tensor]:
    """y - y_k, and log dy/dx, at the share t of the piece's width."""
    mean = piece.height / piece.width
    cross = t * (1 - t)
    below = mean + (piece.low + piece.high - 2 * mean) * cross
    rise = piece.height * (mean * t.square() + piece.low * cross) / below
    above = piece.high * t.square() + 2 * mean * cross + piece.low * (1 - t).square()
    return rise, 2 * mean.log() + above.log() - 2 * below.log()


def _root(piece: Piece, rise: Tensor) -> Tensor:
    """The t in [0, 1] at which the piece has risen so far: a t^2 + b t + c = 0."""
    mean = piece.height / piece.width
    bend = rise * (piece.low + piece.high - 2 * mean)
    a = piece.height * (mean - piece.low) + bend
    b = piece.height * piece.low - bend
    c = -mean * rise
    # Positive but for rounding; the root in this form does not cancel.
    discriminant = (b.square() - 4 * a * c).clamp(min=torch.finfo(rise.dtype).tiny)
    return 2 * c / (-b - discriminant.sqrt())


def monotone(steps: Steps) -> Monotone:
    """The map of a flow's `steps`."""
    return Affine() if steps == "affine" else RationalQuadraticSpline()
