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


# x, or all tensors that the VAE's programs take, in the order of its columns.
Batch = Tensor | tuple[Tensor, ...]


def head(data: Batch, num: int) -> tuple[Tensor, ...]:
    """The first rows."""
    return tuple(item[:num] for item in (data if isinstance(data, tuple) else (data,)))


def prepared(vae: VAE, data: Batch) -> tuple[Tensor, ...]:
    """The batch on the VAE's device and in its dtype."""
    parts = head(data, len(data[0]) if isinstance(data, tuple) else len(data))
    if len(parts[0]) == 0:
        raise RequestError("x: holds no data; give at least one datum")
    weight = next(vae.parameters())
    return (parts[0].to(weight), *(part.to(weight.device) for part in parts[1:]))


def latent_means(vae: VAE, batch: tuple[Tensor, ...]) -> Tensor:
    """`[N, latent_dim]` on the CPU."""
    rows = zip(*(part.split(512) for part in batch), strict=True)
    means = [vae.latent_mean(*some).flatten(1) for some in rows]
    return torch.cat(means).float().cpu()


def labels_of(vae: VAE, batch: tuple[Tensor, ...]) -> Tensor | None:
    """What the decoder is told beside z: labels, the likely ones where they are missing."""
    return vae.likely_labels(*batch) if vae.decoder_joining.extras else None


def decoded_means(vae: VAE, z: Tensor, y: Tensor | None = None) -> Tensor:
    """`[N, *data_shape]` on the CPU. Without labels, those of a VAE that needs them are 0."""
    weight = next(vae.parameters())
    if y is None and vae.decoder_joining.extras:
        y = torch.zeros(len(z), dtype=torch.int64)
    labels = [None] * len(z) if y is None else y.to(weight.device).split(256)
    means = [
        vae.decode(batch.to(weight), some).mean
        for batch, some in zip(z.split(256), labels, strict=False)
    ]
    return torch.cat(means).float().cpu()


def prior_draws(vae: VAE, num: int) -> Tensor:
    """`[num, latent_dim]` on the CPU."""
    return vae.draw_prior(num)[0].flatten(1).float().cpu()


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
