"""500 images: does it help to average over a decoder's weights?

Predictive log-likelihood of MNIST test images, binarized at 0.5: of the preset `bayesian_mnist`

    log 1/S sum_s p(x | w_s),   w_s ~ q(w),   p(x | w) = int p(z) p(x | z, w) dz,

beside the same network with one set of weights, trained on the same 500 images to the end, or on
400 of them until the bound of the other 100 has not risen for `PATIENCE` epochs. q(w) starts at
0.02 of the prior's width, or at 0.2: a step widens it by a factor of at most exp(learning rate), so
that a narrow one, where the weights have no say, has some 4,000 steps to go. p(x | w) is by the
same number of importance samples everywhere; on fewer images by annealed chains, too, since an
encoder of 500 images is a poor guide for others.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

import inference
from benchmarks.uses.common import Bench, Row, mean_and_error, of_run
from pyro_vae.app.columns import arguments, choose
from pyro_vae.app.run import Run

PATIENCE = 50
POINT = "model.decoder={name: mlp, hidden: [200], activation: tanh}"
ROWS = {
    "bayesian": [],
    "bayesian, starting wide": ["model.decoder.initial_scale=0.2"],
    "point, to the end": [POINT],
    "point, stopped early": [
        POINT,
        "data.train_size=400",
        "data.validation=100",
        f"train.patience={PATIENCE}",
    ],
}
SEEDS = 0, 1
NUM_SAMPLES, NUM_DRAWS = 500, 10
NUM_DATA, BY_CHAINS = 1_000, 50


def measure(bench: Bench) -> dict[str, Any]:
    """Every row that is missing."""
    for seed in SEEDS:
        for name, changes in ROWS.items():
            told = f"{name}, seed {seed}"
            if not bench.missing(told):
                continue
            folder = f"few-{told}".replace(", ", "-").replace(" ", "-")
            own = [*changes, f"train.seed={seed}"]
            if bench.quick:
                own = [c.replace("400", "80").replace("100", "50") for c in own]
                own += [] if "data.train_size=80" in own else ["data.train_size=100"]
            run = bench.trained(folder, "bayesian_mnist", own)
            bench.keep(told, _row(bench, run, chains=seed == 0))
    return {}


def _row(bench: Bench, run: Run, *, chains: bool) -> Row:
    whole = arguments(run.spec.data.prepared(), "test", run.spec.model)
    x = choose(whole, 20 if bench.quick else NUM_DATA)
    samples = inference.Importance(num_samples=20 if bench.quick else NUM_SAMPLES)
    found = log_p(run, x, samples, bench)
    mean, error = mean_and_error(found.value)
    row = {
        **of_run(run),
        "best_epoch": run.summary()["best_epoch"] if run.spec.train.patience else None,
        "num_data": found.num_data,
        "log_px": mean,
        "test_se": error,
        "mc_std_error": found.mc_std_error,
        "draws_se": getattr(found, "mean_draws_std_error", None),
        "flagged": found.num_flagged / found.num_data,
        "bound": float(found.elbo.mean()),
        "each": [round(float(v), 4) for v in found.value],
    }
    if chains:
        few = choose(x, 5 if bench.quick else BY_CHAINS)
        by = inference.AIS(num_temperatures=3 if bench.quick else 100, num_chains=4)
        there = log_p(run, few, by, bench)
        row["chains"], row["chains_se"] = mean_and_error(there.value)
        row["chains_mc_se"] = there.mc_std_error
        row["importance_there"] = float(_of(few, x, found.value).mean())
        row["each_chains"] = [round(float(v), 4) for v in there.value]
    return row


def log_p(run: Run, x: tuple[Tensor, ...], by: Any, bench: Bench) -> inference.Estimate:
    """log p(x | draws of the weights), or of a decoder with one set of them log p(x)."""
    vae = run.vae()
    how = {"estimator": by, "engine": "eager", "progress": False}
    if vae.bayesian:
        draws = 2 if bench.quick else NUM_DRAWS
        return inference.log_predictive(vae.model, vae.guide, x, draws=draws, **how)
    return inference.log_marginal(vae.model, vae.guide, x, **how)


def _of(few: tuple[Tensor, ...], whole: tuple[Tensor, ...], values: Tensor) -> Tensor:
    """The values of those data that are in `few`."""
    same = (few[0].flatten(1)[:, None] == whole[0].flatten(1)[None]).all(-1)
    return values[same.float().argmax(1)]
