"""pythae: its own trainer, and its `get_nll`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import Tensor, nn

from benchmarks.network import PIXELS, Sizes
from benchmarks.workers.search import fastest
from benchmarks.workers.torch_parts import data_of, networks


class Encoder(BaseEncoder):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> ModelOutput:
        loc, raw = self.body(x).chunk(2, -1)
        return ModelOutput(embedding=loc, log_covariance=2 * raw)


class Decoder(BaseDecoder):
    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.body(z).sigmoid())


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    torch.manual_seed(0)
    encoder, decoder = networks(task)
    config = VAEConfig(
        input_dim=(PIXELS,), latent_dim=Sizes.of(task).latent, reconstruction_loss="bce"
    )
    vae = VAE(config, Encoder(encoder), Decoder(decoder))
    return evidence(task, vae) if task["work"] == "evidence" else training(task, vae)


def training(task: dict[str, Any], vae: VAE) -> tuple[Callable[[int], dict], str]:
    """`BaseTrainer.train_step`: an epoch over as many data as a slice has."""
    count = task["n"] * task["batch"]
    data = data_of(task).repeat(-(-count // task["num_data"]), 1)[:count]
    with tempfile.TemporaryDirectory() as folder:
        trainer = BaseTrainer(
            vae,
            BaseDataset(data, torch.zeros(count)),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=task["batch"],
                learning_rate=1e-3,
                no_cuda=True,
            ),
        )
        trainer.prepare_training()

    def run(n: int) -> dict[str, Any]:
        assert n == task["n"]
        return {"value": float(trainer.train_step(1))}

    for _ in range(-(-task["warmup"] // task["n"])):
        run(task["n"])
    return run, "its own trainer, loader and progress bar; its KL is analytic"


@torch.no_grad()
def evidence(task: dict[str, Any], vae: VAE) -> tuple[Callable[[int], dict], str]:
    data, samples = data_of(task), task["num_samples"]
    vae.eval()

    def make(rows: int) -> Callable[[int], dict]:
        @torch.no_grad()
        def run(n: int) -> dict[str, Any]:
            return {"value": float(vae.get_nll(data[:n], n_samples=samples, batch_size=rows))}

        return run

    sizes = [100, 500, 1000, 5000][: 4 if task["search"] else 1]
    whole = [rows for rows in sizes if samples % rows == 0] or [samples]
    found, run = fastest(whole, make, lambda way: way(1))
    return run, f"batch_size={found} of its choices"
