"""A Pyro (model, guide) pair, looked at once: its sites, its plate, and whether the two fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from inference.errors import NonFiniteError, PairError, RequestError
from inference.isolation import own_randomness, own_store, validation
from inference.marks import Unmarked, check_marked, is_marked
from inference.refusals import names_of, refusals_of
from inference.supports import check_support

Data = Tensor | tuple[Tensor, ...]


def as_arguments(data: Data, name: str = "data") -> tuple[Tensor, ...]:
    """`x` or `(x, y, ...)` as a tuple of tensors with one common first dimension, all finite."""
    arguments = tuple(data) if isinstance(data, tuple | list) else (data,)
    for i, item in enumerate(arguments):
        if not isinstance(item, Tensor):
            raise RequestError(
                f"{name}: argument {i} is a {type(item).__name__}; expected a tensor [N, ...] or a "
                "tuple of tensors"
            )
        if item.dim() == 0 or len(item) == 0:
            shape = tuple(item.shape)
            raise RequestError(f"{name}: shape {shape} holds no data; expected [N, ...]")
        if len(item) != len(arguments[0]):
            raise RequestError(
                f"{name}: arguments have {len(arguments[0])} and {len(item)} rows; every tensor "
                "needs one row per datum"
            )
        if item.is_floating_point() and not bool(torch.isfinite(item).all()):
            bad = ~torch.isfinite(item.reshape(len(item), -1)).all(1)
            raise RequestError(
                f"{name}: {int(bad.sum())} of {len(item)} data hold NaN or infinite values, the "
                f"first in row {int(bad.nonzero()[0])}; remove or impute them"
            )
    return arguments


@dataclass(frozen=True)
class Pair:
    """What one look at a pair tells.

    `subsampling`: `none` (the plate is as long as the batch), `own` (the plate subsamples the
    data it is handed) or `prescaled` (the plate declares the full data size and scales the batch).
    `whole`: the pair runs on all its data only, never on a part (a plate of fixed size).
    `few`: a number of data that it takes. `failure`: of one that is whole, what it said to fewer.
    `event_numel`: numbers per datum (per particle, for `plate=None`) in the largest site.
    `enumerated`: sites to be summed over all their values; `drawn`: those of them that the guide
    has. `refusals`: sentences that say why the pair's weights are no evidence; empty if they are.
    """

    model: Callable
    guide: Callable
    plate: str | None
    data_dim: int | None
    max_plate_nesting: int
    subsampling: str
    subsample_size: int
    full_size: int
    whole: bool
    event_numel: int
    latents: tuple[str, ...]
    global_sites: tuple[str, ...]
    enumerated: tuple[str, ...]
    scaled_sites: tuple[str, ...]
    refusals: tuple[str, ...]
    drawn: tuple[str, ...] = ()
    few: int = 4
    failure: str = ""

    def drawing(self) -> Pair:
        """The pair whose guide draws the sites that it would have had summed over."""
        if not self.drawn:
            return self
        return replace(
            self,
            model=Unmarked(self.drawn)(self.model),
            guide=Unmarked(self.drawn)(self.guide),
            enumerated=tuple(name for name in self.enumerated if name not in self.drawn),
            drawn=(),
        )


class GivenSubsample(Messenger):
    """Let plates that subsample themselves take these indices instead of random ones."""

    def __init__(self, plate: str, indices: Tensor):
        super().__init__()
        self.plate, self.indices = plate, indices

    def _pyro_sample(self, msg: Any) -> None:
        if isinstance(msg["fn"], _Subsample) and msg["name"] == self.plate and msg["value"] is None:
            msg["value"] = self.indices
            msg["done"] = True


def sample_sites(trace) -> dict[str, Any]:
    """The sites that have a density: neither subsamples nor `pyro.deterministic` notes."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic")
    }


def frame_of(site, plate: str | None):
    return next((f for f in site["cond_indep_stack"] if f.name == plate), None)


def examine(
    model: Callable,
    guide: Callable,
    arguments: tuple[Tensor, ...],
    plate: str | None,
    transform: Callable[[Tensor], Tensor] | None = None,
    batch_size: int = 4,
) -> Pair:
    """Look at a pair with a few data if it accepts few, or a batch, else with all of them.

    `transform` is what training applies to the first tensor of each batch.
    """
    num_data = len(arguments[0])

    def look_at_all() -> Pair:
        return look_at(model, guide, head(arguments, transform, num_data), plate)

    if isinstance(guide, AutoGuide) and guide.prototype_trace is None:
        look_at_all()  # its first call fixes the size of its plates
    if isinstance(guide, AutoGuide):
        guide = poutine.block(guide, hide_fn=_is_whole_plate)
    if plate is None or num_data <= 4:
        return look_at_all()
    failure = ""
    for most in sorted({4, min(batch_size, num_data - 1)}):
        try:
            # A plate that subsamples as many as it was shown looks plain, and a parameter with one
            # number per datum takes whatever it was shown: another number of data tells.
            shapes = []
            for count in (most - 1, most):
                with own_store():
                    pair = look_at(model, guide, head(arguments, transform, count), plate)
                    params = pyro.get_param_store().named_parameters()
                    shapes.append({name: value.shape for name, value in params})
            if pair.subsampling != "own" and shapes[0] == shapes[1]:
                found = look_at(model, guide, head(arguments, transform, most), plate)
                return replace(found, few=most)
        except Exception as error:  # e.g. a plate of fixed size: all of the data tell what is wrong
            said = (str(error).strip() or "no message").splitlines()[0]
            failure = f"{most} data: {type(error).__name__}: {said}"
    return replace(look_at_all(), whole=True, few=num_data, failure=failure)


def _is_whole_plate(site) -> bool:
    """A plate that takes all its indices: replaying it would only force its length on others."""
    fn = site["fn"]
    return isinstance(fn, _Subsample) and (fn.subsample_size or fn.size) >= fn.size


def head(
    arguments: tuple[Tensor, ...], transform: Callable[[Tensor], Tensor] | None, count: int = 4
) -> tuple[Tensor, ...]:
    """The first few data, as training would hand them in."""
    first, *rest = (a[:count] for a in arguments)
    if transform is not None:
        with own_randomness(0):
            first = transform(first)
    return first, *rest


def look_at(
    model: Callable, guide: Callable, arguments: tuple[Tensor, ...], plate: str | None = "data"
) -> Pair:
    """Run model and guide once with Pyro's validation on, and check that they fit.

    Raises `PairError` naming the site and both shapes.
    """
    with own_randomness(0), validation(True), torch.no_grad():
        try:
            guide_trace = poutine.trace(guide).get_trace(*arguments)
            free_trace = poutine.trace(model).get_trace(*arguments)
        except ValueError as error:
            _check_params()
            said, invalid, _ = str(error).partition(", but found invalid values")
            if not invalid:
                raise
            raise PairError(said) from None
        except TypeError as error:
            if "argument" not in str(error):
                raise
            raise PairError(
                f"model and guide were called with {len(arguments)} tensor(s): {error}"
            ) from error
        _check_sites(free_trace, guide_trace, plate)
        trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*arguments)
        for part in (trace, guide_trace):
            try:
                part.compute_log_prob()
            except ValueError as error:
                said = " ".join(str(error).split("Trace Shapes")[0].split())
                said = said.removeprefix("Error while computing log_prob at ")
                raise PairError(said.split(", but found invalid values")[0][:400]) from None

    in_model, in_guide = sample_sites(trace), sample_sites(guide_trace)
    every = [*in_model.values(), *in_guide.values()]
    nesting = max(
        (-f.dim for site in every for f in site["cond_indep_stack"] if f.vectorized), default=0
    )
    latents = tuple(name for name, site in in_model.items() if not site["is_observed"])
    frames = [f for f in (frame_of(site, plate) for site in every) if f is not None]
    if plate is not None and not frames:
        held = sorted({f.name for site in every for f in site["cond_indep_stack"]})
        raise PairError(
            f"no site stands in a plate called '{plate}' (plates found: "
            f"{', '.join(held) or 'none'}); name yours with plate=..., or plate=None for one joint "
            "evidence"
        )
    size, full_size, subsampling = len(arguments[0]), len(arguments[0]), "none"
    if frames:
        frame = frames[0]
        if not frame.vectorized:
            raise PairError(
                f"plate '{plate}' is looped over, which visits one datum at a time; write "
                f"'with pyro.plate(\"{plate}\", len(x)):' instead"
            )
        size, full_size = int(frame.size), int(frame.full_size or frame.size)
        if size != full_size:
            subsampling = "prescaled" if size == len(arguments[0]) else "own"
        elif size != len(arguments[0]):
            raise PairError(
                f"plate '{plate}' has size {size}, but {len(arguments[0])} data were handed in; "
                f"write pyro.plate('{plate}', len(x))"
            )
    enumerated = check_marked({**in_model, **in_guide}, plate)
    return Pair(
        model=model,
        guide=guide,
        plate=plate,
        data_dim=frames[0].dim if frames else None,
        max_plate_nesting=nesting,
        subsampling=subsampling,
        subsample_size=size,
        full_size=full_size,
        whole=subsampling == "own" or plate is None,
        event_numel=max(
            max(1, math.prod(site["fn"].batch_shape) // (size if frames else 1))
            * math.prod(site["fn"].event_shape)
            for site in every
        ),
        latents=latents,
        global_sites=tuple(
            name for name, site in {**in_guide, **in_model}.items() if frame_of(site, plate) is None
        ),
        enumerated=enumerated,
        scaled_sites=tuple(name for name, site in in_model.items() if _user_scaled(site))
        + tuple(name for name, site in in_guide.items() if _user_scaled(site)),
        refusals=refusals_of(in_model, in_guide, plate, nesting),
        drawn=tuple(name for name in enumerated if name in in_guide),
    )


def _check_params() -> None:
    """Refuse parameters that are not finite, by name."""
    for name, value in pyro.get_param_store().named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise NonFiniteError(f"parameter '{name}' holds NaN or infinite values")


def _user_scaled(site) -> bool:
    expected = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.full_size and frame.size:
            expected *= frame.full_size / frame.size
    scale = site["scale"]
    if isinstance(scale, Tensor):
        return scale.numel() > 1 or not math.isclose(float(scale), expected, rel_tol=1e-5)
    return not math.isclose(scale, expected, rel_tol=1e-5)


def _check_sites(model_trace, guide_trace, plate: str | None) -> None:
    in_model, in_guide = sample_sites(model_trace), sample_sites(guide_trace)
    latents = {n: s for n, s in in_model.items() if not s["is_observed"]}
    for name, site in in_guide.items():
        if site["is_observed"]:  # pyro.factor: a term of log q
            continue
        if site["infer"].get("is_auxiliary") and name not in in_model:
            continue
        if name not in in_model:
            raise PairError(
                f"site '{name}' is sampled by the guide but not by the model (its latents: "
                f"{names_of(latents)}); rename one, or mark it infer={{'is_auxiliary': True}}"
            )
        if name not in latents:
            raise PairError(f"site '{name}' is sampled by the guide but observed by the model")
        _check_shapes(name, site, latents[name], plate)
        check_support(name, site, latents[name])
    for name, site in latents.items():
        if name not in in_guide and not is_marked(site):
            raise PairError(
                f"site '{name}' is latent in the model but missing from the guide (its sites: "
                f"{names_of(in_guide)}); sample it in both under one name"
            )


def _check_shapes(name: str, q, p, plate: str | None) -> None:
    q_shape, p_shape = _shape(q), _shape(p)
    q_plates = {f.name for f in q["cond_indep_stack"]}
    p_plates = {f.name for f in p["cond_indep_stack"]}
    if q_shape == p_shape and (plate in q_plates) != (plate in p_plates):
        raise PairError(
            f"site '{name}': its plates are {names_of(sorted(q_plates))} in the guide and "
            f"{names_of(sorted(p_plates))} in the model; plate '{plate}' must hold it in both"
        )
    if q_shape != p_shape:
        plates = sorted(p_plates ^ q_plates)
        where = f"plate '{plates[0]}'" if plates else f"plate '{plate}'"
        raise PairError(
            f"site '{name}': guide batch {q_shape[0]} event {q_shape[1]}, model batch "
            f"{p_shape[0]} event {p_shape[1]}; is the {where} present in both, and is "
            ".to_event() the same?"
        )


def _shape(site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(site["fn"].batch_shape), tuple(site["fn"].event_shape)
