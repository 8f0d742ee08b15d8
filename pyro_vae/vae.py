"""VAESpec, the value, and VAE, the Pyro model and guide it builds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from typing import Annotated, Any

import pyro
import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pyro_vae.component import OneOf, Value
from pyro_vae.errors import Problem, RequestError, SpecError
from pyro_vae.guides.base import Guide
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.networks.base import Network
from pyro_vae.part import Shapes
from pyro_vae.priors.base import Prior


class VAESpec(Value):
    """A variational autoencoder as a value: p(z), p(x|z), q(z|x) and their networks.

    `data_shape` is the shape of one datum; in an experiment it may be left out and is taken from
    the data.
    """

    data_shape: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] | None = None
    latent_dim: PositiveInt = 8
    prior: Annotated[Any, OneOf(Prior.registry)] = "standard_normal"
    guide: Annotated[Any, OneOf(Guide.registry)] = "mean_field"
    likelihood: Annotated[Any, OneOf(Likelihood.registry)] = "bernoulli"
    encoder: Annotated[Any, OneOf(Network.registry)] = "mlp"
    decoder: Annotated[Any, OneOf(Network.registry)] = "mlp"

    @model_validator(mode="after")
    def _parts_fit(self):
        guides: Mapping[str, Any] = Guide.registry
        fitting = [
            name
            for name, guide in guides.items()
            if guide.support == self.prior.support
            and (guide.density == "anywhere" or not self.prior.needs_guide_density)
        ]
        if self.guide.support != self.prior.support:
            raise ValueError(
                f"prior '{self.prior.name}' has {self.prior.support} latents and guide "
                f"'{self.guide.name}' {self.guide.support} ones; guides that fit: "
                f"{', '.join(fitting) or 'none'}"
            )
        latent, of_guide = (p.latent_shape(self.latent_dim) for p in (self.prior, self.guide))
        if latent != of_guide:
            raise ValueError(
                f"prior '{self.prior.name}' has latents of shape {latent} and guide "
                f"'{self.guide.name}' of shape {of_guide}; give both the same fields; guides that "
                f"fit: {', '.join(fitting)}"
            )
        if self.prior.needs_guide_density and self.guide.density != "anywhere":
            offers = {
                "sequential": "offers that density only one dimension at a time",
                "own samples": "knows its density only at its own samples",
            }[self.guide.density]
            raise ValueError(
                f"prior '{self.prior.name}' evaluates q(z|u) at any z, but guide "
                f"'{self.guide.name}' {offers}; guides that fit: {', '.join(fitting)}"
            )
        return self


class VAE(nn.Module):
    """A variational autoencoder whose `model` and `guide` are Pyro programs.

        z ~ p(z),  x ~ p(x | decoder(z));    q(z|x) = guide(encoder(x))

    Args: the fields of `VAESpec` (`data_shape` is required).
    Raises: `SpecError`, one line per mistake.
    References: Kingma and Welling, arXiv:1312.6114; Rezende et al., arXiv:1401.4082.

    >>> import pyro_vae as pv, torch
    >>> vae = pv.VAE(data_shape=(8, 8), latent_dim=2, prior="gaussian_mixture")
    >>> vae.generate(3).shape
    torch.Size([3, 8, 8])
    """

    def __init__(self, **fields: Any):
        super().__init__()
        self.spec = spec = VAESpec(**fields)
        if spec.data_shape is None:
            text = "missing; give the shape of one datum, e.g. (28, 28)"
            raise SpecError(Problem(("data_shape",), text))
        self.shapes = shapes = Shapes(
            data=spec.data_shape, latent=spec.prior.latent_shape(spec.latent_dim)
        )
        self.prior = spec.prior.build(shapes)
        self.guide_module = spec.guide.build(shapes, spec.encoder)
        self.decoder = spec.decoder.make(
            shapes.latent, spec.likelihood.param_shape(spec.data_shape)
        )
        self.likelihood = spec.likelihood.build(shapes)
        for part in self.parts():
            part.bind(self)

    @classmethod
    def from_spec(cls, spec: VAESpec | Mapping | str | PathLike) -> VAE:
        """Build from a `VAESpec`, a mapping, or the path of a YAML file."""
        if isinstance(spec, str | PathLike):
            from pyro_vae.yaml_files import load_yaml

            spec = load_yaml(spec)
        if not isinstance(spec, VAESpec):
            spec = VAESpec.from_dict(spec)
        return cls(**{name: getattr(spec, name) for name in VAESpec.model_fields})

    def parts(self) -> tuple:
        return self.prior, self.guide_module, self.likelihood

    # The Pyro programs ---------------------------------------------------------------------

    def model(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """p(z) p(x|z). `x [batch, *data_shape]`; without x, one datum is drawn."""
        for name in ("prior", "decoder", "likelihood"):
            pyro.module(name, getattr(self, name))
        with pyro.plate("data", self._batch_size(x), dim=-1):
            z = self.prior(y)
            return pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor | None = None, y: Tensor | None = None) -> Tensor:
        """q(z|x). `x [batch, *data_shape]`."""
        if x is None:
            raise RequestError("guide: q(z|x) needs x; use model() alone to draw from the prior")
        pyro.module("guide", self.guide_module)
        with pyro.plate("data", self._batch_size(x), dim=-1):
            return self.guide_module(x, y)

    def _batch_size(self, x: Tensor | None) -> int:
        if x is None:
            return 1
        if tuple(x.shape[1:]) != self.shapes.data:
            raise RequestError(
                f"x has shape {tuple(x.shape)}; expected [batch, "
                f"{', '.join(map(str, self.shapes.data))}] as in data_shape={self.shapes.data}"
            )
        return len(x)

    # In plain words ------------------------------------------------------------------------

    def initialize(self, x: Tensor) -> VAE:
        """Set what comes from training data `x [N, *data_shape]`: output bias, scales, ..."""
        self._batch_size(x)
        for part in self.parts():
            part.initialize(x)
        start = self.likelihood.initial_output(x)
        if start is not None:
            self.decoder.set_output_bias(start)
        return self

    def encode(self, x: Tensor, y: Tensor | None = None):
        """q(z|x) as a distribution with batch shape `[batch]` and event shape `[latent_dim]`."""
        self._batch_size(x)
        return self.guide_module.distribution(self.guide_module.encode(x, y))

    def decode(self, z: Tensor):
        """p(x|z) as a distribution, for `z [..., latent_dim]`."""
        return self.likelihood(self.decoder(z))

    @torch.no_grad()
    def latent_mean(self, x: Tensor, num_samples: int = 64) -> Tensor:
        """E_q[z|x] `[batch, latent_dim]`: exact where the guide knows it, else a sample mean."""
        q = self.encode(x)
        try:
            return q.mean
        except NotImplementedError:
            return q.sample((num_samples,)).mean(0)

    @torch.no_grad()
    def generate(self, num: int = 1, *, mean: bool = True) -> Tensor:
        """`num` data from the model `[num, *data_shape]`: means of p(x|z), or draws."""
        z = self.prior.distribution().expand([num]).sample()
        p = self.decode(z)
        return p.mean if mean else p.sample()

    @torch.no_grad()
    def reconstruct(self, x: Tensor, *, mean: bool = True) -> Tensor:
        """x passed through one draw of q(z|x) and back: `[batch, *data_shape]`."""
        p = self.decode(self.encode(x).sample())
        return p.mean if mean else p.sample()

    @property
    def num_weights(self) -> int:
        return sum(math.prod(p.shape) for p in self.parameters())
