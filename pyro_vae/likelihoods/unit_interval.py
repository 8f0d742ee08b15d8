"""Densities inside (0, 1): what they share."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae.likelihoods.base import LikelihoodModule


class InsideModule(LikelihoodModule):
    """Two numbers a pixel: decoder outputs `[..., 2, *data]`."""

    support = "inside"

    def halves(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))  # under autocast
        first, second = outputs.unbind(-len(self.shapes.data) - 1)
        return first, second
