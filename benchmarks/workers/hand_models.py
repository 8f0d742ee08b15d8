"""The VAEs in plain PyTorch: networks and the Monte Carlo loss, no Pyro."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.network import SIDE
from benchmarks.workers.torch_parts import networks

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class HandVAE(nn.Module):
    """Loss of a batch: -(log p(x|z) + log p(z) - log q(z|x)) per datum, at one draw of z.

    `form` of log p(x|z): "bce", torch's own function, or "product", x l - softplus(l) spelled out.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, form: str = "product"):
        super().__init__()
        self.encoder, self.decoder, self.form = encoder, decoder, form

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        loc, raw = self.encoder(x).chunk(2, -1)
        noise = torch.randn_like(loc) if noise is None else noise
        z = loc + raw.exp() * noise
        logits = self.decoder(z).reshape(x.shape)
        if self.form == "bce":
            log_likelihood = -F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        else:
            log_likelihood = (x * logits - F.softplus(logits)).sum()
        log_q = -(0.5 * noise * noise + raw + HALF_LOG_2PI).sum()
        return -(log_likelihood + self.log_prior(z) - log_q) / len(x)

    def log_prior(self, z: Tensor) -> Tensor:
        """log p(z), summed over the batch."""
        return -(0.5 * z * z + HALF_LOG_2PI).sum()


class HandVampVAE(HandVAE):
    """p(z) = 1/C sum_c q(z | u_c), its C densities as one float32 matrix product."""

    def __init__(self, *networks: nn.Module, pseudo_inputs: Tensor, form: str = "product"):
        super().__init__(*networks, form=form)
        self.pseudo_inputs = nn.Parameter(pseudo_inputs)

    def log_prior(self, z: Tensor) -> Tensor:
        loc, raw = self.encoder(self.pseudo_inputs.clamp(0, 1)).chunk(2, -1)
        precision = (-2 * raw).exp()
        linear = precision * loc
        constant = -(0.5 * linear * loc + raw + HALF_LOG_2PI).sum(-1)
        each = torch.cat([z * z, z], -1) @ torch.cat([-0.5 * precision, linear], -1).T + constant
        return (each.logsumexp(-1) - math.log(len(loc))).sum()


def build(task: dict[str, Any], data: Tensor, form: str) -> HandVAE:
    """The task's model with its first weights."""
    torch.manual_seed(0)
    if task["model"] == "conv":
        model = HandVAE(*_convolutions(task.get("latent", 50)), form=form)
    else:
        model = HandVAE(*networks(task), form=form)
        if task["model"] == "vamp":
            start = data[: task["components"]].clone().clamp(0.01, 0.99)
            model = HandVampVAE(model.encoder, model.decoder, pseudo_inputs=start, form=form)
    return model.to(task["device"])


def _convolutions(latent: int) -> tuple[nn.Module, nn.Module]:
    """pyro_vae's `Conv` networks of their default sizes, written out."""
    small = SIDE // 4
    encoder = nn.Sequential(
        nn.Unflatten(1, (1, SIDE)),
        nn.Conv2d(1, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * small * small, 256),
        nn.ReLU(),
        nn.Linear(256, 2 * latent),
    )
    decoder = nn.Sequential(
        nn.Linear(latent, 256),
        nn.ReLU(),
        nn.Linear(256, 64 * small * small),
        nn.Unflatten(1, (64, small, small)),
        nn.ReLU(),
        nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 1, 3, stride=2, padding=1, output_padding=1),
    )
    return encoder, decoder
