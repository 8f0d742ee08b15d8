"""A run folder: the resolved spec, weights, metrics, checkpoint. Atomic, no pickle, no code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.app.experiment import ExperimentSpec
from pyro_vae.app.files import (
    TEMPORARY,
    read_json,
    read_json_lines,
    read_tensors,
    write_json,
    write_tensors,
    write_text,
)
from pyro_vae.errors import Problem, PyroVAEError, RunError, SpecError
from pyro_vae.vae import VAE
from pyro_vae.yaml_files import dump_yaml, load_yaml

SPEC = "spec.yaml"
DONE = ("completed", "stopped_early")
# What is kept in files of these names: log p(x) of the run's data, and bounds on log p(x) of data
# that are simulated from the model.
EVALUATION, SANDWICH = "evaluation", "sandwich"
ARRAYS = ("value", "std_error", "elbo")  # per datum, of every estimator
SHARED_MARKS = ("estimator", "num_samples", "weights_fingerprint", "log_px")
MARKS = {
    EVALUATION: (*SHARED_MARKS, "split", "data_fingerprint"),
    SANDWICH: (*SHARED_MARKS, "num_data", "seed", "upper"),
}


class RunFailed(PyroVAEError):
    """A run that was rightly asked for broke off: what happened, what is saved (exit code 1)."""


class Run:
    """One run folder. `Run.create`, `Run.fresh` and `Run.open` make one."""

    def __init__(self, path: str | PathLike):
        self.path = Path(path)

    def __fspath__(self) -> str:
        return str(self.path)

    # Making and finding ---------------------------------------------------------------------

    @classmethod
    def create(cls, path: str | PathLike, spec: ExperimentSpec) -> Run:
        """A new run in an absent or empty folder. Raises `RunError` where something stands."""
        run = cls(path)
        run.check_free()
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"{run.path}: cannot be made a folder: {error.strerror}") from None
        run.sweep()
        run.write_spec(spec)
        return run

    @classmethod
    def fresh(cls, name: str, spec: ExperimentSpec, root: str | PathLike = "runs") -> Run:
        """A new run in the next numbered folder: `runs/0001-digits`, `runs/0002-vamp`, ..."""
        root = Path(root)
        try:
            root.mkdir(parents=True, exist_ok=True)
            while True:
                taken = [re.match(r"(\d+)-", item.name) for item in root.iterdir()]
                number = 1 + max((int(match[1]) for match in taken if match), default=0)
                path = root / f"{number:04d}-{name}"
                try:
                    path.mkdir()
                    break
                except FileExistsError:  # another process took the number
                    continue
        except OSError as error:
            raise RunError(f"{root}: cannot hold a new run: {error.strerror}") from None
        return cls.create(path, spec)

    @classmethod
    def open(cls, path: str | PathLike) -> Run:
        """An existing run. Raises `RunError`."""
        run = cls(path)
        if not run.path.is_dir():
            raise RunError(f"{run.path}: no such run folder")
        if not run.exists:
            raise RunError(f"{run.path / SPEC}: missing; {run.path} is no run folder, or not whole")
        return run

    @property
    def exists(self) -> bool:
        return (self.path / SPEC).exists()

    def check_free(self) -> None:
        """Raises `RunError` where a new run would overwrite something."""
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise RunError(f"{self.path}: is a file, not a folder")
        if self.exists:
            raise RunError(
                f"{self.path}: holds another run; choose another --out, or go on with that run: "
                f"{self.resume_command}"
            )
        if any(not item.name.startswith(TEMPORARY) for item in self.path.iterdir()):
            raise RunError(f"{self.path}: is not empty; choose another --out")

    def sweep(self) -> None:
        """Remove what a killed process left half-written."""
        for left in self.path.glob(f"{TEMPORARY}*"):
            left.unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove a run that never started: its spec, and the folder if nothing else is there."""
        (self.path / SPEC).unlink(missing_ok=True)
        for folder in (self.checkpoint, self.path):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    @property
    def resume_command(self) -> str:
        return f"pyro-vae train --out {self.path} --resume"

    # What it holds --------------------------------------------------------------------------

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def has_checkpoint(self) -> bool:
        """Is there a state to go on from? (A killed write leaves files that start with a dot.)"""
        held = self.checkpoint.glob("[!.]*") if self.checkpoint.is_dir() else ()
        return any(True for _ in held)

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def _remedy(self) -> str:
        return f"write it again from the checkpoint: {self.resume_command}"

    @cached_property
    def spec(self) -> ExperimentSpec:
        path = self.path / SPEC
        try:
            return ExperimentSpec.from_dict(load_yaml(path))
        except SpecError as error:
            lines = [Problem((), f"{path}: {problem}") for problem in error.problems]
            if "is called" in str(error):
                lines.append(Problem((), f"{path}: bring components of your own with --import"))
            raise RunError(lines) from None

    def write_spec(self, spec: ExperimentSpec) -> None:
        note = "# The resolved spec of this run, every field written out.\n"
        write_text(self.path / SPEC, note + dump_yaml(spec.to_dict()))
        self.__dict__["spec"] = spec

    def write_weights(self, vae: VAE) -> None:
        write_tensors(self._weights, vae.state_dict(), {"format": "pyro-vae 1"})

    @property
    def _weights(self) -> Path:
        return self.path / "model.safetensors"

    def weights_fingerprint(self) -> str:
        """Tells whether an evaluation belongs to the weights that now stand in the folder."""
        if not self._weights.exists():
            raise RunError(f"{self._weights}: missing; {self._remedy}")
        return hashlib.sha256(self._weights.read_bytes()).hexdigest()[:16]

    def vae(self) -> VAE:
        """The trained VAE, in evaluation mode. Raises `RunError`."""
        held, _ = read_tensors(self._weights, self._remedy)
        try:
            with torch.random.fork_rng(devices=[]):  # the first weights are drawn, then replaced
                vae = VAE.from_spec(self.spec.model)
        except SpecError as error:
            lines = [Problem((), f"{self.path / SPEC}: {problem}") for problem in error.problems]
            raise RunError(lines) from None
        problems = _mismatches(held, vae.state_dict())
        if problems:
            raise RunError(
                [Problem((), f"{self._weights}: {text}; {self._remedy}") for text in problems]
            )
        vae.load_state_dict(held)
        return vae.eval()

    def history(self) -> list[dict[str, Any]]:
        return read_json_lines(self.metrics, self._remedy)

    def summary(self) -> dict[str, Any]:
        return read_json(self.path / "summary.json", self._remedy)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        write_json(self.path / "summary.json", summary)

    def finished_as(self, spec: ExperimentSpec) -> bool:
        """Did training end after as many epochs as `spec` asks for, with everything written?"""
        return self.finished and self.summary().get("epochs") == spec.train.epochs

    @property
    def finished(self) -> bool:
        if not (self.path / "summary.json").exists() or not self._weights.exists():
            return False
        return self.summary().get("status") in DONE

    # The evaluation, and the sandwich ---------------------------------------------------------

    def partial_evaluation(self, *question: Any, kind: str = EVALUATION) -> tuple[Path, int]:
        """Where an evaluation of this question is kept until it is done; how many others of its
        kind, which are removed, there were."""
        text = json.dumps(question, sort_keys=True)
        mark = hashlib.sha256(text.encode()).hexdigest()[:16]
        path = self.path / f"{kind}-partial-{mark}.safetensors"
        others = [held for held in self.path.glob(f"{kind}-partial-*.safetensors") if held != path]
        for other in others:
            other.unlink(missing_ok=True)
        return path, len(others)

    def write_evaluation(
        self, arrays: Mapping[str, Tensor], summary: Mapping[str, Any], kind: str = EVALUATION
    ) -> None:
        """Per-datum tensors and the summary, with marks by which they belong together."""
        marks = {key: str(summary[key]) for key in MARKS[kind]}
        write_tensors(self.path / f"{kind}.safetensors", arrays, marks)
        write_json(self.path / f"{kind}.json", summary)

    def evaluation(self, kind: str = EVALUATION) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Per-datum tensors and the summary of the last of its kind. Raises `RunError`."""
        option = " --estimator sandwich" if kind == SANDWICH else ""
        remedy = f"make it: pyro-vae evaluate {self.path}{option}"
        summary = read_json(self.path / f"{kind}.json", remedy)
        path = self.path / f"{kind}.safetensors"
        arrays, marks = read_tensors(path, remedy)
        if any(str(summary.get(key)) != marks.get(key) for key in MARKS[kind]):
            raise RunError(f"{path}: belongs to another evaluation than {kind}.json; {remedy}")
        wanted = (*ARRAYS, "khat") if "khat_threshold" in summary else ARRAYS
        lengths = [len(arrays[name]) for name in wanted if name in arrays]
        if lengths != [summary.get("num_data")] * len(wanted):
            raise RunError(f"{path}: damaged (not one number per datum); {remedy}")
        if summary["weights_fingerprint"] != self.weights_fingerprint():
            raise RunError(f"{path}: was made with other weights than {self._weights}; {remedy}")
        return arrays, summary


def _mismatches(held: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """How stored weights fail to be those of the spec, one line each."""
    found = [f"lacks the weight '{name}'" for name in wanted if name not in held]
    found += [f"holds '{name}', which the spec has no place for" for name in held.keys() - wanted]
    for name in wanted.keys() & held.keys():
        have, want = tuple(held[name].shape), tuple(wanted[name].shape)
        if have != want:
            found.append(f"'{name}' has shape {have}, the spec says {want}")
        elif held[name].dtype != wanted[name].dtype:
            found.append(f"'{name}' is {held[name].dtype}, the spec says {wanted[name].dtype}")
    return sorted(found)


def load(path: str | PathLike) -> VAE:
    """The trained VAE of a run folder. Only data is read: no code and no pickle.

    Raises: `RunError` for a missing or damaged file, naming the file and what to do.
    """
    return Run.open(path).vae()
