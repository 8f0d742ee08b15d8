"""Draws taken again in proportion to their weights, datum by datum, while they stream by.

Sampling-importance-resampling (Rubin 1987) by weighted reservoirs of one (Chao 1982).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class Resampled:
    """S independent draws of each datum from sum_k w_k delta(z_k) / sum_j w_j.

    The draws z_k come in pieces. Each of a datum's S places takes a draw of the new piece with
    probability (weight of the piece) / (weight of all so far), else keeps what it has: after the
    last piece it holds z_k with probability w_k / sum_j w_j, independently of the other places.
    Where all weights are 0 the draws stay equally likely.
    """

    def __init__(self, num_samples: int):
        self.num_samples = num_samples
        self.values: dict[str, Tensor] = {}  # [S, N, ...]
        self._log_total: Tensor | None = None
        self._seen = 0

    def update(self, log_weight: Tensor, values: Mapping[str, Tensor]) -> None:
        """Let the next draws `[k, N, ...]` with log w `[k, N]`, nats, take their share.

        Draws from torch's global generators.
        """
        count, num_data = log_weight.shape
        piece = log_weight.logsumexp(0)
        before = piece.new_full((), -math.inf) if self._log_total is None else self._log_total
        total = torch.logaddexp(piece, before)
        empty = total == -math.inf
        share = torch.where(empty, count / (count + self._seen), (piece - total).exp())
        even = torch.where((piece == -math.inf).unsqueeze(0), 0.0, log_weight)
        index = torch.multinomial(even.softmax(0).T, self.num_samples, replacement=True).T  # [S, N]
        taken = torch.rand(index.shape, dtype=share.dtype, device=share.device) < share
        data = torch.arange(num_data, device=index.device)
        for name, value in values.items():
            drawn = value[index, data]
            if name in self.values:
                where = taken.reshape(taken.shape + (1,) * (drawn.dim() - 2))
                drawn = torch.where(where, drawn, self.values[name])
            self.values[name] = drawn
        self._log_total, self._seen = total, self._seen + count
