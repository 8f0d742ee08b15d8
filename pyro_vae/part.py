"""What a component builds: a module that is built from shapes, bound to its VAE, initialized.

Every part is built from shapes alone; then `bind(vae)` lets it reach another part by an
unregistered reference, so that no weight is stored twice; then `initialize(x)` sets what comes
from the training data (an output bias, pseudo-inputs, a scale).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Shapes:
    """Shapes of one datum and of its latent, without batch dimensions.

    `latent` is the whole of it; with more than one level, a vector of all levels from the data up,
    whose lengths are `levels`. `seen` is what the encoder is handed: the datum, with what joins it
    (labels, a mask); the datum alone unless given.
    """

    data: tuple[int, ...]
    latent: tuple[int, ...]
    levels: tuple[int, ...] = ()
    seen: tuple[int, ...] = ()
    classes: int = 0

    def __post_init__(self) -> None:
        if not self.seen:
            object.__setattr__(self, "seen", self.data)

    @property
    def num_pixels(self) -> int:
        return math.prod(self.data)

    @property
    def latent_dim(self) -> int:
        return math.prod(self.latent)


class Part(nn.Module):
    """Base of the modules that priors, guides and likelihoods build."""

    def bind(self, vae: Any) -> None:
        """Called once after every part is built."""

    def refer(self, name: str, module: nn.Module) -> None:
        """Keep a reference that is not registered: its weights stay with their owner."""
        self.__dict__[name] = module

    def initialize(self, x: Tensor) -> None:
        """Set what comes from training data `x [N, *data]`, before the first step."""
