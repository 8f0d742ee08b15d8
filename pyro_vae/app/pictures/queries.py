"""What pictures ask of a VAE, without leaving a trace in it, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from inference.isolation import modes, own_randomness
from pyro_vae.errors import RequestError
from pyro_vae.vae import VAE


@contextmanager
def undisturbed(vae: VAE, seed: int) -> Iterator[None]:
    """Evaluation mode, no gradients and random numbers from `seed`; all put back at the end."""
    if not all(bool(weight.isfinite().all()) for weight in vae.parameters()):
        raise RequestError("this VAE holds weights that are not finite: nothing can be drawn")
    with own_randomness(seed), modes([vae], training=False), torch.no_grad():
        yield


def prepared(vae: VAE, x: Tensor) -> Tensor:
    """x on the VAE's device and in its dtype."""
    if len(x) == 0:
        raise RequestError("x: holds no data; give at least one datum")
    return x.to(next(vae.parameters()))


def latent_means(vae: VAE, x: Tensor) -> Tensor:
    """`[N, latent_dim]` on the CPU."""
    means = [vae.latent_mean(batch).flatten(1) for batch in x.split(512)]
    return torch.cat(means).float().cpu()


def decoded_means(vae: VAE, z: Tensor) -> Tensor:
    """`[N, *data_shape]` on the CPU."""
    weight = next(vae.parameters())
    means = [vae.decode(batch.to(weight)).mean for batch in z.split(256)]
    return torch.cat(means).float().cpu()


def prior_draws(vae: VAE, num: int) -> Tensor:
    """`[num, latent_dim]` on the CPU."""
    return vae.prior.distribution().expand([num]).sample().flatten(1).float().cpu()


def need_real(vae: VAE, name: str) -> None:
    support = vae.spec.prior.support
    if support != "real":
        raise RequestError(
            f"{name}: moves latents freely along the real line and this prior has {support} ones; "
            "samples and reconstructions draw any latents"
        )


def at_least(least: int, **values: int) -> None:
    for name, value in values.items():
        if value < least:
            raise RequestError(f"{name}: {value}; must be at least {least}")
