"""A Gaussian likelihood whose pixels are correlated."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes

MOST = 10.0  # of a log scale


class GaussianCovariance(Likelihood, name="gaussian_covariance"):
    """p(x|z) = N(x; decoder(z), S (I + G G') S), S = diag(s), G of `rank` columns.

    Low rank plus diagonal (Dorta et al., arXiv:1802.07079, on structured covariances). `rank`
    "full": S L L' S, L lower triangular with ones on its diagonal. s and G (or L) are `learned`,
    one for all data, or `predicted` by the decoder: D (1 + rank) numbers, or D^2, beside the D of
    the location. s stays at or above `floor`, in units of x.
    """

    rank: PositiveInt | Literal["full"] = 4
    covariance: Literal["learned", "predicted"] = "learned"
    floor: float = Field(default=1e-2, gt=0)

    def columns(self, num_pixels: int) -> int:
        """Numbers a pixel beside the location."""
        return num_pixels if self.rank == "full" else 1 + self.rank

    def param_shape(self, data_shape):
        if self.covariance == "learned":
            return data_shape
        return (1 + self.columns(math.prod(data_shape)), *data_shape)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return GaussianCovarianceModule(shapes, self)


class GaussianCovarianceModule(LikelihoodModule):
    def __init__(self, shapes: Shapes, spec: GaussianCovariance):
        super().__init__(shapes)
        self.full, self.floor = spec.rank == "full", spec.floor
        self.columns = spec.columns(shapes.num_pixels)
        self.predicted = spec.covariance == "predicted"
        if not self.predicted:
            self.raw = nn.Parameter(0.01 * torch.randn(self.columns, shapes.num_pixels))

    def forward(self, outputs):
        flat = self.precise(outputs).flatten(-self.event_dim)  # [..., (1 + columns,) D]
        if self.predicted:
            loc, raw = flat[..., 0, :], flat[..., 1:, :]
        else:
            loc, raw = flat, self.raw.to(flat)
        raw = raw.transpose(-1, -2)  # [..., D, columns]
        log_scale = raw.diagonal(dim1=-2, dim2=-1) if self.full else raw[..., 0]
        log_scale = self.bounded(log_scale, math.log(self.floor), MOST)
        factor = raw.tril(-1) if self.full else raw[..., 1:]
        return CorrelatedImage(loc, log_scale, factor, self.full, self.shapes.data)

    def marginal(self, p, mask):
        return p.marked(mask)

    def _start(self, x: Tensor) -> Tensor:
        """Columns `[columns, D]` of pixels that vary as they do without z, uncorrelated."""
        log_scale = x.flatten(1).std(0, correction=0).clamp_min(self.floor).log()
        if self.full:
            return torch.diag(log_scale)
        return torch.cat([log_scale.unsqueeze(0), x.new_zeros(self.columns - 1, len(log_scale))])

    @torch.no_grad()
    def initialize(self, x):
        # Small numbers stay beside the scale: columns that are all equal would stay so.
        if not self.predicted:
            row = torch.eye(self.shapes.num_pixels) if self.full else torch.zeros_like(self.raw)
            if not self.full:
                row[0] = 1
            self.raw.copy_(torch.where(row.to(self.raw) > 0, self._start(x), self.raw))

    def initial_output(self, x):
        if not self.predicted:
            return x.mean(0)
        return torch.cat([x.mean(0).unsqueeze(0), self._start(x).unflatten(-1, self.shapes.data)])


class CorrelatedImage(TorchDistribution):
    """N(x; loc, S C S): C = I + G G'; or where `full` L L', L = I + G, G strictly lower triangular.

    Args:
        loc, log_scale: `[..., D]`; factor: G `[..., D, rank]`, or `[..., D, D]`.
        shape: the data's; x is `[..., *shape]`.
        mask: `[..., D]`, the numbers that are known; the others are integrated out.
    """

    arg_constraints: ClassVar = {}
    has_rsample = True

    def __init__(self, loc, log_scale, factor, full: bool, shape, mask: Tensor | None = None):
        self.loc, self.log_scale, self.factor = loc, log_scale, factor
        self.full, self.kept = full, mask
        batch = torch.broadcast_shapes(
            loc.shape[:-1], log_scale.shape[:-1], () if mask is None else mask.shape[:-1]
        )
        super().__init__(batch, torch.Size(shape), validate_args=False)

    @constraints.dependent_property
    def support(self):
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape, _instance=None):
        return self._with(self.loc.expand(*batch_shape, -1), self.kept)

    def marked(self, mask: Tensor) -> CorrelatedImage:
        """The density of the values that `mask [..., *data]` marks."""
        return self._with(self.loc, mask.bool().flatten(-self.event_dim))

    def _with(self, loc, mask) -> CorrelatedImage:
        return CorrelatedImage(loc, self.log_scale, self.factor, self.full, self.event_shape, mask)

    def log_prob(self, value: Tensor) -> Tensor:
        deviation = value.flatten(-self.event_dim) - self.loc
        log_scale, factor = self.log_scale, self.factor
        if self.kept is None:
            count = deviation.new_tensor(deviation.shape[-1])
        else:
            deviation = torch.where(self.kept, deviation, 0.0)
            log_scale = torch.where(self.kept, log_scale, 0.0)
            factor = torch.where(self.kept.unsqueeze(-1), factor, 0.0)
            count = self.kept.sum(-1)
        ratio = deviation * (-log_scale).exp()
        square, log_det = (self._full if self.full else self._low_rank)(ratio, factor)
        return -0.5 * (square + log_det + math.log(2 * math.pi) * count) - log_scale.sum(-1)

    def _low_rank(self, r: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        """r' (I + G G')^-1 r and log det (I + G G')."""
        # With w = (I + G' G)^-1 G' r, the first is |r - G w|^2 + |w|^2: nothing cancels. The small
        # matrix is float64, for its ones count beside a large G' G.
        wide = g.double()
        inner = wide.mT @ wide + torch.eye(g.shape[-1], dtype=torch.float64, device=g.device)
        chol = torch.linalg.cholesky(inner)
        w = torch.cholesky_solve(wide.mT @ r.double().unsqueeze(-1), chol)
        rest = r.double() - (wide @ w).squeeze(-1)
        square = rest.square().sum(-1) + w.square().sum((-1, -2))
        log_det = 2 * chol.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return square.to(r.dtype), log_det.to(r.dtype)

    def _full(self, r: Tensor, lower: Tensor) -> tuple[Tensor, Tensor]:
        """r' C^-1 r and log det C, where C is the marked block of L L'."""
        one = torch.eye(lower.shape[-1], dtype=lower.dtype, device=lower.device)
        if self.kept is None:
            u = torch.linalg.solve_triangular(
                lower + one, r.unsqueeze(-1), upper=False, unitriangular=True
            )
            return u.square().sum((-1, -2)), torch.zeros_like(r[..., 0])
        # M L L' M + (I - M) = R' R, by the QR decomposition of its factors one above the other:
        # the ones of I - M change neither the determinant nor, as r is 0 there, the square.
        kept = self.kept.to(lower.dtype).unsqueeze(-1) * one
        stacked = torch.cat([(lower + kept).mT, (one - kept).expand(lower.shape)], -2)
        upper = torch.linalg.qr(stacked).R
        u = torch.linalg.solve_triangular(upper.mT, r.unsqueeze(-1), upper=False)
        return u.square().sum((-1, -2)), 2 * upper.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)

    def rsample(self, sample_shape=()) -> Tensor:
        """Draws of all numbers; 0 where nothing is marked."""
        shape = torch.Size(sample_shape) + self.batch_shape

        def noise(size):
            return torch.randn(*shape, size, dtype=self.loc.dtype, device=self.loc.device)

        own = noise(self.loc.shape[-1])
        shared = own if self.full else noise(self.factor.shape[-1])
        own = own + (self.factor @ shared.unsqueeze(-1)).squeeze(-1)
        x = self.loc + self.log_scale.exp() * own
        if self.kept is not None:
            x = torch.where(self.kept, x, 0.0)
        return x.unflatten(-1, self.event_shape)

    def sample(self, sample_shape=()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    @property
    def mean(self) -> Tensor:
        return self.loc.expand(*self.batch_shape, -1).unflatten(-1, self.event_shape)
