"""Compare runs datum by datum: paired differences of log p(x) on the same data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from pyro_vae.app.comparable import (
    Evaluated,
    check_data,
    check_distinct,
    check_runs,
    model_differences,
    names,
)
from pyro_vae.app.run import ARRAYS, Run
from pyro_vae.app.tables import say, show_table

# A rule of caution, no bound: where k-hat cannot vouch for a datum, log p(x) may lie further above
# its estimate by this many times what the weights raised it above the ELBO, of 1 nat at least.
HIDDEN = 10.0


@dataclass(frozen=True)
class Model:
    """Runs whose specs are equal but for the training seed.

    value: `[runs, N]`, log p(x) of each run and datum.
    std_error: `[runs, N]`, its Monte-Carlo error.
    elbo: `[runs, N]`, the mean log-weight of the same samples.
    flagged, unknown: `[runs, N]`, are errors not to be believed, or is that not known?
    flag: what tells so: `k-hat is too large`.
    estimators: in words, how the runs were estimated: `importance, K=5000`; each way once.
    """

    name: str
    runs: tuple[Run, ...]
    value: Tensor
    std_error: Tensor
    elbo: Tensor
    flagged: Tensor
    unknown: Tensor
    flag: str
    estimators: tuple[str, ...]

    @property
    def mean(self) -> float:
        return float(self.value.mean())

    @property
    def mc_std_error(self) -> float:
        return float(self.std_error.square().sum().sqrt() / self.value.numel())

    @property
    def test_std_error(self) -> float:
        """Error for new data, of these trained weights."""
        return _error_of_mean(self.value.mean(0))

    @property
    def seed_std(self) -> float:
        """Spread between training seeds; NaN with one."""
        return float(self.value.mean(1).std()) if len(self.runs) > 1 else math.nan

    @property
    def bias_estimate(self) -> float:
        return float(-0.5 * self.std_error.square().mean())

    @property
    def flagged_share(self) -> float:
        """Of the estimates of which that is known; NaN if of none."""
        known = int((~self.unknown).sum())
        return int(self.flagged.sum()) / known if known else math.nan

    @property
    def unknown_share(self) -> float:
        return float(self.unknown.double().mean())

    @property
    def hidden_bias(self) -> float:
        """How far the mean may lie too low, by `HIDDEN`, for data that nothing vouches for."""
        raised = (self.value - self.elbo).nan_to_num(0.0).clamp_min(1.0)
        return float(HIDDEN * ((self.flagged | self.unknown) * raised).mean())

    @property
    def distrust(self) -> str:
        """What speaks against these estimates; empty if nothing."""
        said = []
        if self.flagged.any():
            said.append(f"{self.flag} for {_percent(self.flagged_share)} of the data")
        if self.unknown.any():
            share = _percent(self.unknown_share)
            said.append(f"k-hat is unknown, for want of samples, for {share} of the data")
        return " and ".join(said)


@dataclass(frozen=True)
class Difference:
    """Mean log p(x) of `model` minus that of `reference`, paired per datum."""

    model: Model
    reference: Model

    @property
    def per_datum(self) -> Tensor:
        return self.model.value.mean(0) - self.reference.value.mean(0)

    @property
    def mean(self) -> float:
        return float(self.per_datum.mean())

    @property
    def std_error(self) -> float:
        """Paired test-set error; it contains the Monte-Carlo part."""
        return _error_of_mean(self.per_datum)

    @property
    def seed_std_error(self) -> float:
        """Error of the difference of means over seeds; NaN where a model has one seed."""
        both = (self.model, self.reference)
        return math.sqrt(sum(m.seed_std**2 / len(m.runs) for m in both))

    @property
    def doubts(self) -> list[str]:
        """Why a difference, however large beside its error, may not be that of the models."""
        both = (self.model, self.reference)
        size = max(abs(self.mean), self.std_error)  # a bias below the error is no matter
        said = []
        ways = "; ".join(f"'{m.name}' by {' and '.join(m.estimators)}" for m in both)
        if set(self.model.estimators) != set(self.reference.estimators):
            said.append(f"they were estimated differently ({ways}); evaluate both alike")
        elif len(self.model.estimators) > 1:
            said.append(f"not all seeds were estimated alike ({ways}); evaluate all alike")
        if sum(model.hidden_bias for model in both) >= size:
            said += [
                f"the estimates of '{model.name}' are not to be trusted: {model.distrust}; the "
                "difference may be that of the guides, not of the models; evaluate with "
                "--estimator auto"
                for model in both
                if model.distrust
            ]
        bias = abs(self.model.bias_estimate - self.reference.bias_estimate)
        if bias > 0.5 * size:
            said.append(
                f"the estimated biases differ by {bias:.2g} nats, which could account for it; "
                "evaluate with more samples"
            )
        elif math.isnan(bias):
            said.append("one sample tells nothing about its own bias; evaluate with more")
        return said

    @property
    def words(self) -> str:
        """What the difference allows to say."""
        size = f"{abs(self.mean):.3g} nats"
        verb = "higher" if self.mean > 0 else "lower"
        pair = f"'{self.model.name}' against '{self.reference.name}'"
        if not math.isfinite(self.std_error):
            return f"{pair}: one datum tells nothing about others."
        doubts = ". ".join(text[0].upper() + text[1:] for text in self.doubts)
        if abs(self.mean) <= 2 * self.std_error:
            said = f"{pair}: {size} {verb}, within 2 paired standard errors: no difference shown."
            return f"{said} {doubts}." if doubts else said
        if doubts:
            return f"{pair}: {size} {verb}, but nothing is settled. {doubts}."
        said = f"{pair}: {size} {verb}, more than 2 paired standard errors"
        if math.isnan(self.seed_std_error):
            said += "; for these trained weights only, as one of them has a single training seed."
        elif abs(self.mean) <= 2 * self.seed_std_error:
            said += ", but within 2 standard errors of the spread between training seeds."
        else:
            said += ", and more than 2 of the spread between training seeds."
        for model in (self.model, self.reference):
            if model.distrust:
                share = float((model.flagged | model.unknown).double().mean())
                said += (
                    f" For '{model.name}' {model.distrust}, which would have to be off by "
                    f"{abs(self.mean) / share:.3g} nats each to account for it."
                )
        return said


def _error_of_mean(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values))) if len(values) > 1 else math.nan


def compare(folders: Sequence[str | PathLike]) -> list[Model]:
    """The models of these runs, in the order given, all evaluated on the same data.

    Raises: `RunError` for a run that is not evaluated, given twice, or evaluated on other data.
    """
    runs = [Run.open(folder) for folder in folders]
    check_runs(runs)
    evaluations = [run.evaluation() for run in runs]
    check_data(runs, [summary for _, summary in evaluations])
    groups: list[list[int]] = []
    for i, run in enumerate(runs):
        for group in groups:
            if not model_differences(runs[group[0]].spec, run.spec):
                group.append(i)
                break
        else:
            groups.append([i])
    called = names([runs[group[0]] for group in groups])
    return [
        _model(name, check_distinct([(runs[i], *evaluations[i]) for i in group]))
        for name, group in zip(called, groups, strict=True)
    ]


def _model(name: str, evaluated: Sequence[Evaluated]) -> Model:
    runs, arrays, summaries = zip(*evaluated, strict=True)
    held = {key: torch.stack([one[key] for one in arrays]) for key in ARRAYS}
    flags = [_flags(one, summary) for one, summary in zip(arrays, summaries, strict=True)]
    return Model(
        name=name,
        runs=runs,
        value=held["value"],
        std_error=held["std_error"],
        elbo=held["elbo"],
        flagged=torch.stack([flagged for flagged, _ in flags]),
        unknown=torch.stack([unknown for _, unknown in flags]),
        flag=" or ".join(dict.fromkeys(s.get("flag", "k-hat is too large") for s in summaries)),
        estimators=tuple(dict.fromkeys(map(_estimator, summaries))),
    )


def _flags(arrays: Mapping[str, Tensor], summary: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Data whose errors are not to be believed, and those of which that is not known."""
    if "khat" in arrays:
        unknown = arrays["khat"].isnan()
        if "flagged" in arrays:  # unknown is no fault where the effective sample size is good
            unknown = unknown & arrays["flagged"].bool()
        return arrays["khat"] > summary["khat_threshold"], unknown
    flagged = arrays.get("flagged", torch.zeros_like(arrays["value"])).bool()
    return flagged, torch.zeros_like(flagged)


def _estimator(summary: Mapping[str, Any]) -> str:
    told = f"{summary['estimator']}, K={summary['num_samples']}"
    steps = summary.get("num_temperatures")
    return told if steps is None else f"{told}, T={steps}"


def report(models: Sequence[Model]) -> None:
    """Print the models, their paired differences, and what these allow to say."""
    show_table(
        f"log p(x) in nats per datum, mean over the same {models[0].value.shape[1]} data",
        ("model", ">runs", ">log p(x)", ">MC error", ">test error", ">seed spread"),
        (
            (
                model.name,
                str(len(model.runs)),
                f"{model.mean:.3f}",
                _number(model.mc_std_error),
                _number(model.test_std_error),
                _number(model.seed_std),
            )
            for model in models
        ),
    )
    show_table(
        "How they were estimated",
        ("model", "by", ">flagged", ">unknown"),
        (
            (
                model.name,
                "; ".join(model.estimators),
                _percent(model.flagged_share),
                _percent(model.unknown_share),
            )
            for model in models
        ),
    )
    best = max(models, key=lambda model: model.mean)
    others = [Difference(model, best) for model in models if model is not best]
    if not others:
        say("All runs are of one model: they differ by training seed only.")
        return
    show_table(
        f"Difference from the highest, {best.name}",
        ("model", ">difference", ">paired error", ">error from seeds"),
        (
            (d.model.name, f"{d.mean:+.3f}", _number(d.std_error), _number(d.seed_std_error))
            for d in others
        ),
    )
    for difference in others:
        say(difference.words)
    say(
        "Differences are taken datum by datum, so that the spread between data, which dominates "
        "the test error, cancels. The test error is about other data of the same source, the seed "
        "spread about other trainings of the same model."
    )


def _number(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.3g}"


def _percent(share: float) -> str:
    """`3.2%`; a little is never 0%, and almost all never 100%."""
    if math.isnan(share):
        return "unknown"
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return f"{min(max(share, 0.001), 0.999):.1%}"
