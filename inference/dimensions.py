"""Where particles and the data plate stand among the batch dimensions of a site."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inference.pair import Pair


@dataclass(frozen=True)
class Dimensions:
    """`plates` dimensions, one of them (`data_dim`) the data's; `particles` left of them or not."""

    plates: int
    data_dim: int | None
    particles: bool

    @classmethod
    def of(cls, pair: Pair, *, particles: bool) -> Dimensions:
        return cls(pair.max_plate_nesting, pair.data_dim, particles)

    def kept(self, in_plate: bool) -> list[int]:
        """The dimensions that a record keeps: particles, and data for a site in their plate."""
        particles = [-self.plates - 1] if self.particles else []
        return [*particles, *([self.data_dim] if in_plate and self.data_dim is not None else [])]

    def summed(self, terms: Tensor, in_plate: bool) -> Tensor:
        """Terms over the plates that a record does not keep; dimensions left of them stay."""
        wide = self.plates + self.particles
        if terms.dim() < wide:
            terms = terms.reshape((1,) * (wide - terms.dim()) + tuple(terms.shape))
        others = [d for d in range(-wide, 0) if d not in self.kept(in_plate)]
        return terms.sum(others) if others else terms

    def spread(self, weight: Tensor, batch_dim: int) -> Tensor:
        """Weights of a record, to be multiplied with a site of so many batch dimensions."""
        sizes = list(weight.shape)
        shape = [1] * (self.plates + self.particles)
        if self.particles:
            shape[0] = sizes.pop(0)
        if sizes and self.data_dim is not None:
            shape[self.data_dim] = sizes.pop()
        return weight.reshape(shape[len(shape) - batch_dim :])
