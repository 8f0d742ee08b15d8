"""What each command does with its parsed arguments."""

from __future__ import annotations

import json
from argparse import Namespace
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from pyro_vae.app import compare, diagnose, evaluate, listing, matrix, pictures, probe, train
from pyro_vae.app.columns import Batch, splits
from pyro_vae.app.experiment import (
    DEFAULT_PRESET,
    ExperimentSpec,
    load_experiment,
    override,
)
from pyro_vae.app.overrides import split_request
from pyro_vae.app.pictures.matrix import matrix as draw_matrix
from pyro_vae.app.run import Run
from pyro_vae.app.tables import say
from pyro_vae.errors import DataError, RequestError
from pyro_vae.likelihoods.base import SCORES


def train_command(args: Namespace) -> None:
    source, overrides = split_request(args.request)
    run = Run(args.out) if args.resume and args.out is not None else None
    if args.resume and run is None:
        raise RequestError("--resume: give --out DIR, the run to go on with")
    if run is not None and source is None:
        if not run.exists:
            raise RequestError(f"{run.path}: holds no run to resume; leave out --resume to start")
        spec = override(run.spec.to_dict(), overrides)
    else:
        spec = load_experiment(source, overrides)
    if run is not None and run.exists:
        spec = train.same_spec(run, spec)
        if run.finished_as(spec):
            say(f"{run.path}: finished before; nothing left to do")
            return
        if not run.has_checkpoint:
            say(f"{run.path}: no checkpoint yet; starting from the first step")
    name = Path(source or DEFAULT_PRESET).stem
    run = train.train(spec, args.out, resume=args.resume, progress=not args.quiet, name=name)
    summary = run.summary()
    told, following = "Its guide has no density, so there is no bound", "probe"
    if "elbo" in summary:
        told = (
            f"ELBO {summary['elbo']:.3f} +- {summary['elbo_std_error']:.2g} nats per datum on "
            f"{summary['bound_split']} data, a lower bound on log p(x)"
        )
        following = "evaluate"
    say(
        f"{run.path}: {summary['message']}. {told}. Pictures: {run.pictures}. "
        f"Next: pyro-vae {following} {run.path}{_imports(args)}"
    )


def evaluate_command(args: Namespace) -> None:
    run = Run.open(args.run)
    stood = list(run.path.glob("*.json"))
    estimate, summary = evaluate.evaluate(
        run,
        estimator=args.estimator,
        samples=args.samples,
        split=args.split,
        num_data=args.num_data,
        engine=args.engine,
        precision=args.precision,
        device=args.device,
        changes=args.changes,
        progress=not args.quiet,
    )
    evaluate.report(run, estimate, summary)
    written = run.path / f"{evaluate.kind_of(estimate.estimator)}.json"
    said = ", in the place of the one that was there" if written in stood else ""
    say(f"Written: {written}{said}")


def diagnose_command(args: Namespace) -> None:
    run = Run.open(args.run)
    found = diagnose.diagnose(
        run,
        estimator=args.estimator,
        split=args.split,
        num_data=args.num_data,
        seed=args.seed,
        device=args.device,
        progress=not args.quiet,
    )
    diagnose.report(run, found)
    drawn = ", ".join(path.name for path in found.pictures)
    say(f"Written: {run.path / 'diagnosis.json'}; in {run.pictures}: {drawn}")


def probe_command(args: Namespace) -> None:
    run = Run.open(args.run)
    probe.report(run, probe.probe(run, num_train=args.num_train, seed=args.seed))
    say(f"Written: {run.path / 'probe.json'}")


def compare_command(args: Namespace) -> None:
    if len(args.runs) < 2:
        raise RequestError("compare: give at least two runs")
    compare.report(compare.compare(args.runs))


def generate_command(args: Namespace) -> None:
    run = Run.open(args.run)
    vae, x = run.vae(), None
    if vae.likelihood.support not in SCORES["unit"]:  # else the range is known without data
        with suppress(DataError):
            (x, *_), _ = _shown(run, None)
    _show(pictures.samples(vae, _target(run, args, "samples"), seed=args.seed, like=x))


def reconstruct_command(args: Namespace) -> None:
    run = Run.open(args.run)
    x, _ = _shown(run, args.split)
    path = _target(run, args, "reconstructions")
    _show(pictures.reconstructions(run.vae(), x, path, seed=args.seed))


def traverse_command(args: Namespace) -> None:
    run = Run.open(args.run)
    x, _ = _shown(run, args.split)
    _show(pictures.traversals(run.vae(), x, _target(run, args, "traversals"), seed=args.seed))


def latent_command(args: Namespace) -> None:
    run = Run.open(args.run)
    vae = run.vae()
    x, labels = _shown(run, args.split)
    path = _target(run, args, "latent_scatter")
    _show(pictures.latent_scatter(vae, x, path, labels=labels, seed=args.seed))
    if args.out is None and vae.shapes.latent_dim == 2 and vae.spec.prior.support == "real":
        path = run.pictures / "manifold.png"
        _show(pictures.manifold(vae, path, seed=args.seed, like=x[0]))


def list_command(args: Namespace) -> None:
    if args.matrix and args.family is not None:
        raise RequestError("--matrix: shows priors with guides; leave out the family")
    if args.out is not None and not args.matrix:
        raise RequestError("--out: draws the matrix; add --matrix")
    if not args.matrix:
        listing.show(args.family)
        return
    matrix.show()
    if args.out is not None:
        _show(draw_matrix(list(matrix.combinations()), matrix.MARKS, args.out))


def schema_command(args: Namespace) -> None:
    print(json.dumps(ExperimentSpec.model_json_schema(), indent=2))


def _imports(args: Namespace) -> str:
    return "".join(f" --import {module}" for module in args.modules or ())


def _target(run: Run, args: Namespace, name: str) -> Path:
    return Path(args.out) if args.out is not None else run.pictures / f"{name}.png"


def _shown(run: Run, split: str | None) -> tuple[Batch, Tensor | None]:
    """Data and labels to draw; of the test split, where there is one, unless told otherwise."""
    dataset = run.spec.data.prepared()
    if split is None:
        there = splits(dataset)
        split = next(name for name in ("test", "validation", "train") if name in there)
    return train.picture_data(dataset, split, run.spec.model)


def _show(path: Path) -> None:
    print(path)
