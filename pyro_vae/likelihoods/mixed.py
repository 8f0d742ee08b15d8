"""Columns of a table, each with a likelihood of its kind."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, PositiveInt
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.component import OneOf, Value
from pyro_vae.errors import SpecError
from pyro_vae.likelihoods.base import Likelihood, LikelihoodModule
from pyro_vae.part import Shapes


class Columns(Value):
    """Some neighbouring columns and their likelihood."""

    likelihood: Annotated[Any, OneOf(Likelihood.registry, without=("mixed",))] = "gaussian"
    columns: PositiveInt = 1


class Mixed(Likelihood, name="mixed"):
    """p(x|z) = prod_parts p_part(x_part | z): a table's columns from left to right.

    `parts` names the likelihood of so many columns each, e.g.
    `[{likelihood: gaussian, columns: 3}, {likelihood: bernoulli, columns: 2}]` (Nazabal et al.,
    arXiv:1807.03653). A datum is one row, of shape `[columns]`. An exposure is that of its counts.
    """

    support = "mixed"
    parts: tuple[Columns, ...] = Field(default_factory=lambda: (Columns(),), min_length=1)

    @property
    def takes_exposure(self) -> bool:  # type: ignore[override]
        return any(part.likelihood.takes_exposure for part in self.parts)

    @property
    def measure(self) -> str:
        kinds = [f"{part.likelihood.measure} of {part.columns} columns" for part in self.parts]
        return ", ".join(kinds)

    def slices(self) -> list[tuple[Likelihood, slice]]:
        """Each likelihood and its columns."""
        ends = torch.tensor([part.columns for part in self.parts]).cumsum(0).tolist()
        starts = [0, *ends]
        return [
            (part.likelihood, slice(start, end))
            for part, start, end in zip(self.parts, starts, ends, strict=False)
        ]

    def param_shape(self, data_shape):
        """All outputs in a row. Raises: `SpecError` unless the parts cover the columns."""
        count = sum(part.columns for part in self.parts)
        if tuple(data_shape) != (count,):
            raise SpecError(
                f"likelihood 'mixed': its parts cover {count} columns, but a datum has shape "
                f"{tuple(data_shape)}; expected ({count},)"
            )
        shapes = [part.likelihood.param_shape((part.columns,)) for part in self.parts]
        return (sum(math.prod(shape) for shape in shapes),)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        self.param_shape(shapes.data)
        return MixedModule(shapes, self)


class MixedModule(LikelihoodModule):
    support = "mixed"

    def __init__(self, shapes: Shapes, spec: Mixed):
        super().__init__(shapes)
        self.slices, self.param_shapes, self.exposed, modules = [], [], [], []
        for likelihood, columns in spec.slices():
            size = (columns.stop - columns.start,)
            self.slices.append(columns)
            self.param_shapes.append(likelihood.param_shape(size))
            self.exposed.append(likelihood.takes_exposure)
            modules.append(likelihood.build(Shapes(data=size, latent=shapes.latent)))
        self.modules_of_parts = nn.ModuleList(modules)

    def parts(self) -> list[tuple[Any, slice]]:
        """Each part's module and its columns."""
        return list(zip(self.modules_of_parts, self.slices, strict=True))

    def cut(self, outputs: Tensor) -> list[Tensor]:
        """Each part's outputs."""
        flat = outputs.split([math.prod(shape) for shape in self.param_shapes], -1)
        return [x.unflatten(-1, shape) for x, shape in zip(flat, self.param_shapes, strict=True)]

    def bind(self, vae) -> None:
        for part in self.modules_of_parts:
            part.bind(vae)  # type: ignore[operator]

    def _told(self, exposure: Tensor | None) -> list[tuple[Tensor, ...]]:
        """What each part is handed beside outputs: the exposure, `[batch]` or of its columns."""
        if exposure is None:
            return [()] * len(self.slices)
        wide = exposure.dim() > 1
        return [
            (exposure[..., columns] if wide else exposure,) if exposed else ()
            for columns, exposed in zip(self.slices, self.exposed, strict=True)
        ]

    def forward(self, outputs, exposure=None):
        parts = zip(self.modules_of_parts, self.cut(outputs), self._told(exposure), strict=True)
        return Row([part(own, *told) for part, own, told in parts])

    def marginal(self, p, mask):
        return Row(
            [
                part.marginal(own, mask[..., columns])
                for (part, columns), own in zip(self.parts(), p.parts, strict=True)
            ]
        )

    def initialize(self, x):
        for part, columns in self.parts():
            part.initialize(x[:, columns])

    def initial_output(self, x, exposure=None):
        found = []
        of_parts = zip(self.parts(), self.param_shapes, self._told(exposure), strict=True)
        for (part, columns), shape, told in of_parts:
            start = part.initial_output(x[:, columns], *told)
            found.append(x.new_zeros(shape) if start is None else start.to(x))
        return torch.cat([start.flatten() for start in found])

    def finalize(self, batches):
        held = [(self.cut(outputs), x, mask) for outputs, x, mask in batches]
        for i, (part, columns) in enumerate(self.parts()):
            part.finalize(
                (cut[i], x[:, columns], None if mask is None else mask[:, columns])
                for cut, x, mask in held
            )

    def warnings(self, outputs=None):
        cut = [None] * len(self.slices) if outputs is None else self.cut(outputs)
        return [
            f"columns {columns.start} to {columns.stop - 1}: {text}"
            for (part, columns), own in zip(self.parts(), cut, strict=True)
            for text in part.warnings(own)
        ]


class Row(TorchDistribution):
    """Independent `parts` over neighbouring columns of `x [..., columns]`."""

    arg_constraints: ClassVar = {}

    def __init__(self, parts: list[TorchDistribution]):
        self.parts = parts
        self.sizes = [part.event_shape.numel() for part in parts]
        batch = torch.broadcast_shapes(*(part.batch_shape for part in parts))
        super().__init__(batch, torch.Size([sum(self.sizes)]), validate_args=False)

    @constraints.dependent_property
    def support(self):
        return _EachPart(self)

    def expand(self, batch_shape, _instance=None):
        return Row([part.expand(batch_shape) for part in self.parts])

    def of_parts(self, value: Tensor) -> list[tuple[Any, Tensor]]:
        """Each part and its columns of x."""
        return list(zip(self.parts, value.split(self.sizes, -1), strict=True))

    def log_prob(self, value: Tensor) -> Tensor:
        found = [part.log_prob(x) for part, x in self.of_parts(value)]
        return torch.stack(torch.broadcast_tensors(*found)).sum(0)

    def sample(self, sample_shape=()) -> Tensor:
        parts = [p.expand(self.batch_shape).sample(torch.Size(sample_shape)) for p in self.parts]
        return torch.cat(parts, -1)

    @property
    def mean(self) -> Tensor:
        return torch.cat([part.expand(self.batch_shape).mean for part in self.parts], -1)


class _EachPart(constraints.Constraint):
    """Each part's columns lie in its support."""

    event_dim = 1

    def __init__(self, row: Row):
        self._row = row
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        fits = [part.support.check(x) for part, x in self._row.of_parts(value)]
        return torch.stack(torch.broadcast_tensors(*fits)).all(0)

    def __repr__(self):
        return " and ".join(str(part.support) for part in self._row.parts)
