"""Train the model of a spec into a run folder, or go on with one."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from typing import Any

import pyro
import torch
from torch import Tensor

import inference
import pyro_vae
from inference.isolation import own_randomness
from pyro_vae.app.columns import Batch, arguments, on, splits
from pyro_vae.app.experiment import ExperimentSpec, differences, resolve
from pyro_vae.app.files import json_line, write_json_lines
from pyro_vae.app.pairs import local_pair
from pyro_vae.app.pictures import draw_all
from pyro_vae.app.run import Run, RunFailed
from pyro_vae.data.base import Dataset
from pyro_vae.errors import Problem, RunError
from pyro_vae.spec import VAESpec
from pyro_vae.vae import VAE

PICTURE_DATA = 2000  # how many data the pictures show at most


def train(
    spec: ExperimentSpec,
    folder: str | PathLike | None = None,
    *,
    resume: bool = False,
    progress: bool = True,
    name: str = "run",
) -> Run:
    """Train `spec` into `folder` (default: the next `runs/NUMBER-name`) and describe the result.

    Args:
        resume: go on with the run in `folder`, from its last checkpoint if it has one.
        progress: show a progress bar.

    Raises: `RequestError` before anything is written; `RunFailed` when training breaks off.
    """
    run = None if folder is None else Run(folder)
    resume = resume and run is not None and run.exists
    if run is not None and resume:
        spec = same_spec(run, spec)
        if run.finished_as(spec):
            return run
        if run.finished and not run.has_checkpoint:
            raise RunError(f"{run.checkpoint}: missing; a finished run goes on from it")
    elif run is not None:
        run.check_free()
    dataset = spec.data.prepared()
    spec = resolve(spec, dataset)
    vae = build(spec, dataset)
    if run is None:
        run = Run.fresh(name, spec)
    elif not resume:
        run = Run.create(run, spec)
    else:
        run.sweep()
    with _failures(run):
        result = _fit(run, spec, dataset, vae, resume, progress)
        _finalize(vae, spec, dataset)
        run.write_spec(_with_engine(spec, result.engine))
        run.write_weights(vae)
        _describe(run, dataset, vae, result)
    return run


def same_spec(run: Run, asked: ExperimentSpec) -> ExperimentSpec:
    """The spec to go on with. Raises `RunError` that names what may not change."""
    held = run.spec
    for field in ("data_shape", "classes"):
        if getattr(asked.model, field) is None:  # comes from the data
            same = {field: getattr(held.model, field)}
            asked = asked.model_copy(update={"model": asked.model.model_copy(update=same)})
    if asked.train.engine == "auto":
        asked = _with_engine(asked, held.train.engine)
    problems = []
    for field, (old, new) in differences(held, asked).items():
        text = f"{old} in {run.path}, now {new}; a resumed run keeps its spec"
        if field == "train.epochs":
            if new > old and not held.train.schedule.depends_on_total:
                continue
            if new > old:
                text += f": schedule '{held.train.schedule.name}' depends on the number of epochs"
            else:
                text += ": epochs may only grow"
        problems.append(Problem(tuple(field.split(".")), text))
    if problems:
        raise RunError(problems)
    return asked


def build(spec: ExperimentSpec, dataset: Dataset) -> VAE:
    """The untrained VAE: its first weights follow from `train.seed`; the caller's RNG stays."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(spec.train.seed)
        vae = VAE.from_spec(spec.model)
        # A density inside (0, 1) starts from levels with their noise: those without reach 0.
        batch = arguments(dataset, "train", spec.model, fresh=not dataset.dequantized)
        return vae.initialize(*batch)


def _with_engine(spec: ExperimentSpec, engine: str) -> ExperimentSpec:
    return spec.model_copy(update={"train": spec.train.model_copy(update={"engine": engine})})


def _fit(
    run: Run, spec: ExperimentSpec, dataset: Dataset, vae: VAE, resume: bool, progress: bool
) -> inference.FitResult:
    settings, before = spec.train, run.spec
    resume = resume and run.has_checkpoint
    if resume:
        write_json_lines(run.metrics, inference.read_history(run.checkpoint))
    else:
        run.metrics.unlink(missing_ok=True)
    run.write_spec(spec)
    held_out = None
    if len(dataset.validation):
        held_out = arguments(dataset, "validation", spec.model)
    try:
        return inference.fit(
            vae.model,
            vae.guide,
            arguments(dataset, "train", spec.model, fresh=True),
            validation=held_out,
            objective=spec.objective,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            optimizer=settings.optimizer,
            learning_rate=settings.learning_rate,
            optimizer_options=settings.options,
            schedule=settings.schedule,
            clip_norm=settings.clip_norm,
            patience=settings.patience,
            seed=settings.seed,
            engine=settings.engine,
            precision=settings.precision,
            device=settings.device,
            progress=progress,
            batch_transform=dataset.train_transform,
            callback=lambda row: _append(run, row),
            checkpoint=run.checkpoint,
            checkpoint_seconds=settings.checkpoint_seconds,
            resume=resume,
        )
    except inference.RequestError:
        if resume:
            run.write_spec(before)
        elif not run.has_checkpoint:
            run.discard()
        raise


@contextmanager
def _failures(run: Run) -> Iterator[None]:
    """What breaks a training off, said with what is saved and how to go on."""
    try:
        yield
    except inference.NonFiniteError as error:
        raise RunFailed(
            f"training stopped: {error}. {_saved(run)}. A resumed run keeps its spec and would "
            "stop there again, so change train.learning_rate or train.clip_norm in a fresh run; to "
            f"see the last steps again: {run.resume_command}"
        ) from None
    except inference.InferenceError:
        raise
    except KeyboardInterrupt:
        raise RunFailed(f"interrupted. {_saved(run)}. Go on with: {run.resume_command}") from None
    except (OSError, MemoryError, torch.OutOfMemoryError) as error:
        raise RunFailed(
            f"training stopped: {type(error).__name__}: {error}. {_saved(run)}. Go on with: "
            f"{run.resume_command}"
        ) from None
    except Exception:
        # E.g. a component of one's own: its first try must not block the folder for the next.
        if not run.has_checkpoint:
            run.discard()
        raise


def _finalize(vae: VAE, spec: ExperimentSpec, dataset: Dataset) -> None:
    """What is fitted to all training data in closed form, under the weights as they now are."""
    vae.eval()
    batch = on(arguments(dataset, "train", spec.model), next(vae.parameters()).device)
    with own_randomness(spec.train.seed):
        vae.finalize(*batch)


def _append(run: Run, row: Mapping[str, Any]) -> None:
    with run.metrics.open("a", encoding="utf-8") as file:
        file.write(json_line(row))


def _saved(run: Run) -> str:
    if not run.has_checkpoint:
        return f"No checkpoint had been written; {run.path} holds the spec"
    epochs = len(inference.read_history(run.checkpoint))
    return f"{run.checkpoint} holds the state after {epochs} whole epochs"


def _describe(run: Run, dataset: Dataset, vae: VAE, result: inference.FitResult) -> None:
    """Pictures and the summary of a finished training."""
    there = splits(dataset)
    split = next(name for name in ("validation", "test", "train") if name in there)
    x, labels = picture_data(dataset, split, run.spec.model)
    draw_all(vae, x, labels, result.history, run.pictures)
    device = next(vae.parameters()).device
    shown = on(arguments(dataset, split, run.spec.model), device)
    run.write_summary(
        {
            "status": result.status,
            "message": result.message,
            "epochs": run.spec.train.epochs,
            "epochs_run": len(result.history),
            "best_epoch": result.best_epoch,
            "steps": result.steps,
            "seconds": result.seconds,
            "engine": result.engine,
            "engine_reason": result.engine_reason,
            "precision": run.spec.train.precision,
            "device": str(device),
            "num_weights": vae.num_weights,
            "num_train": len(dataset.train),
            "bound_split": split,
            **_bound(vae, shown),
            "data_fingerprint": dataset.fingerprint("train"),
            "versions": {
                "pyro_vae": pyro_vae.__version__,
                "torch": torch.__version__,
                "pyro": pyro.__version__,
                "python": platform.python_version(),
            },
        }
    )


def _bound(vae: VAE, batch: Batch) -> dict[str, Any]:
    """The ELBO and its parts; empty for a guide of points, which has no density."""
    if vae.spec.guide.density == "none":
        return {}
    bound = inference.bound(*local_pair(vae), batch)
    return {
        "elbo": bound.elbo,
        "elbo_std_error": bound.elbo_std_error,
        "reconstruction": bound.reconstruction,
        "kl": bound.kl,
        "kl_kind": bound.kl_kind,
    }


def picture_data(dataset: Dataset, split: str, model: VAESpec) -> tuple[Batch, Tensor | None]:
    """Some data of a split with their labels, drawn at random: files may be sorted by label."""
    batch, labels = arguments(dataset, split, model), dataset.labels.get(split)
    order = torch.randperm(len(batch[0]), generator=torch.Generator().manual_seed(0))
    rows = order[:PICTURE_DATA]
    return tuple(item[rows] for item in batch), None if labels is None else labels[rows]
