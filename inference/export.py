"""Any fitted Pyro pair, labelled: ArviZ 0.2x (`InferenceData`) or 1.x (`DataTree`)."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from inference.errors import RequestError
from inference.evidence.comparison import same_data
from inference.evidence.estimate import Estimate
from inference.evidence.estimator import Request
from inference.evidence.marginal import log_marginal
from inference.evidence.predictive import PredictiveEstimate
from inference.evidence.smoothing import khat_threshold
from inference.gathering import OF_PROPOSALS, Gathering, to_numpy
from inference.isolation import derived_seed
from inference.labels import SAMPLE_DIMS, Axes, check_dims, coordinates, label, named
from inference.pair import Data, as_arguments
from inference.progress import Progress
from inference.requests import positive, whole_number
from inference.tensor_files import row_digests
from inference.tiles import tiled

GROUPS = {
    "guide": "z ~ q(z|x), draws of the guide: an approximation, not draws of the posterior",
    "importance_resampled": (
        "draws of the guide, drawn again for each datum in proportion to p(x, z) / q(z|x): they "
        "tend to p(z|x) as proposals grow in number, and are not there where "
        "importance_weights.flagged is true; draws repeat, which the ess of a summary does not see"
    ),
    "importance_weights": (
        "log_weight: log p(x, z) - log q(z|x), nats, of the draws in group guide; ess, khat and "
        "flagged of all proposals that importance_resampled is drawn from. Flagged: k-hat is too "
        "large or unknown; where it is unknown because weights are tied, ess is below a tenth"
    ),
    "log_likelihood_conditional": (
        "log p(x|z), nats, of the draws in group guide. Each datum has latents of its own, so "
        "leave-one-out or WAIC on it misleads; log p(x) is in group log_px"
    ),
    "guide_predictive": "x ~ p(x|z) of the draws in group guide: not the posterior predictive",
    "prior": "z ~ p(z), draws of the model without its data",
    "prior_predictive": "x ~ p(x|z) of the draws in group prior",
    "observed_data": "the values of the model's observed sites",
    "constant_data": "arguments of the model that no site observes",
    "log_px": "log p(x) with the latents integrated out, nats",
}

GIVEN = "log_px.given"  # the one array of an estimate that has a number for each global draw too


def to_arviz(
    model: Callable,
    guide: Callable,
    data: Data,
    *,
    num_samples: int = 200,
    num_proposals: int | None = None,
    log_px: Estimate | None = None,
    groups: Sequence[str] | None = None,
    dims: Mapping[str, Sequence[str]] | None = None,
    coords: Mapping[str, Sequence] | None = None,
    seed: int = 0,
    plate: str | None = "data",
    device: str | torch.device | None = None,
    max_gib: float = 4.0,
    progress: bool = True,
) -> Any:
    """Draws, weights, log p(x) and data of a Pyro pair, labelled for the ArviZ that is installed.

    | group | variables and dimensions |
    | --- | --- |
    | `guide` | latents z ~ q(z|x): `(chain, draw, data, ...)` |
    | `importance_resampled` | the same, drawn again by each datum's own weights |
    | `importance_weights` | `log_weight (chain, draw, data)`; `ess`, `khat`, `flagged (data)` |
    | `log_likelihood_conditional` | log p(x|z) of observed sites: `(chain, draw, data)` |
    | `guide_predictive` | x ~ p(x|z) of the guide's draws |
    | `prior`, `prior_predictive` | z ~ p(z), x ~ p(x|z) |
    | `observed_data`, `constant_data` | observed values; covariates |
    | `log_px` | arrays of an `Estimate`: `(data)`, or `(data, global_draw)`; summary in `attrs` |

    No group is called `posterior`: whether draws deserve the name is for `importance_weights` to
    say. So name the group, `az.summary(idata, group="guide")`; ArviZ 0.2x would take `prior`
    unasked. Nor is there a `log_likelihood`: each datum has latents of its own, so what `az.loo`
    makes of log p(x|z) is no estimate of log p(x). Each datum n is resampled by itself,

        z_s = z_nk with probability w_nk / sum_j w_nj,   w_nk = p(x_n, z_nk) / q(z_nk|x_n).

    Args:
        model, guide, data, plate, device: as in `log_marginal`. With `plate=None` all data have one
            joint weight, and variables have the dimensions of the sites' own plates alone.
        num_samples: S, draws in a group. There is one chain, for draws are independent.
        num_proposals: K >= S, draws of the guide that are weighed, of which `guide` holds the
            first S; by default 1000, or S if that is more.
        log_px: an estimate for the same data, by whichever estimator; by default one is made, the
            same as `log_marginal(model, guide, data, seed=seed)`.
        groups: names of the groups to make; by default all. Empty ones are left out.
        dims: names for a site's own axes, e.g. `{"z": ["latent"]}`, by default `z_dim_0`, ...;
            axes of plates have the plates' names.
        coords: labels along a dimension, e.g. `{"data": names}`; by default 0, 1, ...
        seed: of the draws; the caller's random state and parameter store are left alone.
        max_gib: the most memory that the draws may take.
    Returns: `arviz.InferenceData` (ArviZ 0.2x) or `xarray.DataTree` (1.x).
    Raises: `PairError`; `RequestError`, also for a result beyond `max_gib`; `NonFiniteError`.
    """
    wanted = _wanted(groups)
    whole_number("num_samples", num_samples)
    if num_proposals is None:
        num_proposals = max(1000, num_samples)
    whole_number("num_proposals", num_proposals, least=num_samples)
    if not wanted & OF_PROPOSALS:
        num_proposals = num_samples
    positive("max_gib", max_gib)
    for name, value in (("dims", dims), ("coords", coords)):
        if value is not None and not isinstance(value, Mapping):
            raise RequestError(f"{name}: got {value!r}; expected a mapping by name")
    given = as_arguments(data)
    if log_px is not None:
        quantity = Request(model, guide, data, plate=plate).quantity
        _check_estimate(log_px, given, plate, quantity)
    own = derived_seed("arviz", seed)  # log p(x) has draws of its own
    with tiled(model, guide, given, num_samples, seed=own, plate=plate, device=device) as tiles:
        gathering = Gathering(tiles, num_proposals, wanted)
        covariates = dict(zip(_argument_names(model, gathering), given, strict=True))
        axes = _axes(gathering, covariates, dims or {})
        if isinstance(log_px, PredictiveEstimate) and "log_px" in wanted:
            axes[GIVEN] = Axes((*axes[""].dims, "global_draw"), tuple(log_px.given.shape))
        labels = coordinates(axes, coords or {})
        _check_size(gathering, max_gib)
        with Progress("draws", gathering.num_tiles, progress, unit="tiles") as bar:
            gathering.run(bar)
    if log_px is None and "log_px" in wanted:
        log_px = log_marginal(
            model, guide, given, seed=seed, plate=plate, device=device, progress=progress
        )
    variables = {group: _named(gathering, group, axes) for group in gathering.arrays}
    if "constant_data" in wanted:
        variables["constant_data"] = _constant(gathering, covariates, axes)
    attrs: dict[str, dict[str, Any]] = {group: {} for group in GROUPS}
    for group in OF_PROPOSALS:
        attrs[group] = {"num_proposals": num_proposals}
    attrs["importance_weights"]["khat_threshold"] = khat_threshold(num_proposals)
    if log_px is not None and "log_px" in wanted:
        variables["log_px"] = {
            name: _of_estimate(tensor, axes[GIVEN if name == "given" else ""].dims)
            for name, tensor in log_px.arrays().items()
        }
        attrs["log_px"] = _plain(log_px)
    labels |= {"chain": np.arange(1), "draw": np.arange(num_samples)}
    return _converted(
        {
            group: _dataset(variables[group], labels, {"description": said, **attrs[group]})
            for group, said in GROUPS.items()
            if group in wanted and variables.get(group)
        }
    )


def _wanted(groups: Sequence[str] | None) -> set[str]:
    if groups is None:
        return set(GROUPS)
    if isinstance(groups, str):
        raise RequestError(f"groups: got {groups!r}; expected a list of names, e.g. [{groups!r}]")
    for name in groups:
        if name not in GROUPS:
            raise RequestError(f"groups: {name!r} is unknown. Choices: {', '.join(GROUPS)}")
    if not groups:
        raise RequestError(f"groups: got none; leave it out, or choose of {', '.join(GROUPS)}")
    return set(groups)


def _check_estimate(
    log_px: Any, arguments: tuple[Tensor, ...], plate: str | None, quantity: str
) -> None:
    if not isinstance(log_px, Estimate):
        raise RequestError(
            f"log_px: got a {type(log_px).__name__}; expected what inference.log_marginal returns"
        )
    num_values = 1 if plate is None else len(arguments[0])
    if log_px.quantity != quantity or log_px.num_data != num_values:
        raise RequestError(
            f"log_px: is '{log_px.quantity}' of {log_px.num_data}; expected '{quantity}' of "
            f"{num_values}, for the same data and plate"
        )
    if not same_data(log_px.data_digests, row_digests(arguments)):
        raise RequestError(
            "log_px: is of other data; make it of the data handed in, in their order"
        )


def _argument_names(model: Callable, gathering: Gathering) -> list[str]:
    """What the model calls its arguments, where that is no site's or dimension's name."""
    arguments = gathering.tiles.arguments
    try:
        function = model.forward if isinstance(model, nn.Module) else model
        kinds = inspect.signature(function).parameters.values()
        names = [p.name for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):  # a callable without a signature
        names = []
    names += [f"argument_{i}" for i in range(len(names), len(arguments))]
    taken = {*gathering.shapes, *SAMPLE_DIMS, gathering.pair.plate}
    taken |= {plate for shape in gathering.shapes.values() for plate in shape.plates}
    return [f"{n}_argument" if n in taken else n for n in names[: len(arguments)]]


def _axes(gathering: Gathering, covariates: Mapping, dims: Mapping) -> dict[str, Axes]:
    """The axes of every variable behind chain and draw; '': of one number a datum."""
    plate = gathering.pair.plate
    rows = () if plate is None else (plate,)
    lengths = () if plate is None else (gathering.num_data,)
    check_dims(dims, [*gathering.shapes, *covariates])
    found = {"": Axes(tuple(label(name) for name in rows), lengths)}
    for name, shape in gathering.shapes.items():
        found[name] = named(name, (*lengths, *shape.lengths), (*rows, *shape.plates), dims)
    for name, value in covariates.items():
        given = (*rows, *[None] * (value.dim() - len(rows)))
        found[name] = named(name, tuple(value.shape), given, dims)
    return found


def _check_size(gathering: Gathering, max_gib: float) -> None:
    sizes = gathering.sizes()
    if sum(sizes.values()) > max_gib * 2**30:
        largest = sorted(sizes, key=lambda group: -sizes[group])[:3]
        said = ", ".join(f"{group} {sizes[group] / 2**30:.3g}" for group in largest)
        raise RequestError(
            f"max_gib: {gathering.num_samples} draws of {len(gathering.tiles.arguments[0])} data "
            f"take {sum(sizes.values()) / 2**30:.3g} GiB ({said}), and {max_gib:g} are allowed; "
            "ask for fewer num_samples, data or groups, or raise max_gib"
        )


def _named(gathering: Gathering, group: str, axes: Mapping[str, Axes]) -> dict[str, Any]:
    """Dimensions and array of each variable of a group."""
    found = {}
    for name, array in gathering.arrays[group].items():
        _, draws = gathering.layout()[group][name]
        of_site = group not in ("importance_weights", "log_likelihood_conditional")
        dims = axes[name if of_site else ""].dims
        if gathering.pair.plate is None:  # all data are one
            array = array[:, 0] if draws else array[0]
        found[name] = ((*SAMPLE_DIMS, *dims), array[None]) if draws else (dims, array)
    return found


def _of_estimate(tensor: Tensor, dims: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """Dimensions and array of what an estimate holds; all data are one where there are none."""
    array = tensor.cpu().numpy()
    return dims, array if dims else array[0]


def _constant(gathering: Gathering, covariates: Mapping, axes: Mapping[str, Axes]) -> dict:
    """The arguments that no site observes: those whose values stand nowhere in observed_data."""
    arrays = {name: to_numpy(value) for name, value in covariates.items()}
    for values in gathering.arrays.get("observed_data", {}).values():
        for name, array in arrays.items():
            if array.size == values.size and np.array_equal(array.ravel(), values.ravel()):
                del arrays[name]
                break
    return {name: (axes[name].dims, array) for name, array in arrays.items()}


def _dataset(variables: Mapping, labels: Mapping[str, np.ndarray], attrs: Mapping) -> Any:
    """An `xarray.Dataset` with the labels of its dimensions."""
    import xarray

    held = {label(name): found for name, found in variables.items()}
    used = {dim for dims, _ in held.values() for dim in dims}
    library = {"inference_library": "pyro", "inference_library_version": pyro.__version__}
    coords = {dim: labels[dim] for dim in labels if dim in used}
    return xarray.Dataset(held, coords, {**attrs, **library})


def _plain(estimate: Estimate) -> dict[str, Any]:
    """The scalars of an estimate, as files take them."""
    held = {**estimate.summary(), "notes": " ".join(estimate.notes)}
    return {
        name: int(value) if isinstance(value, bool) else value
        for name, value in held.items()
        if isinstance(value, str | int | float | list)
    }


def _converted(groups: dict[str, Any]) -> Any:
    """Datasets by group as what the ArviZ at hand works on."""
    with warnings.catch_warnings():
        # arviz 0.23 announces its refactoring whenever it is imported.
        warnings.filterwarnings("ignore", r"\s*ArviZ is undergoing", FutureWarning)
        import arviz

    if int(arviz.__version__.split(".")[0]) < 1:  # later ones have another class of that name
        return arviz.InferenceData(**groups)
    import xarray

    return xarray.DataTree.from_dict(groups)
