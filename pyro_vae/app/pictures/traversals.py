"""Traversals: what each latent does when it alone moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pyro_vae.app.pictures import queries
from pyro_vae.app.pictures.cells import Look
from pyro_vae.app.pictures.page import Panel, minus, page
from pyro_vae.errors import RequestError
from pyro_vae.vae import VAE


def traversals(
    vae: VAE,
    x: queries.Batch | None,
    path: str | Path,
    *,
    dims: Sequence[int] | None = None,
    span: float = 3.0,
    steps: int = 11,
    seed: int = 0,
) -> Path:
    """One row per latent: it moves by `span` prior standard deviations either way from the mean.

    The other latents stay at the prior's mean; a label that the decoder sees is 0.

    Args:
        x: data `[N, *data_shape]`, or None. With it, each row tells the variance over x of the
            latent's posterior mean, and `dims=None` draws the ten latents where it is largest.
        dims: which latents, in which order; None draws ten at most.
    """
    queries.at_least(2, steps=steps)
    if not 0 < span < math.inf:
        raise RequestError(f"span: {span}; give a positive number of prior standard deviations")
    queries.need_real(vae, "traversals")
    size = vae.shapes.latent_dim
    if dims is not None and (len(dims) == 0 or min(dims) < 0 or max(dims) >= size):
        raise RequestError(f"dims: {list(dims)}; this VAE has latents 0 to {size - 1}")
    variance = None
    with queries.undisturbed(vae, seed):
        if x is not None:
            shown = queries.prepared(vae, queries.head(x, 2000))
            x = shown[0]
            variance = queries.latent_means(vae, shown).var(0, correction=0)
        if dims is None:
            order = torch.zeros(size) if variance is None else variance
            dims = order.argsort(descending=True, stable=True)[:10].tolist()
        center, scale = _prior_moments(vae)
        offsets = span * torch.linspace(-1, 1, steps, dtype=torch.float64, device="cpu")
        z = center.repeat(len(dims), steps, 1)
        for row, d in enumerate(dims):
            z[row, :, d] += offsets * scale[d]
        means = queries.decoded_means(vae, z.flatten(0, 1))
    look = Look.of(vae, means, x)
    note = "Prior standard deviations from the prior's mean; the other latents stay at that mean."
    rows = [f"z{d}" for d in dims]
    if variance is not None:
        rows = [f"z{d}  ({variance[d]:.2f})" for d in dims]
        note += " In brackets: variance over the data of the latent's posterior mean."
    columns = [minus(f"{round(offset, 9):+.2g}") for offset in offsets.tolist()]
    panel = Panel(look.cells(means), steps, "", rows, columns)
    return page(path, "Traversals, means of p(x|z)", [panel], f"{note} {look.note}")


def _prior_moments(vae: VAE) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each latent under the prior: exact, or of 4096 draws."""
    try:
        if vae.spec.label != "none":
            raise NotImplementedError
        p = vae.prior.distribution()
        return p.mean.flatten().float().cpu(), p.stddev.flatten().float().cpu()
    except NotImplementedError:
        draws = queries.prior_draws(vae, 4096)
        return draws.mean(0), draws.std(0)
