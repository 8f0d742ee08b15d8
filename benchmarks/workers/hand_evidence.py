"""log p(x) by a hand-written loop in PyTorch: encode once, then tiles of samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.workers.search import fastest
from benchmarks.workers.torch_parts import data_of, networks, tiles


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    data = data_of(task)
    encoder, decoder = (net.to(task["device"]) for net in networks(task))
    samples = task["num_samples"]

    def log_weight(loc: Tensor, raw: Tensor, x: Tensor, noise: Tensor) -> Tensor:
        """log w of draws of one datum; the noise comes from outside, see `by_hand`."""
        z = loc + raw.exp() * noise
        logits = decoder(z)
        log_likelihood = logits @ x - F.softplus(logits).sum(-1)
        # log p(z) - log q(z|x): 2 pi cancels.
        return log_likelihood + 0.5 * (noise * noise - z * z).sum(-1) + raw.sum()

    def make(rows: int) -> Callable[[int], dict]:
        weigh = log_weight
        if task["kind"] == "compiled":
            weigh = torch.compile(log_weight, dynamic=False)

        def log_px(x: Tensor) -> Tensor:
            loc, raw = encoder(x).chunk(2, -1)
            shape = (rows, loc.shape[-1])
            draws = (torch.randn(shape, device=x.device) for _ in range(samples // rows))
            each = torch.cat([weigh(loc, raw, x, noise) for noise in draws]).double()
            return each.logsumexp(0) - math.log(samples)

        def run(n: int) -> dict[str, Any]:
            return {"value": float(torch.stack([log_px(x) for x in data[:n]]).mean())}

        return run

    # Whole tiles only: a ragged one would be a second graph.
    whole = [rows for rows in tiles(task) if samples % rows == 0] or [samples]
    found, run = fastest(whole, make, lambda way: way(2))
    if task["warm"]:
        run(1)
    return run, f"tiles of {found} samples of one datum"
