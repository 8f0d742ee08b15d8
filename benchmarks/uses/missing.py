"""Half of all pixels hidden: how well are they told from the others?

Of MNIST test images, binarized at 0.5, the hidden pixels are predicted by the preset
`missing_mnist` under two guides, and by what needs no network: the mean of each pixel, and
probabilistic PCA fitted by EM to the known pixels (Tipping and Bishop 1999; Ilin and Raiko 2010,
JMLR 11). A VAE predicts in three ways (MIWAE, arXiv:1812.02633):

    one draw          p(x_d | z),                    z ~ q(z | x_known)
    mean of draws     1/K sum_k p(x_d | z_k)         draws from q
    weighted          sum_k w_k p(x_d | z_k) / sum_j w_j,   w_k = p(x_known, z_k) / q(z_k | x_known)

the last of which tends to p(x_d | x_known) as K grows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import inference
from benchmarks.uses.common import Bench, Row, mean_and_error, of_run
from pyro_vae.app.columns import Batch, arguments, choose
from pyro_vae.app.run import Run

FEW = "data.train_size=10000"
GUIDES = {
    "mean_field": ["model.guide=mean_field", "train.epochs=20"],
    "mean_field, 10,000 images": ["model.guide=mean_field", "train.epochs=20", FEW],
    "product_of_experts, 10,000 images": ["model.guide=product_of_experts", "train.epochs=20", FEW],
}
BASELINES = "mean of each pixel", "probabilistic PCA"
WAYS = "one draw", "mean of draws", "weighted"
NUM_DATA, NUM_DRAWS = 1_000, 200
PPCA_LATENT, PPCA_ROWS, PPCA_STEPS = 50, 10_000, 15
LEAST = 0.01  # what no Gaussian promises: probabilities between 0 and 1
SHOWN = 10


def measure(bench: Bench) -> dict[str, Tensor]:
    """Every row that is missing. Returns pictures by name, where they were made."""
    shown: dict[str, Tensor] = {}
    for guide, changes in GUIDES.items():
        names = [f"{guide}, {way}" for way in WAYS]
        if not bench.missing(*names):
            continue
        run = bench.trained(f"missing-{guide}".replace(", ", "-"), "missing_mnist", changes)
        (x, mask), truth = _test(run, bench.quick)
        found = imputed(run, (x, mask), 20 if bench.quick else NUM_DRAWS)
        for way in WAYS:
            row = {**scores(found[way], truth, mask), **of_run(run)}
            if way == "weighted":
                row["median_ess"] = float(found["ess"].median())
            bench.keep(f"{guide}, {way}", row)
        shown |= {guide: found["weighted"][:SHOWN], "truth": truth[:SHOWN], "mask": mask[:SHOWN]}
    if bench.missing(*BASELINES):
        run = bench.trained("missing-mean_field", "missing_mnist", GUIDES["mean_field"])
        (x, mask), truth = _test(run, bench.quick)
        dataset = run.spec.data.prepared()
        known = dataset.masks["train"]
        means = (dataset.train * known).sum(0) / known.sum(0).clamp_min(1)
        bench.keep(BASELINES[0], scores(means.expand_as(truth), truth, mask))
        few = choose((dataset.train.flatten(1), known.flatten(1)), 60 if bench.quick else PPCA_ROWS)
        size = (5, 3) if bench.quick else (PPCA_LATENT, PPCA_STEPS)
        model = fit_ppca(*few, latent=size[0], steps=size[1])
        found = model(x.flatten(1), mask.flatten(1)).reshape(truth.shape)
        bench.keep(BASELINES[1], scores(found, truth, mask))
        shown[BASELINES[1]] = found[:SHOWN]
    return shown


def _test(run: Run, quick: bool) -> tuple[Batch, Tensor]:
    """The random test images that all rows share: with masks, and whole."""
    batch = arguments(run.spec.data.prepared(), "test", run.spec.model)
    x, mask, truth = choose((*batch, run.spec.data.load().test), 20 if quick else NUM_DATA)
    return (x, mask), truth


# A VAE's three ways ------------------------------------------------------------------------------


@torch.no_grad()
def imputed(run: Run, batch: Batch, num_draws: int, size: int = 50) -> dict[str, Tensor]:
    """Means of p(x|z) `[N, ...]` in each of the `WAYS`, and `ess [N]` of the weights."""
    vae = run.vae()
    held: dict[str, list[Tensor]] = {name: [] for name in (*WAYS, "ess")}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        for rows in zip(*(part.split(size) for part in batch), strict=True):
            held["one draw"].append(vae.reconstruct(*rows))
            record = inference.log_weights(vae.model, vae.guide, *rows, num_particles=num_draws)
            means = vae.decode(record.latents["z"]).mean  # [K, n, ...]
            weights = record.log_weight.softmax(0)
            held["ess"].append(weights.square().sum(0).reciprocal())
            held["mean of draws"].append(means.mean(0))
            each = torch.einsum("kn,kn...->n...", weights.to(means.dtype), means)
            held["weighted"].append(each)
    return {name: torch.cat(parts) for name, parts in held.items()}


def scores(predicted: Tensor, truth: Tensor, mask: Tensor) -> Row:
    """Errors of hidden pixels: a mean over images of each one's mean; `each` for paired errors.

    Brier is the mean squared error of a probability, RMSE its root. For the log loss probabilities
    are held within [`LEAST`, 1 - `LEAST`], for all rows alike. `each`: the Brier score by image.
    """
    hidden = (~mask).flatten(1).double()
    p, x = predicted.flatten(1).double().clamp(0, 1), truth.flatten(1).double()
    squared = (p - x).square()
    held = p.clamp(LEAST, 1 - LEAST)
    loss = -(x * held.log() + (1 - x) * (1 - held).log())

    def per_image(values: Tensor) -> Tensor:
        return (values * hidden).sum(1) / hidden.sum(1).clamp_min(1)

    brier, error = mean_and_error(per_image(squared))
    log_loss, log_error = mean_and_error(per_image(loss))
    return {
        "num_data": len(truth),
        "brier": brier,
        "brier_se": error,
        "rmse": math.sqrt(brier),
        "rmse_se": error / (2 * math.sqrt(brier)),
        "log_loss": log_loss,
        "log_loss_se": log_error,
        "each": [round(float(v), 4) for v in per_image(squared)],
    }


# Probabilistic PCA of data that lack values ------------------------------------------------------


def fit_ppca(x: Tensor, known: Tensor, *, latent: int, steps: int) -> Any:
    """x = W z + m + noise, z ~ N(0, I), noise ~ N(0, s^2), by EM on known values `[N, D]`.

    E: z | x_known ~ N(mu_n, S_n), S_n = s^2 (W_n' W_n + s^2 I)^{-1}, W_n the rows of known values.
    M: row d of (W, m) is a regression on E[z], E[z z'] over the data that know d; s^2 what is left.
    Returns a function from `(x, known)` to E[x | x_known].
    """
    know = known.to(x.dtype)
    m = (x * know).sum(0) / know.sum(0).clamp_min(1)
    centred = (x - m) * know
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        _, _, v = torch.svd_lowrank(centred, latent, niter=2)
    w = 2 * v * (centred @ v).std(0)  # half of the values are seen
    noise = torch.tensor(0.05)
    for _ in range(steps):
        cross = x.new_zeros(x.shape[1], latent + 1)
        square = x.new_zeros(x.shape[1], (latent + 1) ** 2)
        total = x.new_zeros(x.shape[1])
        for some, kept in zip(x.split(1_000), know.split(1_000), strict=True):
            mean, cov = _posterior(some, kept, w, m, noise)
            one = torch.cat([mean, torch.ones(len(mean), 1)], 1)
            second = one.unsqueeze(2) * one.unsqueeze(1)
            second[:, :-1, :-1] += cov
            cross += (some * kept).T @ one
            square += kept.T @ second.flatten(1)
            total += (some.square() * kept).sum(0)
        matrix = square.unflatten(1, (latent + 1, latent + 1)) + 1e-3 * torch.eye(latent + 1)
        solved = torch.linalg.solve(matrix, cross)
        left = total - (solved * cross).sum(1)
        noise = (left.sum() / know.sum()).clamp_min(1e-4)
        w, m = solved[:, :-1], solved[:, -1]

    def impute(some: Tensor, kept: Tensor) -> Tensor:
        mean, _ = _posterior(some, kept.to(some.dtype), w, m, noise)
        return mean @ w.T + m

    return impute


def _posterior(
    x: Tensor, know: Tensor, w: Tensor, m: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean `[n, L]` and covariance `[n, L, L]` of z given the known values."""
    latent = w.shape[1]
    outer = (w.unsqueeze(2) * w.unsqueeze(1)).flatten(1)
    precision = (know @ outer).unflatten(1, (latent, latent)) + noise * torch.eye(latent)
    factor = torch.linalg.cholesky(precision)
    right = ((x - m) * know) @ w
    mean = torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
    return mean, noise * torch.cholesky_inverse(factor)
