"""The latent manifold: means on a grid over two latents."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.app.pictures import queries
from pyro_vae.app.pictures.cells import Look
from pyro_vae.app.pictures.page import Panel, minus, page
from pyro_vae.errors import RequestError
from pyro_vae.vae import VAE


def manifold(
    vae: VAE, path: str | Path, *, steps: int = 20, seed: int = 0, like: Tensor | None = None
) -> Path:
    """Means of p(x|z) on a grid over two latents.

    A normal prior is cut at equal steps of probability; another prior at equal steps over the
    central 95% of its draws. `like`: data on whose range the means are shown.
    """
    queries.at_least(2, steps=steps)
    queries.need_real(vae, "manifold")
    if vae.shapes.latent_dim != 2:
        raise RequestError(
            f"manifold: needs two latents and this VAE has {vae.shapes.latent_dim}; "
            "traversals draws any number"
        )
    with queries.undisturbed(vae, seed):
        grid, how = _grid(vae, steps)
        across, up = grid.unbind(1)
        z = torch.stack([across.repeat(steps), up.flip(0).repeat_interleave(steps)], 1)
        means = queries.decoded_means(vae, z)
    look = Look.of(vae, means, like)
    told = np.linspace(0, steps - 1, min(steps, 5)).round()
    columns, rows = (
        [minus(f"{value:.2f}") if i in told else "" for i, value in enumerate(values)]
        for values in (across, up)
    )
    panel = Panel(look.cells(means), steps, "", rows[::-1], columns, ("z0", "z1"))
    return page(path, "Latent manifold, means of p(x|z)", [panel], f"Grid: {how}. {look.note}")


def _grid(vae: VAE, steps: int) -> tuple[Tensor, str]:
    """The values `[steps, 2]` that the two latents take, and how they were found."""
    share = torch.arange(steps)[:, None].to(next(vae.parameters()))
    try:
        if vae.spec.label != "none":
            raise NotImplementedError
        p = vae.prior.distribution()
        quantiles = (p.base_dist if isinstance(p, Independent) else p).icdf((share + 0.5) / steps)
        return quantiles.cpu(), "equal steps of prior probability"
    except NotImplementedError:
        tails = torch.tensor([0.025, 0.975], device="cpu")
        ends = queries.prior_draws(vae, 4096).quantile(tails, dim=0)
        grid = torch.lerp(ends[:1], ends[1:], share.float().cpu() / (steps - 1))
        return grid, "equal steps over the central 95% of the prior's draws"
