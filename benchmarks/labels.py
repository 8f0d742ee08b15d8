"""What labels give: conditional samples, few labels, features and clusters, measured on MNIST.

    python -m benchmarks.labels            # trains what runs/labels lacks; goes on where it stopped
    python -m benchmarks.labels --report   # the README's tables, the picture

The models are presets, trained by the application. Rows that the JSON file holds are not measured
again; each tells the commit that it was measured at.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import classifier, machine, tables
from benchmarks.k_means import clusters, k_means
from benchmarks.report import rewritten
from inference.isolation import own_randomness
from pyro_vae.app.classification import accuracy, named
from pyro_vae.app.columns import arguments, observed
from pyro_vae.app.experiment import ExperimentSpec, load_experiment
from pyro_vae.app.probe import fitted, latent_means, principal, probe
from pyro_vae.app.run import Run
from pyro_vae.app.train import train
from pyro_vae.data.base import Dataset
from pyro_vae.networks.mlp import MLP

RESULT = machine.ROOT / "benchmarks" / "results" / "labels.json"
BEGIN, END = "<!-- labels:begin -->", "<!-- labels:end -->"
SEEDS = 0, 1
CLASSES = 10
# The models: a preset, and what is changed in it, beside the engine.
RUNS: dict[str, tuple[str, list[str]]] = {
    "conditional": ("conditional_mnist", ["train.epochs=30"]),
    "autoencoder": ("autoencoder_mnist", ["train.epochs=30"]),
    "vae": ("mnist", ["train.epochs=30"]),
}
FAST = ["train.precision=bfloat16"]
for _seed in SEEDS:
    RUNS[f"m2-{_seed}"] = (
        "m2_mnist",
        [
            *(*FAST, "train.epochs=15", "train.learning_rate=1e-3"),
            *(f"train.seed={_seed}", f"data.hiding_seed={_seed}"),
        ],
    )
    RUNS[f"clusters-{_seed}"] = (
        "clusters_mnist",
        [*FAST, "train.epochs=20", f"train.seed={_seed}"],
    )
QUICK = [
    *("data.name=digits", "data.train_size=200", "data.test_size=100", "train.engine=eager"),
    *("train.precision=float32", "train.epochs=1", "train.batch_size=50"),
]
JUDGE = MLP(hidden=(500, 500), activation="relu")
NUM_PROBED = {100: (0, 1, 2), 1_000: (0, 1, 2), 10_000: (0,)}  # labels: seeds of their choice


class Study:
    """The trained runs, the data and the judge, each made when first asked for."""

    def __init__(self, folder: Path, quick: bool):
        self.folder, self.quick = folder, quick

    def run(self, name: str) -> Run:
        """The run, trained or gone on with where it is not finished."""
        return train(self.spec(name), self.folder / name, resume=True, progress=False)

    def spec(self, name: str) -> ExperimentSpec:
        preset, changes = RUNS[name]
        changes = [*changes, "train.engine=compiled"]
        if self.quick:
            changes += QUICK + (["data.labelled=20"] if preset == "m2_mnist" else [])
            changes += ["objective.warmup_epochs=1"] * (preset == "clusters_mnist")
        return load_experiment(preset, changes)

    @cached_property
    def binary(self) -> Dataset:
        """Digits whose pixels are drawn, as the models see them."""
        return self.spec("conditional").data.load()

    @cached_property
    def grey(self) -> Dataset:
        return self.spec("autoencoder").data.load()

    def reader(self, x: Tensor, y: Tensor, drawn: bool) -> nn.Module:
        """The judge's network, trained on these digits; `drawn`: pixels drawn afresh."""
        transform = self.binary.train_transform if drawn else None
        return classifier.trained(
            JUDGE, x, y, steps=20 if self.quick else 5_000, transform=transform
        )

    @cached_property
    def judge(self) -> nn.Module:
        return self.reader(self.binary.train, self.binary.labels["train"], drawn=True)

    @cached_property
    def rows(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """What is measured, by name."""
        found: dict[str, Callable[[], dict[str, Any]]] = {
            "real, drawn": lambda: self.judged_real(self.binary),
            "real, grey": lambda: self.judged_real(self.grey),
            "conditional, drawn": lambda: self.judged(mean=False),
            "conditional, mean": lambda: self.judged(mean=True),
            "taught by samples": self.taught,
        }
        for seed in SEEDS:
            found[f"m2, {seed}"] = lambda seed=seed: self.own_classes(f"m2-{seed}")
            found[f"alone, {seed}"] = lambda seed=seed: self.alone(seed)
            found[f"latents, {seed}"] = lambda seed=seed: self.on_latents(seed)
        for model in ("autoencoder", "vae"):
            for num, seeds in NUM_PROBED.items():
                name = f"probe {model}, {num}"
                found[name] = lambda m=model, n=num, s=seeds: self.probed(m, n, s)
        for seed in SEEDS:
            found[f"clusters, {seed}"] = lambda seed=seed: self.own_classes(f"clusters-{seed}")
            for features in ("pixels", "components", "latents"):
                name = f"k-means on {features}, {seed}"
                found[name] = lambda f=features, s=seed: self.k_means(f, s)
        return found

    # Samples that are asked for ------------------------------------------------------------

    def judged_real(self, dataset: Dataset) -> dict[str, Any]:
        y = dataset.labels["test"]
        return classifier.by_class(classifier.read(self.judge, dataset.test), y)

    def samples(self, num: int, *, mean: bool, seed: int) -> tuple[Tensor, Tensor]:
        """So many of each class, and their labels."""
        vae = self.run("conditional").vae().eval()
        y = torch.arange(CLASSES).repeat_interleave(num)
        with own_randomness(seed):
            parts = [vae.generate(len(some), y=some, mean=mean) for some in y.split(1_000)]
        return torch.cat(parts), y

    def judged(self, *, mean: bool) -> dict[str, Any]:
        x, y = self.samples(20 if self.quick else 1_000, mean=mean, seed=0)
        return classifier.by_class(classifier.read(self.judge, x), y)

    def taught(self) -> dict[str, Any]:
        """Real digits read by the judge's network when it has seen samples alone."""
        x, y = self.samples(20 if self.quick else 6_000, mean=True, seed=1)
        net = self.reader(x, y, drawn=True)
        return classifier.by_class(
            classifier.read(net, self.binary.test), self.binary.labels["test"]
        )

    # Few labels ----------------------------------------------------------------------------

    def own_classes(self, name: str) -> dict[str, Any]:
        """How the model's own labels or clusters agree with the test labels."""
        run = self.run(name)
        dataset, spec = run.spec.data.prepared(), run.spec.model
        batch = arguments(dataset, "test", spec)
        found = accuracy(run.vae().eval(), batch, dataset.labels["test"], seed=0)
        summary = run.summary()
        return {
            "share": found["accuracy"],
            "std_error": found["accuracy_std_error"],
            "num": len(batch[0]),
            "epochs": summary["epochs_run"],
            "bound": summary["elbo"],
            "training_seconds": summary["seconds"],
        }

    def told(self, seed: int) -> tuple[Dataset, Tensor]:
        """The data of M2, and which training data have a label there."""
        dataset = self.spec(f"m2-{seed}").data.prepared()
        return dataset, (dataset.labels["train"] >= 0).nonzero().squeeze(1)

    def alone(self, seed: int) -> dict[str, Any]:
        """M2's classifier, trained on the labelled digits and nothing else."""
        dataset, rows = self.told(seed)
        net = classifier.trained(
            self.spec(f"m2-{seed}").model.classifier,
            dataset.train[rows],
            dataset.labels["train"][rows],
            steps=20 if self.quick else 1_000,
            seed=seed,
            transform=dataset.train_transform,
        )
        right = classifier.read(net, dataset.test) == dataset.labels["test"]
        return {**classifier.share(right), "num": len(right)}

    def on_latents(self, seed: int) -> dict[str, Any]:
        """Logistic regression on a plain VAE's latent means of the labelled digits."""
        dataset, rows = self.told(seed)
        vae = self.run("vae").vae().eval()
        x = latent_means(vae, (observed(dataset, "train")[rows],))
        x_test = latent_means(vae, (dataset.test,))
        y, y_test = dataset.labels["train"][rows], dataset.labels["test"]
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        found = fitted("latents", x[order], x_test, y[order], y_test)
        return {"share": found.accuracy, "std_error": found.std_error, "num": len(y_test)}

    # Features and clusters -----------------------------------------------------------------

    def probed(self, model: str, num: int, seeds: Sequence[int]) -> dict[str, Any]:
        """`pyro-vae probe` with so many labels: of every kind of features, a choice each."""
        run = self.run(model)
        if self.quick:
            num, seeds = 50, seeds[:1]
        every = [probe(run, num_train=num, seed=seed) for seed in seeds]
        return {
            kind: {
                "shares": [found[i].accuracy for found in every],
                "std_error": every[0][i].std_error,
                "num_features": every[0][i].num_features,
            }
            for i, kind in enumerate(("latents", "components", "values"))
        }

    def k_means(self, features: str, seed: int) -> dict[str, Any]:
        """Ten clusters of the training digits, and the test digits in them."""
        if features == "latents":
            run = self.run("vae")
            vae, data = run.vae().eval(), run.spec.data.load()
            x, x_test = (
                latent_means(vae, (observed(data, split),)).float() for split in ("train", "test")
            )
        else:
            x, x_test = self.grey.train.flatten(1), self.grey.test.flatten(1)
        if features == "components":
            x, x_test = x.double(), x_test.double()
            x, x_test = (part.float() for part in principal(x, x, x_test, count=50))
        centers = k_means(x, CLASSES, seed=seed, restarts=2 if self.quick else 5)
        y = self.grey.labels["test"]
        guessed = torch.from_numpy(named(clusters(x_test, centers).numpy(), y.numpy(), CLASSES))
        return {**classifier.share(guessed == y), "num": len(y)}


def measure(study: Study, result: dict[str, Any], path: Path) -> None:
    """Fill in what `result` lacks, writing after each row."""
    result["changes"] = {
        preset: [one for one in changes if "seed=" not in one] for preset, changes in RUNS.values()
    }
    for name, work in study.rows.items():
        if name in result["rows"]:
            continue
        print(f"{time.strftime('%H:%M:%S')} {name}", flush=True)
        row = {**work(), "commit": machine.commit()}
        result["rows"][name] = row
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        print(f"    {row}", flush=True)


def draw(study: Study, path: Path) -> None:
    """Ten samples of each digit, the means of p(x|z, y): one row a digit."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, _ = study.samples(10, mean=True, seed=2)
    height, width = x.shape[-2:]
    sheet = x.reshape(CLASSES, 10, height, width).permute(0, 2, 1, 3)
    figure = Figure(figsize=(5, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(sheet.reshape(CLASSES * height, 10 * width).numpy(), cmap="gray_r", vmin=0, vmax=1)
    axes.set_yticks([height * (i + 0.5) for i in range(CLASSES)], range(CLASSES))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.savefig(path, dpi=110)


# The README ----------------------------------------------------------------------------------


def block(result: dict[str, Any], picture: str) -> str:
    """How it was measured, the tables, the picture."""
    rows, told = result["rows"], result["machine"]
    commits = dict.fromkeys((row["commit"] or "unknown")[:10] for row in rows.values())
    how = (
        f"`python -m benchmarks.labels` on {result['date']}: {told['cpu']}, {told['cores']} cores, "
        f"{result['threads']} thread{'s' * (result['threads'] > 1)}, torch {result['torch']}; "
        f"commit{'s' * (len(commits) > 1)} {', '.join(commits)}. MNIST, all "
        f"{rows['real, drawn']['num']:,} test images; +- is the binomial error of these. Presets "
        f"with `train.engine=compiled` and {changed(result)}."
    )
    parts = [tables.wrapped(how)]
    parts += [tables.markdown(samples_table(rows)), tables.wrapped(samples_told(rows))]
    parts += [f"![Samples of each digit: means of p(x given z, y)]({picture})"]
    parts += [tables.markdown(few_table(rows)), tables.wrapped(few_told(rows))]
    parts += [tables.markdown(probe_table(rows)), tables.wrapped(probe_told(rows))]
    parts += [tables.markdown(clusters_table(rows)), tables.wrapped(clusters_told(rows))]
    return "\n\n".join(parts)


def changed(result: dict[str, Any]) -> str:
    found = result["changes"].items()
    return ", ".join(f"`{preset}` `{' '.join(changes)}`" for preset, changes in found)


def percent(share: float, error: float | None = None) -> str:
    told = f"{100 * share:.1f}"
    return told if error is None else f"{told} +- {100 * error:.1f}"


def whole(row: dict[str, Any]) -> str:
    return percent(row["share"], row["std_error"])


SAMPLES = {
    "real, drawn": "test images, pixels drawn",
    "conditional, drawn": "draws from p(x given y)",
    "real, grey": "test images, grey",
    "conditional, mean": "means of p(x given z, y)",
}


def samples_table(rows: dict[str, Any]) -> tables.Table:
    columns = ["digits", "all", *map(str, range(CLASSES))]
    body = [
        [
            told,
            whole(rows[name]),
            *(whole(one) for one in rows[name]["by_class"].values()),
        ]
        for name, told in SAMPLES.items()
    ]
    title = "`conditional_mnist`: % read as their label by a classifier of real digits, by digit"
    return tables.Table(title, columns, body, [])


def samples_told(rows: dict[str, Any]) -> str:
    judge, taught = rows["real, drawn"], rows["taught by samples"]
    each = rows["conditional, drawn"]["num"] // CLASSES
    return (
        f"The classifier (784-500-500-10) learned from the training images with pixels drawn "
        f"afresh; {each:,} samples of each digit. That the label is right does not say that all "
        f"ways to write it are there: the same network taught by 60,000 samples and no digit reads "
        f"{whole(taught)}% of the test images, taught by digits {whole(judge)}%."
    )


FEW = {
    "m2": "`m2_mnist`",
    "alone": "its classifier alone",
    "latents": "logistic regression on latent means of `mnist`",
}


def few_table(rows: dict[str, Any]) -> tables.Table:
    body = [
        [told, *(_error(rows[f"{name}, {seed}"]) for seed in SEEDS)] for name, told in FEW.items()
    ]
    columns = ["100 labels", *(f"labels and seed {seed}" for seed in SEEDS)]
    return tables.Table("Test error in %, with ten labels of each digit", columns, body, [])


def _error(row: dict[str, Any]) -> str:
    return percent(1 - row["share"], row["std_error"])


def few_told(rows: dict[str, Any]) -> str:
    mean = sum(1 - rows[f"m2, {seed}"]["share"] for seed in SEEDS) / len(SEEDS)
    return (
        f"All see drawn pixels, and the other 59,900 images only `m2_mnist` (in training) and "
        f"`mnist`. From one choice of labels to the other a row moves by more than its +-. "
        f"arXiv:1406.5298 gives 11.97% (+-1.71 between choices; as recalled, not looked up) for M2 "
        f"and 25.8% for a network alone; ours is at {percent(mean)}%."
    )


PROBES = {
    "autoencoder": ("latents of `autoencoder_mnist`", "grey pixels"),
    "vae": ("latent means of `mnist`", "drawn pixels"),
}


def probe_table(rows: dict[str, Any]) -> tables.Table:
    body = []
    for model, (told, values) in PROBES.items():
        found = [rows[f"probe {model}, {num}"] for num in NUM_PROBED]
        size = found[0]["components"]["num_features"]
        for kind, label in (
            ("latents", told),
            ("components", f"{size} principal components of {values}"),
            ("values", f"{values}"),
        ):
            cells = [_spread(one[kind]) for one in found]
            body.append([label, str(found[0][kind]["num_features"]), *cells])
    columns = ["features", "number", *(f"{num:,} labels" for num in NUM_PROBED)]
    return tables.Table("Test accuracy in % of a linear classifier (`probe`)", columns, body, [])


def _spread(kind: dict[str, Any]) -> str:
    """The mean over choices of labels, its error between them; of one choice the binomial error."""
    shares = torch.tensor(kind["shares"], dtype=torch.float64)
    error = kind["std_error"]
    if len(shares) > 1:
        error = float(shares.std()) / math.sqrt(len(shares))
    return percent(float(shares.mean()), error)


def probe_told(rows: dict[str, Any]) -> str:
    seeds = [f"{len(seeds)} choices of {num:,}" for num, seeds in NUM_PROBED.items()]
    return (
        "Means over "
        + ", ".join(seeds[:-1])
        + f" labels, +- between choices; one choice of {list(NUM_PROBED)[-1]:,}, +- binomial."
    )


CLUSTERS = {
    "clusters": "`clusters_mnist`",
    "k-means on pixels": "k-means, grey pixels",
    "k-means on components": "k-means, 50 principal components",
    "k-means on latents": "k-means, latent means of `mnist`",
}


def clusters_table(rows: dict[str, Any]) -> tables.Table:
    body = [
        [told, *(whole(rows[f"{name}, {seed}"]) for seed in SEEDS)]
        for name, told in CLUSTERS.items()
    ]
    columns = ["ten clusters", *(f"seed {seed}" for seed in SEEDS)]
    title = "Test accuracy in % of clusters, each named by one digit, the best assignment"
    return tables.Table(title, columns, body, [])


def clusters_told(rows: dict[str, Any]) -> str:
    bounds = ", ".join(f"{rows[f'clusters, {seed}']['bound']:.1f}" for seed in SEEDS)
    return (
        f"No label is seen in training; k-means is the best of 5 starts. Bounds of "
        f"`clusters_mnist`: {bounds} nats."
    )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/labels"), metavar="DIR")
    parser.add_argument("--result", type=Path, default=RESULT, metavar="FILE")
    parser.add_argument("--readme", type=Path, default=machine.ROOT / "README.md", metavar="FILE")
    parser.add_argument("--report", action="store_true", help="rewrite the README's part, no more")
    parser.add_argument("--quick", action="store_true", help="tiny: do all rows run?")
    args = parser.parse_args(argv)
    result: dict[str, Any] = {"rows": {}}
    if args.result.exists():
        result = json.loads(args.result.read_text(encoding="utf-8"))
    picture = args.result.with_name(f"{args.result.stem}-samples.png")
    if not args.report:
        study = Study(args.runs, args.quick)
        result |= {"machine": machine.facts(), "date": time.strftime("%Y-%m-%d")}
        result |= {"threads": torch.get_num_threads(), "torch": torch.__version__.split("+")[0]}
        measure(study, result, args.result)
        draw(study, picture)
        return
    lacking = [name for name in Study(args.runs, args.quick).rows if name not in result["rows"]]
    if lacking:
        told = f"{len(lacking)} rows, the first of them '{lacking[0]}'"
        raise SystemExit(f"{args.result.name} lacks {told}; python -m benchmarks.labels goes on")
    text = args.readme.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text.partition(BEGIN)[2]:
        raise SystemExit(f"{args.readme.name} has no {BEGIN} ... {END} to write between")
    link = picture.relative_to(args.readme.resolve().parent).as_posix()
    new = rewritten(text, block(result, link), BEGIN, END)
    args.readme.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
