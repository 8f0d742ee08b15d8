"""Bounds of a number that is learned, with a way back from beyond them."""

from __future__ import annotations

import torch
from torch import Tensor


def bounded(raw: Tensor, low: float, high: float, training: bool) -> Tensor:
    """`raw` within [low, high]. In training, a way back stays open to what is beyond."""
    return _Bounded.apply(raw, low, high) if training else raw.clamp(low, high)


class _Bounded(torch.autograd.Function):
    """clamp, and a gradient that leads back inside passes.

    The gradient of a clamp is 0 outside: a sigma that one step took below its floor would stay
    there whatever the data say. One that leads further out is stopped as by a clamp: let through,
    it would carry the raw value away, and as many steps would be needed to come back. Inside and
    outside are told for a loss to be minimised.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(raw, low, high):
        return raw.clamp(low, high)

    @staticmethod
    def setup_context(ctx, inputs, output):
        raw, ctx.low, ctx.high = inputs
        ctx.save_for_backward(raw)

    @staticmethod
    def backward(ctx, *gradients):
        (gradient,), (raw,) = gradients, ctx.saved_tensors
        further_out = ((raw < ctx.low) & (gradient > 0)) | ((raw > ctx.high) & (gradient < 0))
        return gradient.masked_fill(further_out, 0.0), None, None
