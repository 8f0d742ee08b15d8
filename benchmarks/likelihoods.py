"""Every likelihood of grey pictures in one unit: bits per dimension on Fashion-MNIST.

    python -m benchmarks.likelihoods             # an hour on one core; goes on where it stopped
    python -m benchmarks.likelihoods --report    # the README's table

One VAE, trained alike under each likelihood: same data, hidden layers, steps and seed. Only the
decoder's last layer differs, for a likelihood says how many numbers a pixel it wants. Scored on the
same random 1,000 test images, 8-bit levels 0 to 255. Discrete likelihoods take the levels as they
are. Densities take x = (level + u) / 256, u ~ U(0, 1), with the same u of each test image for all;
their log p(x) - D log 256 is a lower bound on the log-probability of the levels
(arXiv:1511.01844), so their bits are an upper bound. Rows that the JSON file holds are not measured
again; values of each image stand in the safetensors file beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import inference
from benchmarks import machine, tables
from benchmarks.report import commit_of, rewritten
from inference.isolation import own_randomness
from pyro_vae.app.columns import Batch, arguments, batch_fingerprint, choose
from pyro_vae.app.experiment import ExperimentSpec, resolve
from pyro_vae.app.train import build
from pyro_vae.component import Registry
from pyro_vae.data.bits import bits_per_dim
from pyro_vae.likelihoods.base import DISCRETE, Likelihood
from pyro_vae.vae import VAE

RESULT = machine.ROOT / "benchmarks" / "results" / "likelihoods.json"
BEGIN, END = "<!-- likelihoods:begin -->", "<!-- likelihoods:end -->"
REFERENCE = "discretized_logistic"  # the row that others are paired with
NUM_DATA, NUM_SAMPLES = 1_000, 100
MORE = 100, 1_000  # so many of the data, with so many samples: by how much K moves a row
EPOCHS, BATCH, RATE = 1, 32, 1e-3
HIDDEN = {"encoder": (200, 200), "decoder": (200, 32)}
LATENT = 20
# A level's noise has a standard deviation of 1 / (256 sqrt 12) = 0.0011: a floor above it would
# set the bits of constant pixels.
FLOOR = 1e-3

ROWS: dict[str, dict[str, Any]] = {
    "discretized_logistic": {"name": "discretized_logistic"},
    "gaussian, sigma learned": {"name": "gaussian", "floor": FLOOR},
    "gaussian, sigma optimal": {"name": "gaussian", "sigma": "optimal", "floor": FLOOR},
    "gaussian, sigma predicted": {"name": "gaussian", "sigma": "predicted", "floor": FLOOR},
    "logit_normal": {"name": "logit_normal"},
    "continuous_bernoulli": {"name": "continuous_bernoulli"},
    "beta": {"name": "beta"},
    "gaussian, sigma per pixel": {"name": "gaussian", "sigma": "per_pixel", "floor": FLOOR},
    "discretized_logistic, 5 components": {"name": "discretized_logistic", "components": 5},
    "gaussian_covariance, rank 4": {"name": "gaussian_covariance", "floor": FLOOR},
    "laplace, scale predicted": {"name": "laplace", "sigma": "predicted", "floor": FLOOR},
    "student_t, scale predicted": {
        "name": "student_t",
        "sigma": "predicted",
        "floor": FLOOR,
        "learn_degrees": True,
    },
    "categorical": {"name": "categorical"},  # last: its 200,704 numbers an image take longest
}


def spec_of(likelihood: dict[str, Any], quick: bool) -> ExperimentSpec:
    """The experiment of one row; `quick`: on the digits, with smaller layers."""
    known: Registry = Likelihood.registry
    discrete = known[likelihood["name"]].support in DISCRETE
    data: dict[str, Any] = {"name": "digits" if quick else "fashion_mnist", "validation": 0}
    data |= {"binarize": "none", "dequantize": "none" if discrete else "uniform"}
    if quick and discrete:
        likelihood = {**likelihood, "levels": 17}
    networks = {
        part: {"name": "mlp", "hidden": [16] if quick else sizes, "activation": "tanh"}
        for part, sizes in HIDDEN.items()
    }
    model = {"latent_dim": 2 if quick else LATENT, "likelihood": likelihood, **networks}
    return ExperimentSpec.from_dict({"data": data, "model": model})


def measure(likelihood: dict[str, Any], epochs: int, quick: bool) -> tuple[dict[str, Any], Tensor]:
    """A row, and -log2 p(x) / D of each image, `[N]`."""
    spec = spec_of(likelihood, quick)
    dataset = spec.data.prepared()
    spec = resolve(spec, dataset)
    vae = build(spec, dataset)
    began = time.process_time()
    found = inference.fit(
        vae.model,
        vae.guide,
        arguments(dataset, "train", spec.model, fresh=True),
        epochs=epochs,
        batch_size=BATCH,
        learning_rate=RATE,
        batch_transform=dataset.train_transform,
        engine="eager",
        progress=False,
    )
    vae.eval()
    with own_randomness(0):
        vae.finalize(*arguments(dataset, "train", spec.model))
    seconds = time.process_time() - began
    x = choose(arguments(dataset, "test", spec.model), 20 if quick else NUM_DATA)
    levels = dataset.levels if dataset.dequantized else None
    dims, unit = x[0][0].numel(), x[0][0].numel() * math.log(2)
    estimate = score(vae, x, 10 if quick else NUM_SAMPLES)
    row = {
        "likelihood": vae.spec.likelihood.to_dict(),
        "bits": bits_per_dim(estimate.mean, dims, levels),
        "bits_std_error": estimate.test_std_error / unit,
        "mc_std_error": estimate.mc_std_error / unit,
        "bound": levels is not None,
        "elbo_bits": bits_per_dim(inference.bound(vae.model, vae.guide, x).elbo, dims, levels),
        "log_px": estimate.mean,
        "khat_bad": estimate.num_khat_bad,
        "num_data": len(x[0]),
        "num_samples": 10 if quick else NUM_SAMPLES,
        "numbers_per_pixel": math.prod(vae.decoder.out_shape) // dims,
        "num_weights": vae.num_weights,
        "steps": found.steps,
        "train_bound": found.history[-1]["train_bound"],
        "train_cpu_seconds": seconds,
        "threads": torch.get_num_threads(),
        "data_fingerprint": batch_fingerprint(x),
        "commit": machine.commit(),
    }
    if row["numbers_per_pixel"] <= 2:  # of the others it takes too long
        few = choose(x, 10 if quick else MORE[0])
        more = score(vae, few, 50 if quick else MORE[1])
        same = bits_per_dim(score(vae, few, row["num_samples"]).mean, dims, levels)
        row["more_samples_bits"] = bits_per_dim(more.mean, dims, levels) - same
    row |= by_level(vae, x, levels, dataset.levels)
    bits = -estimate.value / unit + (0.0 if levels is None else math.log2(levels))
    return row, bits.float()


def score(vae: VAE, x: Batch, num_samples: int) -> inference.Estimate:
    return inference.log_marginal(
        vae.model,
        vae.guide,
        x,
        estimator=inference.Importance(num_samples=num_samples),
        engine="eager",
        progress=False,
    )


@torch.no_grad()
def by_level(vae: VAE, x: Batch, noisy: int | None, levels: int) -> dict[str, float]:
    """-log2 p(x_d | z) of pixels of level 0, and of the others, z ~ q(z|x); the share of the first.

    Nothing where pixels are not independent given z.
    """
    black, bits = [], []
    with own_randomness(0):
        for rows in x[0].split(100):
            p = vae.decode(vae.encode(rows).sample())
            if not hasattr(p, "base_dist"):
                return {}
            each = -p.base_dist.log_prob(rows) / math.log(2)
            bits.append(each if noisy is None else each + math.log2(noisy))
            level = rows * (levels - 1) if noisy is None else (rows * noisy).floor()
            black.append(level < 0.5)
    zero, told = torch.cat(black), torch.cat(bits).double()
    return {
        "black_share": float(zero.double().mean()),
        "black_bits": float(told[zero].mean()),
        "other_bits": float(told[~zero].mean()),
    }


# The README ----------------------------------------------------------------------------------


def block(result: dict[str, Any], values: dict[str, Tensor]) -> str:
    """How it was measured, and the table."""
    told, rows = result["machine"], result["rows"]
    first = next(iter(rows.values()))
    commits = ", ".join(dict.fromkeys(map(commit_of, rows.values())))
    layers = {part: "-".join(map(str, sizes)) for part, sizes in HIDDEN.items()}
    moved = [row["more_samples_bits"] for row in rows.values() if "more_samples_bits" in row]
    said = (
        f"`python -m benchmarks.likelihoods` on {result['date']}: {told['cpu']}, torch "
        f"{result['torch']}; commit {commits}. Grey Fashion-MNIST, 8-bit levels, encoder "
        f"784-{layers['encoder']}-[{LATENT}], decoder [{LATENT}]-{layers['decoder']}-784 times the "
        f"numbers a pixel that the likelihood takes, tanh; {result['epochs']} epoch"
        f"{'s' * (result['epochs'] > 1)} of 60,000 images ({first['steps']:,} steps of {BATCH}, "
        f"Adam at {RATE:g}), one seed, no clipping. log p(x) of one random "
        f"{first['num_data']:,} test images by importance sampling, K = {first['num_samples']}; "
        f"on {MORE[0]} of them K = {MORE[1]:,} takes off {-max(moved):.4f} to {-min(moved):.4f} "
        "bits. k-hat is too large for "
        f"{min(row['khat_bad'] / row['num_data'] for row in rows.values()):.0%} of the images or "
        "more, so all bits are too high by more than Monte-Carlo errors say, and those are not "
        "shown. Error: that of the images. Paired: less the row "
        f"`{REFERENCE}`, image by image. Black, other: -log2 p(x|z) of pixels of level 0 "
        f"({first['black_share']:.0%}) and of the others. Seconds of one processor in training."
    )
    return f"{tables.wrapped(said)}\n\n{tables.markdown(table(rows, values))}"


def table(rows: dict[str, Any], values: dict[str, Tensor]) -> tables.Table:
    """Discrete rows, then densities, each from the best down."""
    body = []
    for name, row in sorted(rows.items(), key=lambda item: (item[1]["bound"], item[1]["bits"])):
        paired = ""
        if name != REFERENCE and REFERENCE in values:
            difference = (values[name] - values[REFERENCE]).double()
            error = float(difference.std()) / math.sqrt(len(difference))
            paired = f"{float(difference.mean()):+.3f} +- {error:.3f}"
        body.append(
            [
                name,
                ("at most " if row["bound"] else "") + f"**{row['bits']:.3f}**",
                f"{row['bits_std_error']:.3f}",
                paired,
                f"{row['black_bits']:.2f}" if "black_bits" in row else "",
                f"{row['other_bits']:.2f}" if "other_bits" in row else "",
                str(row["numbers_per_pixel"]),
                f"{row['train_cpu_seconds']:.0f}",
            ]
        )
    columns = ["likelihood", "bits per dimension", "error", "paired", "black", "other"]
    title = (
        "Bits per dimension on the 0-255 scale, less is better. Rows with `at most` are densities "
        "of dequantized data: log p(x) less 784 log 256 is a lower bound on log P(levels)"
    )
    left = [name for name in ROWS if name not in rows]
    reasons = [f"not measured yet: {'; '.join(left)}"] if left else []
    return tables.Table(title, [*columns, "numbers a pixel", "seconds"], body, reasons)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.likelihoods",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--readme", type=Path, default=machine.ROOT / "README.md", metavar="FILE")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of every row")
    parser.add_argument("--report", action="store_true", help="rewrite the README's part only")
    parser.add_argument("--quick", action="store_true", help="tiny, on the digits: do rows run?")
    args = parser.parse_args(argv)
    beside = args.result.with_suffix(".safetensors")
    result: dict[str, Any] = {"rows": {}}
    values: dict[str, Tensor] = {}
    if args.result.exists():
        result = json.loads(args.result.read_text(encoding="utf-8"))
        values = load_file(beside)
    if args.report:
        if not result["rows"]:
            raise SystemExit(f"--result: {args.result} is not there; measure first")
        text = args.readme.read_text(encoding="utf-8")
        if BEGIN not in text or END not in text.partition(BEGIN)[2]:
            raise SystemExit(f"{args.readme.name} has no {BEGIN} ... {END} to write between")
        new = rewritten(text, block(result, values), BEGIN, END)
        args.readme.write_text(new, encoding="utf-8")
        return
    if result.get("epochs", args.epochs) != args.epochs:
        raise SystemExit(
            f"--epochs: {args.epochs}, but the rows of {args.result} have {result['epochs']}; "
            "give another --result"
        )
    result |= {"machine": machine.facts(), "date": time.strftime("%Y-%m-%d"), "epochs": args.epochs}
    result |= {"torch": torch.__version__.split("+")[0], "quick": args.quick}
    args.result.parent.mkdir(parents=True, exist_ok=True)
    for name, likelihood in ROWS.items():
        if name in result["rows"]:
            continue
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", inference.EngineWarning)
            row, bits = measure(likelihood, args.epochs, args.quick)
        result["rows"][name], values[name] = row, bits
        save_file(values, beside)
        args.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"    {row['bits']:.4f} bits, {row['train_cpu_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
