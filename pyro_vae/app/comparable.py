"""Which runs can be compared, and what tells their models apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from pyro_vae.app.experiment import ExperimentSpec, differences, flatten
from pyro_vae.app.run import Run
from pyro_vae.errors import Problem, RunError

Evaluated = tuple[Run, dict[str, Tensor], dict[str, Any]]
SAME = ("data_fingerprint", "split", "num_data", "quantity")


def check_runs(runs: Sequence[Run]) -> None:
    """Refuse runs given twice, and those whose log p(x) have no common unit. Raises: `RunError`."""
    _refuse_repeats(runs)
    _refuse_other_measures(runs)


def _refuse_repeats(runs: Sequence[Run]) -> None:
    seen = set()
    for run in runs:
        if run.path.resolve() in seen:
            raise RunError(f"{run.path}: given twice; a run does not differ from itself")
        seen.add(run.path.resolve())


def _refuse_other_measures(runs: Sequence[Run]) -> None:
    """A probability and a density have no common unit, be their data the same numbers."""
    first = runs[0]
    for run in runs[1:]:
        ours, theirs = (each.spec.model.likelihood for each in (run, first))
        if ours.measure != theirs.measure:
            raise RunError(
                f"{run.path}: its {ours.name} likelihood gives the data {ours.measure}, that of "
                f"{first.path} ({theirs.name}) gives {theirs.measure}; their log p(x) cannot be "
                "compared"
            )


def check_data(runs: Sequence[Run], summaries: Sequence[dict[str, Any]]) -> None:
    """Refuse log p(x) of other data. Raises: `RunError`, one line per run."""
    problems = [
        Problem(
            (),
            f"{run.path} was evaluated on data simulated from its own model; compare needs "
            "log p(x) of the same data, e.g. by --estimator ais",
        )
        for run, summary in zip(runs, summaries, strict=True)
        if "simulated" in summary["quantity"]
    ]
    if problems:
        raise RunError(problems)
    for run, summary in zip(runs[1:], summaries[1:], strict=True):
        for key in SAME:
            mine, first = summary.get(key), summaries[0].get(key)
            if mine != first:
                told = _what_differs(run, runs[0], summary, summaries[0])
                text = (
                    f"{run.path} was evaluated with {told or f'{key} {mine}'}, but {runs[0].path} "
                    f"was not{'' if told else f': {first}'}; only log p(x) of the same data can be "
                    "compared"
                )
                problems.append(Problem((), text))
                break
    if problems:
        raise RunError(problems)


def _what_differs(run: Run, other: Run, mine: Mapping, theirs: Mapping) -> str:
    """The settings that gave two runs other data to be scored on, in words; empty if unknown."""
    parts = [
        f"{key} {mine.get(key)}"
        for key in ("split", "num_data")
        if mine.get(key) != theirs.get(key)
    ]
    changed = differences(other.spec, run.spec)
    parts += [f"{key}={new}" for key, (_, new) in changed.items() if key.startswith("data.")]
    return ", ".join(parts)


def check_distinct(evaluated: Sequence[Evaluated]) -> Sequence[Evaluated]:
    """Refuse trainings that are one and the same: no spread between seeds. Raises: `RunError`."""
    held: dict[Any, Run] = {}
    for run, _, summary in evaluated:
        weights = summary.get("weights_fingerprint")
        if weights is not None and weights in held:
            raise RunError(
                f"{run.path}: holds the same weights as {held[weights].path}, which tells nothing "
                "about other seeds; leave one of them out"
            )
        held[weights] = run
    return evaluated


def model_differences(a: ExperimentSpec, b: ExperimentSpec) -> dict[str, tuple[Any, Any]]:
    """How two specs differ as models: not by training seed, nor by how or where they were run."""
    apart = ("train.seed", "train.engine", "train.device", "train.checkpoint_seconds", "data.path")
    return {
        field: pair
        for field, pair in differences(a, b).items()
        if field not in apart and not field.startswith("evaluate.")
    }


def names(runs: Sequence[Run]) -> list[str]:
    """What tells these models apart in few words; else the folder's name."""
    specs = [flatten(run.spec.to_dict()) for run in runs]
    fields: dict[str, None] = {}
    for run in runs[1:]:
        fields.update(dict.fromkeys(model_differences(runs[0].spec, run.spec)))
    shared = [field for field in fields if all(field in spec for spec in specs)]
    found = [", ".join(f"{_short(field)}={spec[field]}" for field in shared) for spec in specs]
    if any(len(name) > 50 or not name for name in found) or len(set(found)) < len(found):
        return [str(run.path) for run in runs]
    return found


def _short(field: str) -> str:
    """`model.prior.name` as `prior`, `train.epochs` as `epochs`."""
    return field.split(".", 1)[-1].removesuffix(".name")
