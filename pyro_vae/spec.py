"""VAESpec: a variational autoencoder as a value, and which of its parts fit together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, WithJsonSchema, model_validator

from pyro_vae.component import OneOf, Value, shorten
from pyro_vae.guides.base import Guide
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.networks.base import Network
from pyro_vae.priors.base import Prior

Label = Literal["none", "condition", "latent", "cluster"]
Reason = Literal[
    "levels differ",
    "supports differ",
    "no density there",
    "no label or mask",
    "no exposure",
    "weights are latents",
]

OFFERS = {
    "sequential": "offers that density only one dimension at a time",
    "own samples": "knows its density only at its own samples",
    "given the prior": "needs the prior itself for that density",
    "none": "has no density",
    "joint": "knows its density only together with an auxiliary latent's",
}


def _latent_dim(value: Any) -> Any:
    many = tuple(value) if isinstance(value, list | tuple) else (value,)
    fine = all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in many)
    if not fine or len(many) < 1 + isinstance(value, list | tuple):
        raise ValueError(
            "expected a positive integer, or one for each of two or more levels, e.g. [32, 8] "
            f"(got {shorten(value)})"
        )
    return many if isinstance(value, list | tuple) else value


LatentDim = Annotated[
    int | tuple[int, ...],
    BeforeValidator(_latent_dim),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "exclusiveMinimum": 0},
                {
                    "type": "array",
                    "items": {"type": "integer", "exclusiveMinimum": 0},
                    "minItems": 2,
                },
            ]
        }
    ),
]


class VAESpec(Value):
    """A variational autoencoder as a value: p(z), p(x|z), q(z|x) and their networks.

    `data_shape` is the shape of one datum; in an experiment it may be left out and is taken from
    the data. `latent_dim` is one number, or one for each level from the data up (`[32, 8]`).

    `label`: what a label y in {0, ..., classes - 1} is. `none`; `condition`, seen by prior, encoder
    and decoder: p(x|y); `latent`, seen by encoder and decoder, observed where it is known and
    summed over where it is -1: p(x, y) (arXiv:1406.5298, M2); `cluster`, never observed, summed
    over and seen by the prior alone. `classifier` is the network of q(y|x) of a latent label.
    `missing`: a mask tells which values of x are known, and p is that of these. `exposure`: a
    positive number that scales the rate of counts is given with each datum.
    """

    data_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    latent_dim: LatentDim = 8
    prior: Annotated[Any, OneOf(Prior.registry)] = "standard_normal"
    guide: Annotated[Any, OneOf(Guide.registry)] = "mean_field"
    likelihood: Annotated[Any, OneOf(Likelihood.registry)] = "bernoulli"
    encoder: Annotated[Any, OneOf(Network.registry)] = "mlp"
    decoder: Annotated[Any, OneOf(Network.registry)] = "mlp"
    label: Label = "none"
    classes: Annotated[int, Field(ge=2)] | None = None
    classifier: Annotated[Any, OneOf(Network.registry)] = "mlp"
    missing: bool = False
    exposure: bool = False

    @property
    def levels(self) -> tuple[int, ...]:
        """The lengths of several levels of latents, from the data up; empty for one level."""
        return self.latent_dim if isinstance(self.latent_dim, tuple) else ()

    @property
    def columns(self) -> tuple[str, ...]:
        """What model and guide are handed, in this order."""
        found = ["x"]
        if self.label in ("condition", "latent"):
            found.append("y")
        if self.missing:
            found.append("mask")
        if self.exposure:
            found.append("exposure")
        return tuple(found)

    @model_validator(mode="after")
    def _parts_fit(self):
        for refusal in refusals(self):
            raise ValueError(refusal.text)
        return self


@dataclass(frozen=True)
class Refusal:
    """Why two parts do not fit: in one word, and in a sentence that names what would."""

    reason: Reason
    text: str


def refusals(spec: VAESpec) -> Iterator[Refusal]:
    """Why the parts of a spec do not fit."""
    for reason, check in CHECKS:
        for text in check(spec):
            yield Refusal(reason, text)


def _levels(spec: VAESpec) -> Iterator[str]:
    many = "many" if spec.levels else "one"
    for part in (spec.prior, spec.guide):
        if part.levels != many:
            fitting = _named(Prior.registry, levels=many)
            if part is spec.guide and spec.prior.levels == many:
                fitting = _guides(spec)
            elif part is spec.guide:
                fitting = _named(Guide.registry, levels=many)
            instead = "one number" if many == "many" else "one for each level, e.g. [32, 8]"
            has = {"one": "one level", "many": "two or more levels"}[part.levels]
            yield (
                f"{part.family} '{part.name}' has {has} of latents, but latent_dim "
                f"{spec.latent_dim} asks for {many}; {part.family}s that fit: "
                f"{fitting}; or give latent_dim {instead}"
            )


def _supports(spec: VAESpec) -> Iterator[str]:
    prior, guide = spec.prior, spec.guide
    if guide.support != prior.support:
        yield (
            f"prior '{prior.name}' has {prior.support} latents and guide '{guide.name}' "
            f"{guide.support} ones; guides that fit: {_guides(spec)}"
        )
    elif not spec.levels:
        shapes = [part.latent_shape(spec.latent_dim) for part in (prior, guide)]
        if shapes[0] != shapes[1]:
            yield (
                f"a latent of prior '{prior.name}' has shape {shapes[0]}, and one of guide "
                f"'{guide.name}' {shapes[1]}; give both the same fields"
            )


def _densities(spec: VAESpec) -> Iterator[str]:
    prior, guide = spec.prior, spec.guide
    if prior.needs_guide_density and not guide.knows_top:
        yield (
            f"prior '{prior.name}' evaluates q(z|u) of the last level at any z, of which guide "
            f"'{guide.name}' has no closed form; guides that fit: {_guides(spec)}"
        )
    elif prior.needs_guide_density and guide.density != "anywhere":
        yield (
            f"prior '{prior.name}' evaluates q(z|u) at any z, but guide '{guide.name}' "
            f"{OFFERS[guide.density]}; guides that fit: {_guides(spec)}"
        )


def _labels(spec: VAESpec) -> Iterator[str]:
    if spec.label == "none" and spec.classes is not None:
        yield f"classes {spec.classes} without a label; set label, or leave classes out"
    if spec.label == "none" and spec.prior.labelled:
        yield (
            f"prior '{spec.prior.name}' is p(z|y), but there is no label; set label to condition, "
            "latent or cluster; without one, priors that fit: "
            f"{_named(Prior.registry, labelled=False)}"
        )
    if spec.label == "cluster" and not spec.prior.labelled:
        yield (
            f"label: a cluster is seen by the prior alone, but prior '{spec.prior.name}' is not "
            f"p(z|y); priors that fit: {_named(Prior.registry, labelled=True)}"
        )
    if spec.label == "cluster" and spec.classes is None:
        yield "classes: missing; say how many clusters there are"
    if spec.guide.needs_mask and not spec.missing:
        others = _named(Guide.registry, needs_mask=False, levels=spec.prior.levels)
        yield (
            f"guide '{spec.guide.name}' is told which values are known; set missing; without it, "
            f"guides that fit: {others}"
        )


def _exposures(spec: VAESpec) -> Iterator[str]:
    if spec.exposure and not spec.likelihood.takes_exposure:
        yield (
            f"exposure scales the rate of counts, which likelihood '{spec.likelihood.name}' has "
            f"not; likelihoods that fit: {_named(Likelihood.registry, takes_exposure=True)}"
        )


def _networks(spec: VAESpec) -> Iterator[str]:
    for role in ("encoder", "classifier"):
        network = getattr(spec, role)
        if network.bayesian:
            yield (
                f"{role} '{network.name}': weights that are latents are for decoders; networks "
                f"that fit: {_named(Network.registry, bayesian=False)}"
            )


CHECKS: tuple[tuple[Reason, Callable[[VAESpec], Iterator[str]]], ...] = (
    ("levels differ", _levels),
    ("supports differ", _supports),
    ("no density there", _densities),
    ("no label or mask", _labels),
    ("no exposure", _exposures),
    ("weights are latents", _networks),
)


def _guides(spec: VAESpec) -> str:
    wanted: dict[str, Any] = {"support": spec.prior.support, "levels": spec.prior.levels}
    if spec.prior.needs_guide_density:
        wanted |= {"density": "anywhere", "knows_top": True}
    return _named(Guide.registry, **wanted)


def _named(registry: Mapping[str, Any], **wanted: Any) -> str:
    """The names of the members with these class attributes."""
    found = [
        name
        for name, cls in registry.items()
        if all(getattr(cls, key) == value for key, value in wanted.items())
    ]
    return ", ".join(found) or "none"
