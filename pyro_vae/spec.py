"""VAESpec: a variational autoencoder as a value, and which of its parts fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, WithJsonSchema, model_validator

from pyro_vae.component import OneOf, Value, shorten
from pyro_vae.guides.base import Guide
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.networks.base import Network
from pyro_vae.priors.base import Prior

Label = Literal["none", "condition", "latent", "cluster"]

OFFERS = {
    "sequential": "offers that density only one dimension at a time",
    "own samples": "knows its density only at its own samples",
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
            raise ValueError(refusal)
        return self


def refusals(spec: VAESpec) -> Iterator[str]:
    """Why parts of a spec do not fit, each in one sentence that names what would."""
    yield from _levels(spec)
    yield from _supports(spec)
    yield from _densities(spec)
    yield from _labels(spec)
    for role in ("encoder", "classifier"):
        network = getattr(spec, role)
        if network.bayesian:
            names = _named(Network.registry, lambda cls: not cls.bayesian)
            yield (
                f"{role} '{network.name}': weights that are latents are for decoders; networks "
                f"that fit: {names}"
            )
    if spec.exposure and not spec.likelihood.takes_exposure:
        names = _named(Likelihood.registry, lambda cls: cls.takes_exposure)
        yield (
            f"exposure scales the rate of counts, which likelihood '{spec.likelihood.name}' has "
            f"not; likelihoods that fit: {names}"
        )


def _levels(spec: VAESpec) -> Iterator[str]:
    many = "many" if spec.levels else "one"
    for part, registry in ((spec.prior, Prior.registry), (spec.guide, Guide.registry)):
        if part.levels != many:
            fitting = _named(registry, lambda cls: cls.levels == many)
            given = f"latent_dim {spec.latent_dim}"
            instead = "one number" if many == "many" else "one for each level, e.g. [32, 8]"
            has = {"one": "one level", "many": "two or more levels"}[part.levels]
            yield (
                f"{part.family} '{part.name}' has {has} of latents, but {given} asks for {many}; "
                f"{part.family}s that fit: {fitting}; or give latent_dim {instead}"
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
    if spec.label == "none":
        if spec.classes is not None:
            yield f"classes {spec.classes} without a label; set label, or leave classes out"
        if spec.prior.labelled:
            yield (
                f"prior '{spec.prior.name}' is p(z|y), but there is no label; set label to "
                "condition, latent or cluster, or take a prior without one: "
                f"{_named(Prior.registry, lambda cls: not cls.labelled)}"
            )
    elif spec.label == "cluster":
        if not spec.prior.labelled:
            yield (
                f"label: a cluster is seen by the prior alone, but prior '{spec.prior.name}' is "
                "not p(z|y); priors that fit: "
                f"{_named(Prior.registry, lambda cls: cls.labelled)}"
            )
        if spec.classes is None:
            yield "classes: missing; say how many clusters there are"


def _guides(spec: VAESpec) -> str:
    return _named(
        Guide.registry,
        lambda guide: (
            guide.support == spec.prior.support
            and guide.levels == spec.prior.levels
            and (
                (guide.density == "anywhere" and guide.knows_top)
                or not spec.prior.needs_guide_density
            )
        ),
    )


def _named(registry: Mapping[str, Any], fits) -> str:
    return ", ".join(name for name, cls in registry.items() if fits(cls)) or "none"
