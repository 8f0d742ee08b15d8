"""Estimate log p(x) of a trained run, with everything a reader needs to trust it or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any

import torch
from torch import Tensor

import inference
from inference.isolation import own_randomness
from pyro_vae.app.classification import accuracy
from pyro_vae.app.columns import Batch, arguments, batch_fingerprint, choose, on
from pyro_vae.app.experiment import (
    ESTIMATORS,
    EvaluateSpec,
    ExperimentSpec,
    devices,
    override,
)
from pyro_vae.app.pairs import local_pair
from pyro_vae.app.run import EVALUATION, SANDWICH, Run, RunFailed
from pyro_vae.app.tables import say, show_table
from pyro_vae.component import nearest
from pyro_vae.data.base import Dataset
from pyro_vae.data.bits import bits_per_dim
from pyro_vae.errors import RequestError, SpecError
from pyro_vae.vae import VAE

SETTINGS = {
    "ais": "estimator.num_temperatures=200",
    "smc": "estimator.num_chains=64",
    "sandwich": "estimator.by.num_temperatures=200",
    "quadrature": "estimator.tolerance=1e-5",
    "enumerate": "estimator.most_values=1000",
}
ARTICLES = {EVALUATION: "an evaluation", SANDWICH: "a sandwich"}
DECODED = 500  # data whose decoder outputs are looked at


def evaluate(
    run: Run | str | PathLike,
    *,
    estimator: str | None = None,
    samples: int | None = None,
    split: str | None = None,
    num_data: int | None = None,
    engine: str | None = None,
    precision: str | None = None,
    device: str | None = None,
    changes: Sequence[str] = (),
    progress: bool = True,
) -> tuple[inference.Estimate, dict[str, Any]]:
    """log p(x) on one split, written to `evaluation.safetensors` and `evaluation.json`.

    A sandwich, which is of data that it simulates, has files of its own: `sandwich.safetensors` and
    `sandwich.json`, without what is known of the split.
    What is None is taken from the run's own spec; `changes` are `key=value` of its evaluate
    section. An evaluation that was stopped goes on where it stood, if it is asked for alike.
    Returns the estimate and what the JSON holds.
    Raises: `RequestError`, before anything is written.
    """
    run = run if isinstance(run, Run) else Run.open(run)
    how = chosen(
        run.spec.evaluate,
        estimator,
        samples,
        split=split,
        num_data=num_data,
        engine=engine,
        precision=precision,
    )
    how = changed(run.spec, how, changes)
    device = device or devices()[0]
    if device not in devices():
        raise RequestError(
            f"--device: '{device}' is not on this machine{nearest(device, devices())}"
        )
    weights = run.weights_fingerprint()
    vae = run.vae()
    vae.to(device)
    check_density(run, vae)
    dataset = run.spec.data.prepared()
    batch = choose(arguments(dataset, how.split, vae.spec), how.num_data)
    batch = on(batch, device)
    kind = kind_of(how.estimator.name)
    # Before log p(x), whose parts are dropped once it is there.
    beside = _beside(vae, dataset, batch, how) if kind == EVALUATION else {}
    question = weights, batch_fingerprint(batch), how.to_dict(), device
    partial, dropped = run.partial_evaluation(*question, kind=kind)
    if dropped:
        say(f"{run.path}: drops the beginning of {ARTICLES[kind]} with other settings")
    if partial.exists():
        say(f"{run.path}: goes on with {ARTICLES[kind]} that was stopped")
    try:
        settings: dict[str, Any] = {
            "estimator": how.estimator,
            "seed": how.seed,
            "engine": how.engine,
            "precision": how.precision,
            "progress": progress,
        }
        pair = vae.model, vae.guide
        estimate: inference.Estimate
        if vae.bayesian:
            estimate = inference.log_predictive(*pair, batch, draws=how.global_draws, **settings)
        else:
            estimate = inference.log_marginal(*pair, batch, checkpoint=partial, **settings)
    except inference.PairError as error:  # our models are sound: the estimator does not fit
        raise RequestError(f"evaluate.estimator: {error}") from None
    except KeyboardInterrupt:
        if not partial.exists():
            raise
        raise RunFailed(
            f"{run.path}: interrupted; what is done is kept, and the same command goes on with it"
        ) from None
    asked = how.to_dict()
    estimate = replace(estimate, quantity=quantity(vae, how.split, estimate.quantity))
    summary = {**estimate.summary(), "weights_fingerprint": weights}
    if kind == SANDWICH:  # of its own data, whatever the split
        summary["evaluate"] = {k: v for k, v in asked.items() if k not in ("split", "num_data")}
    else:
        own = {"split": how.split, "data_fingerprint": batch_fingerprint(batch), "evaluate": asked}
        summary |= {**own, **_bits(vae, dataset, batch, estimate), **beside}
    run.write_evaluation(estimate.arrays(), summary, kind)
    return estimate, summary


def quantity(vae: VAE, split: str, named: str) -> str:
    """What was estimated: `log p(x)` with the role of labels and of missing values in it."""
    x = "x known" if vae.spec.missing else "x"
    if vae.spec.label == "latent" and split == "train":
        x = f"{x}, y where known"
    given = "y" if vae.spec.label == "condition" else ""
    if "| global draws" in named:
        given = f"{given}, global draws" if given else "global draws"
    told = f"log p({x} | {given})" if given else f"log p({x})"
    for plain in ("log p(x | global draws)", "log p(x)"):
        named = named.replace(plain, told) if plain in named else named
    return named


def check_density(run: Run, vae: VAE) -> None:
    """Raises `RequestError` for a guide whose draws have no weights."""
    if vae.spec.guide.density == "none":
        raise RequestError(
            f"{run.path}: guide '{vae.spec.guide.name}' has no density, so log p(x) cannot be "
            "estimated by it; train with another guide, e.g. model.guide=mean_field, or ask what "
            f"is in its latents: pyro-vae probe {run.path}"
        )


def kind_of(estimator: str) -> str:
    """The name of the files of what an estimator finds."""
    return SANDWICH if estimator == "sandwich" else EVALUATION


def chosen(
    own: EvaluateSpec,
    estimator: str | None = None,
    samples: int | None = None,
    **others: Any,
) -> EvaluateSpec:
    """The run's own settings with those of the command line in their place."""
    held = ESTIMATORS.dump(own.estimator)
    if estimator is not None and estimator != held["name"]:
        held = {"name": estimator}
    for name in ("split", "num_data"):
        if held["name"] == "sandwich" and others.get(name) is not None:
            raise RequestError(
                f"--{name.replace('_', '-')}: a sandwich is of data that it simulates; set how "
                "many by estimator.num_data=100"
            )
    if samples is not None:
        if held["name"] == "auto":
            part = {"name": "importance"} | dict(held.get("importance") or {})
            held["importance"] = part | {"num_samples": samples}
        elif held["name"] == "importance":
            held["num_samples"] = samples
        else:
            raise RequestError(
                f"--samples: is for importance and auto; '{held['name']}' takes its own settings, "
                f"e.g. {SETTINGS.get(held['name'], 'see pyro-vae list estimators')}"
            )
    fields = {**own.to_dict(), "estimator": held}
    fields |= {name: value for name, value in others.items() if value is not None}
    try:
        return EvaluateSpec.from_dict(fields)
    except SpecError as error:
        raise SpecError([problem.under("evaluate") for problem in error.problems]) from None


def changed(spec: ExperimentSpec, how: EvaluateSpec, changes: Sequence[str]) -> EvaluateSpec:
    """The settings with `key=value` of the evaluate section in their place."""
    for change in changes:
        if "=" not in change:
            raise RequestError(
                f"'{change}': expected key=value, e.g. estimator.num_temperatures=200"
            )
    whole = {**spec.to_dict(), "evaluate": how.to_dict()}
    return override(whole, [f"evaluate.{_whole(change)}" for change in changes]).evaluate


def _whole(change: str) -> str:
    """`estimator.by=importance` as the settings of that name: a sandwich's own choice of two."""
    key, _, value = change.partition("=")
    if key in ("estimator.by", "estimator.by.name") and not value.lstrip().startswith("{"):
        return f"estimator.by={{name: {value}}}"
    return change


def _beside(vae: VAE, dataset: Dataset, batch: Batch, how: EvaluateSpec) -> dict[str, Any]:
    """What else is told of the data that log p(x) is estimated of."""
    pair, many = local_pair(vae), len(batch[0]) > 1
    labels = dataset.labels.get(how.split)
    if labels is not None:
        (labels,) = choose((labels,), how.num_data)
    return {
        **accuracy(vae, batch, labels, how.seed),
        **_bound(inference.bound(*pair, batch, seed=how.seed)),
        **(_units(inference.active_units(*pair, batch, seed=how.seed)) if many else {}),
        "warnings": _warnings(vae, dataset, how.split, _decoded(vae, batch, how.seed)),
    }


def _bound(bound: inference.Bound) -> dict[str, Any]:
    return {
        "bound": bound.elbo,
        "bound_std_error": bound.elbo_std_error,
        "reconstruction": bound.reconstruction,
        "kl": bound.kl,
        "kl_kind": bound.kl_kind,
    }


def _units(units: inference.ActiveUnits) -> dict[str, Any]:
    return {
        "active_units": units.count,
        "active_units_burda": units.burda_count,
        "num_units": units.num_units,
    }


def _bits(vae: VAE, dataset: Dataset, batch: Batch, estimate: inference.Estimate) -> dict[str, Any]:
    """Bits per dimension of grey levels, where log p(x) says something of their probability.

    Where values are missing, per value that is known.
    """
    discrete = vae.likelihood.support == "levels"
    if dataset.levels is None or not (discrete or dataset.dequantized):
        return {}
    dims: float = math.prod(dataset.shape)
    if vae.spec.missing:
        mask = batch[vae.columns.index("mask")]
        dims = max(1, int(mask.sum())) / len(mask)
    levels = dataset.levels if dataset.dequantized else None
    kind = "code length" if discrete else "upper bound on the code length"
    return {
        "bits_per_dim": bits_per_dim(estimate.mean, dims, levels),
        "bits_per_dim_std_error": estimate.test_std_error / (dims * math.log(2)),
        "bits_per_dim_kind": f"{kind} of the discrete data",
        "levels": dataset.levels,
    }


def _decoded(vae: VAE, batch: Batch, seed: int) -> Tensor:
    """Decoder outputs `[N, *param_shape]` at a posterior draw for each of some data."""
    with own_randomness(seed), torch.no_grad():
        some = choose(batch, min(len(batch[0]), DECODED))
        return vae.outputs(vae.encode(*some).sample(), vae.likely_labels(*some))


def _warnings(vae: VAE, dataset: Dataset, split: str, outputs: Tensor) -> list[str]:
    """What is special about this model and these data, beside what the estimate knows."""
    said = list(vae.likelihood.warnings(outputs))
    if split == "train":
        said.append("the weights were fitted to these data, so new data have a lower log p(x)")
    if dataset.dequantized:
        said.append(
            "uniform noise makes log p(x) a lower bound on the log-probability of the discrete "
            "data, so the bits per dimension are an upper bound on their code length"
        )
    noisy = dataset.dequantized or dataset.support in ("real", "count")
    if vae.likelihood.support == "real" and not noisy:
        said.append(
            "the data lie in [0, 1] and got no noise; where they take few distinct values, a "
            "density can grow without limit as sigma falls, so compare log p(x) only between "
            "models of the same data with the same floor of sigma"
        )
    return said


def report(run: Run, estimate: inference.Estimate, summary: Mapping[str, Any]) -> None:
    """Print the evaluation: a table, and one paragraph on how far to trust it."""
    if kind_of(summary["estimator"]) == SANDWICH:
        _report_sandwich(run, estimate, summary)
        return
    spec = run.spec.model
    rows = [
        (summary["quantity"], _number(summary["log_px"], 3), "nats per datum"),
        ("  Monte-Carlo error", _number(summary["mc_std_error"]), "shrinks with samples and data"),
        ("  estimated bias", _number(summary["bias_estimate"]), "shrinks with samples only"),
        ("  test-set error", _number(summary["test_std_error"]), "for new data of the same source"),
        ("ELBO", _number(summary["bound"], 3), f"+- {_number(summary['bound_std_error'])}"),
        ("  reconstruction", _number(summary["reconstruction"], 3), "E_q[log p(x|z)]"),
    ]
    for site, value in summary["kl"].items():
        rows.append((f"  KL({site})", _number(value, 3), summary["kl_kind"][site]))
    if "active_units" in summary:
        text = f"of {summary['num_units']}; {summary['active_units_burda']} by Burda's rule"
        rows.append(("active units", str(summary["active_units"]), text))
    if "accuracy" in summary:
        text = f"+- {_number(summary['accuracy_std_error'])}, of {summary['accuracy_kind']}"
        rows.append(("accuracy", _number(summary["accuracy"], 4), text))
    if "bits_per_dim" in summary:
        bound = "upper bound, " if "bound" in summary["bits_per_dim_kind"] else ""
        text = f"{bound}0-{summary['levels'] - 1} scale"
        rows.append(("bits per dimension", _number(summary["bits_per_dim"], 3), text))
    if "khat_bad_share" in summary:
        share = summary["khat_bad_share"]
        text = f"of data; threshold {summary['khat_threshold']:.2f}"
        told = "unknown" if math.isnan(share) else f"{share:.1%}"
        rows.append(("Pareto k-hat too large", told, text))
    elif estimate.flagged is not None:
        told = f"{estimate.num_flagged / estimate.num_data:.1%}"
        rows.append(("flagged", told, f"of data: {summary['flag']}"))
    title = f"{run.path}: {spec.prior.name} prior, {spec.guide.name} guide, {summary['split']} data"
    show_table(title, ("quantity", ">value", ""), rows)
    say(f"How far to trust it: {estimate}{''.join(f' Note: {w}.' for w in summary['warnings'])}")


def _report_sandwich(run: Run, estimate: inference.Estimate, summary: Mapping[str, Any]) -> None:
    rows = [
        ("log p(x), at least", _number(summary["log_px"], 3), "nats per simulated datum"),
        ("  at most", _number(summary["upper"], 3), "in expectation"),
        ("  gap", _number(summary["gap"]), f"+- {_number(summary['gap_std_error'])}"),
    ]
    title = f"{run.path}: {summary['num_data']} data simulated from the model"
    show_table(title, ("quantity", ">value", ""), rows)
    say(f"How far to trust it: {estimate}")


def _number(value: float, digits: int | None = None) -> str:
    if value is None or math.isnan(value):
        return "unknown"
    return f"{value:.3g}" if digits is None else f"{value:.{digits}f}"
