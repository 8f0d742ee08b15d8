"""How noisy the gradient of each objective is.

    python -m benchmarks.gradients             # a minute on one core; and the README's table
    python -m benchmarks.gradients --report    # the table only

One small amortized pair with weights as initialised and again after some training. Of every
objective the variance of its gradient, summed over the parameters of the model and over those of
the guide, beside the squared norm of its mean, on one batch of 16 data. All take as many draws of
each datum.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import nn

import inference
from benchmarks import machine, tables
from benchmarks.report import rewritten
from inference.isolation import own_randomness, own_store, validation
from inference.pair import examine
from inference.tracing import evaluate_loss

RESULTS = machine.ROOT / "benchmarks" / "results" / "gradients.json"
BEGIN, END = "<!-- gradients:begin -->", "<!-- gradients:end -->"
PARTICLES = 8
OBJECTIVES = (
    inference.ELBO(num_particles=PARTICLES),
    inference.ELBO(num_particles=PARTICLES, kl="analytic"),
    inference.STL(num_particles=PARTICLES),
    inference.BetaELBO(num_particles=PARTICLES),
    inference.FreeBits(num_particles=PARTICLES),
    inference.InfoVAE(num_particles=PARTICLES, weight=10.0),
    inference.TotalCorrelation(num_particles=PARTICLES),
    inference.IWAE(num_particles=PARTICLES),
    inference.DReG(num_particles=PARTICLES),
    inference.Renyi(num_particles=PARTICLES),
    inference.ReweightedWakeSleep(num_particles=PARTICLES),
    inference.Thermodynamic(num_particles=PARTICLES),
)


class Small(nn.Module):
    """A VAE of 16 binary pixels and 4 latents."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8))
        self.decoder = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 16))

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            loc = x.new_zeros(len(x), 4)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


def images(num: int = 256) -> torch.Tensor:
    """Bars of 4 x 4 pixels, some of them flipped."""
    generator = torch.Generator().manual_seed(0)
    rows = (torch.rand(num, 4, 1, generator=generator) < 0.4).expand(num, 4, 4)
    flipped = torch.rand(num, 4, 4, generator=generator) < 0.05
    return (rows ^ flipped).reshape(num, 16).float()


def variances(vae: Small, x: torch.Tensor, objective, draws: int) -> dict[str, float]:
    """Of the gradient on one batch: variance and squared norm of the mean, of each program."""
    with own_store(share=True), own_randomness(1), validation(False):
        pair = examine(vae.model, vae.guide, (x,), "data")
        parts = {"model": list(vae.decoder.parameters()), "guide": list(vae.encoder.parameters())}
        gradients: dict[str, list[torch.Tensor]] = {name: [] for name in parts}
        for _ in range(draws):
            beta = objective.beta(0, 1)
            loss, _ = evaluate_loss(pair, objective, (x,), beta, len(x), vectorize=True)
            found = torch.autograd.grad(loss, [p for part in parts.values() for p in part])
            count = len(parts["model"])
            for name, some in (("model", found[:count]), ("guide", found[count:])):
                gradients[name].append(torch.cat([g.flatten() for g in some]))
    row = {}
    for name, every in gradients.items():
        stack = torch.stack(every).double()
        noise = stack.var(0).sum()
        row[f"{name}_variance"] = float(noise)
        row[f"{name}_squared_norm"] = float(stack.mean(0).square().sum() - noise / draws)
    return row


def label(objective) -> str:
    return f"{objective.name} (analytic KL)" if objective == OBJECTIVES[1] else objective.name


def measure(draws: int, epochs: int) -> dict:
    """Rows of all objectives, at the first weights and after `epochs` of the ELBO."""
    x = images()
    with own_randomness(0):
        vae = Small()
    stages = {"at the start": 0, f"after {epochs} epochs of the ELBO": epochs}
    found: dict = {"particles": PARTICLES, "draws": draws, "rows": 16, "stages": {}}
    for stage, trained in stages.items():
        if trained:
            inference.fit(
                vae.model, vae.guide, x, epochs=trained, batch_size=32, learning_rate=5e-3,
                engine="eager", progress=False,
            )  # fmt: skip
        batch = x[:16]
        found["stages"][stage] = {
            label(objective): variances(vae, batch, objective, draws) for objective in OBJECTIVES
        }
    return found | {
        "torch": torch.__version__.split("+")[0],
        "commit": machine.commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def block(found: dict) -> str:
    """The README's part: noise against signal, of the model's gradient and of the guide's."""
    stages = found["stages"]
    how = (
        f"`python -m benchmarks.gradients` on {found['date']}: torch {found['torch']}, commit "
        f"{(found['commit'] or 'unknown')[:10]}. Variance of the gradient, summed over parameters, "
        f"over the squared norm of its mean; {found['particles']} draws of each of {found['rows']} "
        f"data, {found['draws']} repeats, a VAE of 16 binary pixels and 4 latents."
    )
    columns = [f"{part}, {stage}" for stage in stages for part in ("model", "guide")]
    rows = []
    for name in next(iter(stages.values())):
        cells = []
        for stage in stages.values():
            for part in ("model", "guide"):
                signal = stage[name][f"{part}_squared_norm"]
                told = tables.number(stage[name][f"{part}_variance"] / signal)
                cells.append(told if signal > 0 else "no signal")
        rows.append([f"`{name}`", *cells])
    table = tables.Table("", ["objective", *columns], rows, [])
    return f"{tables.wrapped(how)}\n\n{tables.markdown(table)}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draws", type=int, default=150, help="repeats of each gradient")
    parser.add_argument("--epochs", type=int, default=20, help="of training between the stages")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the JSON file goes")
    parser.add_argument("--readme", type=Path, default=machine.ROOT / "README.md")
    parser.add_argument("--report", action="store_true", help="rewrite the README's part only")
    options = parser.parse_args(arguments)
    if not options.report:
        found = measure(options.draws, options.epochs)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    part = block(json.loads(options.out.read_text("utf-8")))
    print(part)
    text = options.readme.read_text("utf-8")
    options.readme.write_text(rewritten(text, part, BEGIN, END), encoding="utf-8")


if __name__ == "__main__":
    main()
