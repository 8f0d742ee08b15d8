"""Pyro itself: `SVI`, `JitTrace_ELBO`, `Importance` and `RenyiELBO`, with Pyro's defaults."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from benchmarks.workers.torch_parts import data_of, networks, steps


class PyroVAE(nn.Module):
    """The network as a Pyro program, as Pyro's own tutorial writes it."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module):
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            zero = x.new_zeros(len(x), self.decoder[0].in_features)
            z = pyro.sample("z", dist.Normal(zero, torch.ones_like(zero)).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def prepare(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    torch.manual_seed(0)
    return evidence(task) if task["work"] == "evidence" else training(task)


def training(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    """`SVI.step` on minibatches."""
    data = data_of(task)
    if task["model"] == "mlp":
        vae: Any = PyroVAE(*networks(task)).to(task["device"])
    else:
        from benchmarks.workers.our_vae import build

        vae = build(task, data)
    jit = task["kind"] == "jit"
    loss = pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True) if jit else pyro.infer.Trace_ELBO()
    if task["kind"] == "no-validation":
        pyro.enable_validation(False)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), loss)
    size = task["batch"]
    run = steps(task, lambda rows: torch.tensor(svi.step(data[rows]) / size))
    run(task["warmup"])
    return run, "" if task["model"] == "mlp" else "on pyro_vae's model and guide"


@torch.no_grad()
def evidence(task: dict[str, Any]) -> tuple[Callable[[int], dict], str]:
    """log p(x), one datum at a time: both weigh a batch jointly."""
    data = data_of(task)
    vae = PyroVAE(*networks(task)).to(task["device"])
    samples = task["num_samples"]

    def importance(x: Tensor) -> float:
        posterior = pyro.infer.Importance(vae.model, vae.guide, num_samples=samples)
        return float(posterior.run(x).get_log_normalizer())

    bound = pyro.infer.RenyiELBO(alpha=0, num_particles=samples, vectorize_particles=True)

    def renyi(x: Tensor) -> float:
        return -bound.loss(vae.model, vae.guide, x)

    one = importance if task["kind"] == "importance" else renyi

    @torch.no_grad()
    def run(n: int) -> dict[str, Any]:
        return {"value": math.fsum(one(data[i : i + 1]) for i in range(n)) / n}

    if task["warm"]:
        run(1)
    return run, f"one datum at a time, {samples:,} samples"
