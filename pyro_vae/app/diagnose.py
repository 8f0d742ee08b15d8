"""Why a run's bound is below log p(x), what its latents are used for, how right its guide is."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal

import inference
from pyro_vae.app.columns import Batch, arguments, batch_fingerprint, choose, on
from pyro_vae.app.evaluate import check_density, chosen
from pyro_vae.app.experiment import EvaluateSpec, devices
from pyro_vae.app.files import write_json, write_tensors
from pyro_vae.app.local import local_guide
from pyro_vae.app.pairs import local_pair
from pyro_vae.app.pictures.calibration import draw_calibration
from pyro_vae.app.pictures.gaps import draw_gaps
from pyro_vae.app.pictures.reference import draw_reference
from pyro_vae.app.pictures.usage import draw_unit_kl
from pyro_vae.app.run import Run
from pyro_vae.app.tables import say, show_table
from pyro_vae.component import nearest
from pyro_vae.errors import RequestError
from pyro_vae.vae import VAE

NUM_DATA = 100  # whose gaps are found, unless told otherwise
USAGE_DATA = 1000  # whose latents are looked at
SLOW_DATA = 100  # the same where the guide's density is found one dimension at a time
REFERENCE_DATA = 4  # whose posterior is drawn from
ROWS = 10  # of a table over units
PICTURES: dict[str, Callable] = {
    "gaps": draw_gaps,
    "unit_kl": draw_unit_kl,
    "calibration": draw_calibration,
    "reference": draw_reference,
}


@dataclass
class Diagnosis:
    """Results by name (`gaps`, `unit_kl`, `surgery`, `calibration`, `reference`), of those that
    apply; `missing` says why one does not. `summary`: what the JSON holds; `pictures`: drawn."""

    results: dict[str, Any] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    pictures: list[Path] = field(default_factory=list)

    def add(self, name: str, ask: Callable[[], Any]) -> None:
        try:
            self.results[name] = ask()
        except (inference.PairError, inference.NonFiniteError) as error:
            self.missing[name] = str(error)

    def arrays(self) -> dict[str, Tensor]:
        return {
            f"{name}.{key}": tensor
            for name, result in self.results.items()
            for key, tensor in result.arrays().items()
        }


def diagnose(
    run: Run | str | PathLike,
    *,
    estimator: str | None = None,
    split: str | None = None,
    num_data: int | None = None,
    seed: int | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Every diagnostic of a run, written to `diagnosis.json`, `diagnosis.safetensors`, pictures.

    Gaps are of a random 100 of the split, latent usage of a random 1000 (100 where the guide's
    density is slow), always the same ones; of `num_data` where that is given. The posterior is of
    the first 4 of them.
    Raises: `RequestError`, before anything is written.
    """
    started = time.perf_counter()
    run = run if isinstance(run, Run) else Run.open(run)
    how = _chosen(run.spec.evaluate, estimator or "ais", split, num_data, seed)
    device = device or devices()[0]
    if device not in devices():
        raise RequestError(
            f"--device: '{device}' is not on this machine{nearest(device, devices())}"
        )
    weights = run.weights_fingerprint()
    vae = run.vae()
    vae.to(device)
    check_density(run, vae)
    every = arguments(run.spec.data.prepared(), how.split, vae.spec)
    there = len(every[0])
    batch = on(choose(every, how.num_data or min(NUM_DATA, there)), device)
    most = SLOW_DATA if vae.spec.guide.density != "anywhere" else USAGE_DATA
    more = on(choose(every, how.num_data or min(most, there)), device)
    if len(batch[0]) < 2:
        raise RequestError("--num-data: 1; errors of a mean need at least two data")
    pair = local_pair(vae)
    own: dict[str, Any] = {"seed": how.seed, "progress": progress}
    found = Diagnosis()
    # An estimator that does not fit is the request's fault: no reason to go on without it.
    local = None if _is_gaussian(vae, batch) else local_guide(vae)
    found.results["gaps"] = inference.gaps(
        *pair, batch, estimator=how.estimator, local=local, **own
    )
    found.add("unit_kl", lambda: inference.unit_kl(*pair, more, **own))
    found.add("surgery", lambda: inference.surgery(*pair, more, **own))
    found.add("calibration", lambda: inference.calibration(*pair, more, **own))
    few = tuple(item[:REFERENCE_DATA] for item in batch)
    found.add("reference", lambda: inference.reference(*pair, few, **own))
    found.summary = {
        "split": how.split,
        "num_data": len(batch[0]),
        "num_usage_data": len(more[0]),
        "seed": how.seed,
        "data_fingerprint": batch_fingerprint(batch),
        "weights_fingerprint": weights,
        **{name: result.summary() for name, result in found.results.items()},
        "missing": found.missing,
        "seconds": time.perf_counter() - started,
    }
    _write(run, found)
    return found


def _is_gaussian(vae: VAE, batch: Batch) -> bool:
    q = vae.encode(*(item[:1] for item in batch))
    base = q.base_dist if isinstance(q, Independent) else q
    return isinstance(base, Normal | MultivariateNormal)


def _chosen(
    own: EvaluateSpec, estimator: str, split: str | None, num_data: int | None, seed: int | None
) -> EvaluateSpec:
    if estimator == "sandwich":
        raise RequestError(
            "--estimator: 'sandwich' bounds log p(x) of simulated data, but gaps are of your own; "
            "take ais, smc, importance, or quadrature for one or two latents"
        )
    # The evaluation's number of data is for an estimate that costs less than what is done here.
    fields = {**own.to_dict(), "num_data": None}
    return chosen(
        EvaluateSpec.from_dict(fields), estimator, split=split, num_data=num_data, seed=seed
    )


def _write(run: Run, found: Diagnosis) -> None:
    marks = {key: str(found.summary[key]) for key in ("data_fingerprint", "weights_fingerprint")}
    write_tensors(run.path / "diagnosis.safetensors", found.arrays(), marks)
    write_json(run.path / "diagnosis.json", found.summary)
    for name, draw in PICTURES.items():
        path = run.pictures / f"{name}.png"
        if name in found.results and not _nothing_to_draw(name, found.results[name]):
            found.pictures.append(draw(found.results[name], path))
        else:
            path.unlink(missing_ok=True)  # one of another diagnosis


def _nothing_to_draw(name: str, result: Any) -> bool:
    return name == "unit_kl" and result.num_known == 0


# In the terminal -------------------------------------------------------------------------------


def report(run: Run, found: Diagnosis) -> None:
    """Print a table and a paragraph for each part."""
    for name, title, show in (
        ("gaps", f"{run.path}: where log p(x) goes, {found.summary['split']} data", _show_gaps),
        ("unit_kl", "KL per latent unit", _show_units),
        ("surgery", "ELBO surgery: what the KL is made of", _show_surgery),
        ("calibration", "Calibration of the guide, on simulated data", _show_calibration),
        ("reference", "The guide beside the posterior of a few data", _show_reference),
    ):
        if name in found.results:
            show(title, found.results[name])
            say(f"{found.results[name]}\n")
        else:
            say(f"{title}: not known. {found.missing[name]}\n")


def _show_gaps(title: str, result: inference.Gaps) -> None:
    items = result.items
    rows = [_budget_row("log p(x)", items["log_px"], f"by {result.log_px.estimator}")]
    rows.append(_budget_row("= reconstruction", result.reconstruction, "E_q[log p(x|z)]"))
    rows += [_budget_row(f"- KL({site})", item, "to the prior") for site, item in result.kl.items()]
    rows += [
        _budget_row("+ inference gap", result.inference, "KL to p(z|x)"),
        _budget_row("    approximation", result.approximation, "lost by the family"),
        _budget_row("    amortization", result.amortization, "lost by the encoder"),
        _budget_row("bound", result.elbo, "below log p(x) by the gap"),
    ]
    show_table(title, ("quantity", ">nats", ">error", ">test set", ""), rows)


def _budget_row(name: str, item: Any, what: str) -> tuple[str, ...]:
    return name, f"{item.mean:.3f}", f"{item.mc_std_error:.2g}", f"{item.test_std_error:.2g}", what


def _show_units(title: str, result: inference.UnitKL) -> None:
    order = result.kl.nan_to_num(-1.0).argsort(descending=True).tolist()
    rows = [
        (result.units[i], f"{float(result.kl[i]):.3f}", f"{float(result.std_error[i]):.2g}")
        for i in order[:ROWS]
        if float(result.kl[i]) >= result.threshold
    ]
    rows += _rest(result.num_known - result.num_collapsed - len(rows), "more in use")
    rows += _rest(result.num_collapsed, "collapsed")
    rows += _rest(result.num_units - result.num_known, "not known")
    rows.append(("all together", f"{result.total:.3f}", ""))
    show_table(title, ("unit", ">nats", ">error"), rows)


def _rest(count: int, what: str) -> list[tuple[str, str, str]]:
    return [(f"{count} {what}", "", "")] if count > 0 else []


def _show_surgery(title: str, result: inference.Surgery) -> None:
    names = {
        "kl": "mean KL(q(z|x) || p(z))",
        "information": "= information I(x; z)",
        "aggregate_kl": "+ KL(q(z) || p(z))",
        "total_correlation": "    total correlation",
        "dimension_kl": "    dimension-wise KL",
    }
    rows = [
        (text, f"{term.mean:.3f}", f"{term.mc_std_error:.2g}", f"{term.std_error:.2g}")
        for name, text in names.items()
        if (term := result.terms.get(name)) is not None
    ]
    show_table(title, ("quantity", ">nats", ">error", ">test set"), rows)


def _show_calibration(title: str, result: inference.Calibration) -> None:
    order = result.p_value.argsort().tolist()[: min(ROWS, result.num_failed)]
    rows = [(result.units[i], result.verdicts[i], f"{float(result.p_value[i]):.2g}") for i in order]
    if result.num_failed > len(rows):
        rows.append((f"{result.num_failed - len(rows)} more", "", ""))
    good = result.num_units - result.num_failed
    if good:
        rows.append((f"{good} others", "no fault seen", f"{result.level:g} or more"))
    show_table(title, ("unit", "the guide is", ">p-value"), rows)


def _show_reference(title: str, result: inference.Reference) -> None:
    rows = []
    for n in range(result.num_data):
        worst = int(result.shift[n].abs().argmax())
        shift, error = float(result.shift[n, worst]), float(result.shift_std_error[n, worst])
        rows.append(
            (
                str(n),
                f"{float(result.rhat[n].max()):.3f}",
                f"{float(result.ess[n].min()):.0f}",
                f"{float(result.shift[n].abs().mean()):.2f}",
                f"{shift:+.2f} +- {error:.2f} ({result.names[worst]})",
                f"{float(result.sd_ratio[n].median()):.2f}",
                "flagged" if bool(result.flagged[n]) else "",
            )
        )
    columns = ("datum", ">R-hat", ">ESS", ">mean |shift|", ">largest shift", ">sd ratio", "")
    show_table(title, columns, rows)
