"""The guide with an auxiliary latent."""

from __future__ import annotations

from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from pydantic import PositiveInt
from pyro.distributions import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.guides.base import Guide, GuideModule, positive
from pyro_vae.networks.base import Network, dense
from pyro_vae.part import Shapes


class Auxiliary(Guide, name="auxiliary"):
    """q(z|x) = int q(a|x) q(z|a,x) da, both diagonal Gaussians; a is a latent of the model, too.

        log w = log p(x, z) + log r(a|x,z) - log q(a|x) - log q(z|a,x)

    The model is widened by r(a|x,z), a diagonal Gaussian that leaves p(x, z) as it is: the weight
    stays one of p(x), and the bound is log p(x) where q(a, z|x) = p(z|x) r(a|x,z)
    (arXiv:1602.05473). a has `auxiliary_dim` numbers; the encoder puts out what q(a|x) needs and
    `context` numbers, which two networks with one layer of `hidden` turn into q(z|a,x) and
    r(a|x,z).
    """

    density = "joint"
    widens_model = True
    auxiliary_dim: PositiveInt = 8
    context: PositiveInt = 64
    hidden: PositiveInt = 128

    def build(self, shapes: Shapes, encoder: Network) -> GuideModule:
        return AuxiliaryModule(shapes, encoder, self)


class AuxiliaryModule(GuideModule):
    def __init__(self, shapes: Shapes, encoder: Network, spec: Auxiliary):
        few, dim = spec.auxiliary_dim, shapes.latent_dim
        super().__init__(shapes, encoder, 2 * few + spec.context)
        self.sizes = [few, few, spec.context]
        self.to_z = _network(spec.context + few, spec.hidden, 2 * dim)
        self.to_a = _network(spec.context + dim, spec.hidden, 2 * few)

    def encode(self, x, given=None):
        loc, raw, context = self.encoder(x).split(self.sizes, -1)
        return loc, positive(raw), context

    def distribution(self, parameters):
        return AuxiliaryDistribution(self, *parameters)

    def auxiliary(self, parameters) -> TorchDistribution:
        """q(a|x)."""
        return dist.Normal(*parameters[:2]).to_event(1)

    def given_auxiliary(self, parameters, a: Tensor) -> TorchDistribution:
        """q(z|a,x)."""
        return _gaussian(self.to_z, parameters[2], a)

    def forward(self, x, given=None):
        parameters = self.encode(x, given)
        a = pyro.sample("a", self.auxiliary(parameters))
        return pyro.sample("z", self.given_auxiliary(parameters, a))

    def widen_model(self, x, z):
        pyro.sample("a", _gaussian(self.to_a, self.encode(x)[2], z))


class AuxiliaryDistribution(TorchDistribution):
    """q(z|x), which can be drawn from; its density is an integral over a."""

    arg_constraints: ClassVar = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, guide: AuxiliaryModule, loc: Tensor, scale: Tensor, context: Tensor):
        self.guide, self.parameters = guide, (loc, scale, context)
        super().__init__(loc.shape[:-1], torch.Size(guide.shapes.latent), validate_args=False)

    def expand(self, batch_shape, _instance=None):
        parts = [part.expand(*batch_shape, part.shape[-1]) for part in self.parameters]
        return AuxiliaryDistribution(self.guide, *parts)

    def rsample(self, sample_shape=()) -> Tensor:
        a = self.guide.auxiliary(self.parameters).rsample(sample_shape)
        return self.guide.given_auxiliary(self.parameters, a).rsample()

    def log_prob(self, value: Tensor) -> Tensor:
        raise NotImplementedError(
            "guide 'auxiliary': q(z|x) is an integral over a; what is known is q(a, z|x), as the "
            "sites 'a' and 'z' of the guide give it"
        )


def _network(num_inputs: int, hidden: int, num_outputs: int) -> nn.Module:
    """0 at the start: a standard normal. Bounded units keep log scales from following far draws."""
    last = dense(hidden, num_outputs)
    nn.init.zeros_(last.weight)
    return nn.Sequential(dense(num_inputs, hidden), nn.Tanh(), last)


def _gaussian(network: nn.Module, context: Tensor, given: Tensor) -> TorchDistribution:
    """A diagonal Gaussian, of context `[..., N, *]` and a value `[..., N, *]` of more draws."""
    context = context.expand(*given.shape[:-1], context.shape[-1])
    loc, raw = network(torch.cat([context, given], -1)).chunk(2, -1)
    return dist.Normal(loc, positive(raw)).to_event(1)
