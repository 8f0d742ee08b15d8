"""Learning-rate schedules: pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt


class Schedule(BaseModel):
    """`factor` multiplies the learning rate; `depends_on_total` if it looks at the last step."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    depends_on_total: ClassVar[bool] = False

    def factor(self, step: int, steps_per_epoch: int, total_steps: int) -> float:
        raise NotImplementedError


class Constant(Schedule):
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"

    def factor(self, step, steps_per_epoch, total_steps):
        return 1.0


class Cosine(Schedule):
    """Half a cosine from 1 to `final_fraction` over all steps (arXiv:1608.03983, no restarts)."""

    depends_on_total = True
    name: Literal["cosine"] = "cosine"
    final_fraction: float = Field(default=0.01, ge=0, le=1)

    def factor(self, step, steps_per_epoch, total_steps):
        done = step / max(1, total_steps)
        return self.final_fraction + (1 - self.final_fraction) * (1 + math.cos(math.pi * done)) / 2


class Exponential(Schedule):
    """`decay_per_epoch` ** epochs, continuously."""

    name: Literal["exponential"] = "exponential"
    decay_per_epoch: float = Field(default=0.98, gt=0, le=1)

    def factor(self, step, steps_per_epoch, total_steps):
        return self.decay_per_epoch ** (step / steps_per_epoch)


class Step(Schedule):
    """Multiply by `gamma` at the start of each epoch in `milestones` (counted from 1)."""

    name: Literal["step"] = "step"
    milestones: tuple[PositiveInt, ...] = (30, 45)
    gamma: float = Field(default=0.1, gt=0)

    def factor(self, step, steps_per_epoch, total_steps):
        epoch = 1 + step // steps_per_epoch
        return self.gamma ** sum(epoch >= m for m in self.milestones)


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "cosine": Cosine,
    "exponential": Exponential,
    "step": Step,
}
