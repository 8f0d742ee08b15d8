"""ExperimentSpec: data + model + objective + train + evaluate, as one value from one YAML file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import (
    BeforeValidator,
    Field,
    PlainSerializer,
    PositiveInt,
    WithJsonSchema,
)

import inference
from pyro_vae.app import columns
from pyro_vae.app.overrides import apply_overrides
from pyro_vae.component import OneOf, Registry, Value, nearest, shorten
from pyro_vae.data.base import Data, Dataset, check_fit
from pyro_vae.errors import DataError, Problem, SpecError
from pyro_vae.spec import VAESpec
from pyro_vae.yaml_files import load_yaml

PRESETS = Path(__file__).parent.parent / "presets"
DEFAULT_PRESET = "digits"


# The named values of `inference`, found the same way as components.
OBJECTIVES = Registry("objective", members=inference.OBJECTIVES)
ESTIMATORS = Registry("estimator", members=inference.ESTIMATORS)
SCHEDULES = Registry("schedule", members=inference.SCHEDULES)


def _frozen(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return tuple(map(_frozen, value))
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(f"expected numbers, words and lists of them, got {shorten(value)}")


def _options(value: Any) -> Any:
    """A mapping as sorted pairs, so that a spec can be hashed."""
    pairs = value.items() if isinstance(value, Mapping) else value
    try:
        return tuple(sorted((str(key), _frozen(item)) for key, item in pairs))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a mapping of optimizer arguments: {error}") from None


def _mapping(pairs: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return {key: list(item) if isinstance(item, tuple) else item for key, item in pairs}


Options = Annotated[
    Any,
    BeforeValidator(_options),
    PlainSerializer(_mapping),
    WithJsonSchema({"type": "object"}),
]


Seed = Annotated[int, Field(ge=0, lt=2**32)]


Precision = Literal["float32", "tf32", "bfloat16", "float64"]


class TrainSpec(Value):
    """How `inference.fit` maximises the objective. `seed` sets the first weights and all noise."""

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 128
    optimizer: str = "adam"
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    optimizer_options: Options = ()
    schedule: Annotated[Any, OneOf(SCHEDULES)] = "constant"
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    patience: PositiveInt | None = None
    seed: Seed = 0
    engine: Literal["auto", "eager", "compiled", "cuda_graph"] = "auto"
    precision: Precision = "float32"
    device: str | None = None
    checkpoint_seconds: float = Field(default=60.0, ge=0, allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        """`optimizer_options` as keyword arguments."""
        return dict(self.optimizer_options)


class EvaluateSpec(Value):
    """How log p(x) is estimated, and on which data: a split, or `num_data` random ones of it.

    Of a Bayesian decoder, it is log p(x | draws of the weights), with so many `global_draws`.
    """

    estimator: Annotated[Any, OneOf(ESTIMATORS)] = "importance"
    split: Literal["train", "validation", "test"] = "test"
    num_data: PositiveInt | None = None
    global_draws: PositiveInt = 10
    seed: Seed = 0
    engine: Literal["auto", "eager", "compiled"] = "auto"
    precision: Precision = "float32"


class ExperimentSpec(Value):
    """One study: which data, which model, how it is trained and how it is judged."""

    data: Annotated[Any, OneOf(Data.registry)] = "digits"
    model: VAESpec = VAESpec()
    objective: Annotated[Any, OneOf(OBJECTIVES)] = "elbo"
    train: TrainSpec = TrainSpec()
    evaluate: EvaluateSpec = EvaluateSpec()


# From YAML -------------------------------------------------------------------------------------


def presets() -> dict[str, Path]:
    return {path.stem: path for path in sorted(PRESETS.glob("*.yaml"))}


def find_source(source: str | PathLike | None) -> Path:
    """The YAML file of a path or preset name. Raises `SpecError`."""
    known = presets()
    name = DEFAULT_PRESET if source is None else str(source)
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    raise SpecError(f"no preset or file is called '{name}'{nearest(name, known)}")


def load_experiment(
    source: str | PathLike | None = None, overrides: Iterable[str] = ()
) -> ExperimentSpec:
    """The spec of a YAML file or preset (default: digits), with `key=value` overrides.

    Raises: `SpecError`, one line per mistake.
    """
    data: Any = {}
    problems: list[Problem] = []
    try:
        path = find_source(source)
        data = load_yaml(path) or {}
        if not isinstance(data, dict):
            known = nearest("", ExperimentSpec.model_fields)
            raise SpecError(f"{path}: expected a mapping of sections, got {shorten(data)}{known}")
    except SpecError as error:
        data, problems = {}, error.problems
    try:
        spec = override(data, overrides)
    except SpecError as error:
        raise SpecError(problems + error.problems) from None
    if problems:
        raise SpecError(problems)
    return spec


def override(data: dict[str, Any], overrides: Iterable[str]) -> ExperimentSpec:
    """The spec of plain data with overrides. Reports every mistake of both."""
    whole, problems = apply_overrides(ExperimentSpec, data, overrides)
    try:
        spec = ExperimentSpec.from_dict(whole)
    except SpecError as error:
        raise SpecError(problems + error.problems) from None
    if problems:
        raise SpecError(problems)
    return spec


# With the data ---------------------------------------------------------------------------------


def resolve(spec: ExperimentSpec, dataset: Dataset) -> ExperimentSpec:
    """The spec with `model.data_shape` and `model.classes` from the data, once both fit.

    Raises: `SpecError`, one line per mistake.
    """
    problem = partial(_problem, problems := [])
    shape, given = tuple(dataset.shape), spec.model.data_shape
    if given is not None and given != shape:
        problem("model.data_shape", f"{given}, but a datum of '{dataset.name}' has shape {shape}")
    try:
        check_fit(dataset, spec.model.likelihood)
    except DataError as error:
        problems += error.problems
    num_data, train = len(dataset.train), spec.train
    if train.batch_size > num_data:
        text = f"{train.batch_size}, but there are only {num_data} training data"
        problem("train.batch_size", f"{text}; use {num_data} or less")
    if train.patience is not None and len(dataset.validation) == 0:
        text = f"{train.patience}, but '{dataset.name}' has no validation data to watch"
        problem("train.patience", f"{text}; give it some, or leave patience out")
    _check_warmup(spec, num_data, problem)
    if isinstance(spec.objective, inference.M2) and spec.model.label != "latent":
        text = f"m2 trains the classifier of a latent label, but model.label is {spec.model.label}"
        problem("objective", f"{text}; set model.label=latent, or another objective")
    for field, text in columns.problems(dataset, spec.model):
        problem(field, text)
    if train.device is not None and train.device not in devices():
        text = f"'{train.device}' is not on this machine{nearest(train.device, devices())}"
        problem("train.device", text)
    if problems:
        raise SpecError(problems)
    update: dict[str, Any] = {"data_shape": shape}
    if "y" in spec.model.columns and spec.model.classes is None:
        update["classes"] = columns.num_classes(dataset)
    model = spec.model.model_copy(update=update)
    return spec.model_copy(update={"model": model})


def _problem(problems: list[Problem], field: str, text: str) -> None:
    problems.append(Problem(tuple(field.split(".")), text))


def _check_warmup(spec: ExperimentSpec, num_data: int, problem) -> None:
    steps = spec.train.epochs * math.ceil(num_data / spec.train.batch_size)
    for unit, length in (("epochs", spec.train.epochs), ("steps", steps)):
        warmup = getattr(spec.objective, f"warmup_{unit}", 0)
        if warmup > length:
            text = f"{warmup}, longer than the training of {length} {unit}"
            problem(f"objective.warmup_{unit}", f"{text}; beta would never reach 1")


def devices() -> list[str]:
    """The devices of this machine, by name; the one that is used unless told otherwise first."""
    found = ["cpu"]
    if torch.cuda.is_available():
        found = ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *found]
    return found


# Two specs -------------------------------------------------------------------------------------


def flatten(data: Any, prefix: str = "") -> dict[str, Any]:
    """`{"train": {"seed": 0}}` as `{"train.seed": 0}`."""
    if not isinstance(data, Mapping) or not data:
        return {prefix: data}
    found = {}
    for key, value in data.items():
        found.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    return found


def differences(old: ExperimentSpec, new: ExperimentSpec) -> dict[str, tuple[Any, Any]]:
    """Dotted field -> (old value, new value), where they differ; a missing field is None."""
    before, after = flatten(old.to_dict()), flatten(new.to_dict())
    keys = dict.fromkeys([*before, *after])
    pairs = {key: (before.get(key), after.get(key)) for key in keys}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
