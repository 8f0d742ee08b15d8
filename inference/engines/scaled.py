"""Pyro's own losses in nats per datum."""

from __future__ import annotations

from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from inference.pair import Pair, frame_of


class PerDatum(Messenger):
    """Scale sites to nats per datum, and the KL terms by beta.

    Plate sites weigh 1/batch and global sites 1/N, so that the loss is the whole data set's
    negative ELBO divided by N; clip norms and learning rates do not depend on N.
    """

    def __init__(self, pair: Pair, num_data: int):
        super().__init__()
        self.pair, self.num_data, self.beta = pair, num_data, 1.0
        self.keep: Tensor | None = None  # of a plate's rows, those that count

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        frame = frame_of(msg, self.pair.plate)
        # A plate that subsamples has scaled by full_size / size already.
        scale = 1 / (self.num_data if frame is None else (frame.full_size or frame.size))
        if self.keep is not None and frame is not None:
            keep = self.keep.reshape(-1, *(1 for _ in range(-frame.dim - 1)))
            msg["mask"] = keep if msg["mask"] is None else msg["mask"] & keep
            scale *= len(self.keep) / int(self.keep.sum())
        if not msg["is_observed"]:
            scale *= self.beta
        msg["scale"] = msg["scale"] * scale
