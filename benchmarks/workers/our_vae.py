"""The VAE of this repository, of the task's network and with the given weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import pyro_vae as pv
from benchmarks.network import PIXELS, SIDE, Sizes, weights
from benchmarks.workers.torch_parts import set_weights


def build(task: dict[str, Any], data: Tensor) -> pv.VAE:
    torch.manual_seed(0)
    sizes = Sizes.of(task)
    mlp = pv.networks.MLP(hidden=(sizes.hidden, sizes.hidden))
    network = pv.networks.Conv() if task["model"] == "conv" else mlp
    prior = pv.priors.StandardNormal()
    if task["model"] == "vamp":
        prior = pv.priors.VampPrior(components=task["components"])
    vae = pv.VAE(
        data_shape=(SIDE, SIDE) if task["model"] == "conv" else (PIXELS,),
        latent_dim=sizes.latent,
        prior=prior,
        guide=pv.guides.MeanField(),
        likelihood=pv.likelihoods.Bernoulli(),
        encoder=network,
        decoder=network,
    )
    if task["model"] == "vamp":
        vae.prior.initialize(data.cpu())
    if task["model"] != "conv":
        made = weights(sizes)
        for net, layers in (
            (vae.guide_module.encoder, made["encoder"]),
            (vae.decoder, made["decoder"]),
        ):
            linear = [m for m in net.modules() if isinstance(m, nn.Linear)]
            for module, values in zip(linear, layers, strict=True):
                set_weights(module, values)
    return vae.to(task["device"])
