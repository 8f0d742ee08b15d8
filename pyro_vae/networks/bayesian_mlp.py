"""A multilayer perceptron whose weights are latents: a Bayesian decoder."""

from __future__ import annotations

import math
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pyro_vae.networks.base import ACTIVATIONS, Activation, Network

SITE = "decoder_weights"


class BayesianMLP(Network, name="bayesian_mlp"):
    """Dense layers with weights W ~ N(0, scale^2 / fan_in) and biases b ~ N(0, scale^2).

    Output biases are N(b_0, scale^2) around what fits the training data without z, once that is
    set (`VAE.initialize`): at N(0, 1) a pixel that is nearly always black would cost some 20 nats.
    The guide is q(W, b) = N(m, diag s^2), s starting at `initial_scale` / sqrt(fan_in)
    (arXiv:1312.6114, appendix F; arXiv:1505.05424). One site, "decoder_weights", outside the data
    plate. Of decoders alone: evidence is log p(x | draws of the weights).
    """

    hidden: tuple[PositiveInt, ...] = (300, 300)
    activation: Activation = "tanh"
    scale: float = Field(default=1.0, gt=0)
    initial_scale: float = Field(default=0.02, gt=0)

    bayesian = True

    def make(self, in_shape, out_shape) -> BayesianNet:  # type: ignore[override]
        return BayesianNet(self, in_shape, out_shape)


class BayesianNet(nn.Module):
    """`[..., *in_shape]` to `[..., *out_shape]`, by weights `[*particles, 1, P]` or `[P]`."""

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(self, spec: BayesianMLP, in_shape: tuple[int, ...], out_shape: tuple[int, ...]):
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)
        self.activation = ACTIVATIONS[spec.activation]()
        widths = [math.prod(in_shape), *spec.hidden, math.prod(out_shape)]
        self.pairs = list(pairwise(widths))
        self.sizes = [size for above, below in self.pairs for size in (above * below, below)]
        scales, start = [], []
        for above, below in self.pairs:
            weights = torch.empty(below, above)
            nn.init.xavier_uniform_(weights)
            start += [weights.T.flatten(), torch.zeros(below)]
            scales += [torch.full((above * below,), above**-0.5), torch.ones(below)]
        flat = torch.cat(scales)
        self.register_buffer("prior_loc", torch.zeros_like(flat))
        self.register_buffer("prior_scale", spec.scale * flat, persistent=False)
        self.loc = nn.Parameter(torch.cat(start))
        self.log_scale = nn.Parameter((spec.initial_scale * flat).log())

    def sample_prior(self) -> Tensor:
        """The model's site."""
        return pyro.sample(SITE, dist.Normal(self.prior_loc, self.prior_scale).to_event(1))

    def sample_guide(self) -> Tensor:
        """The guide's site."""
        return pyro.sample(SITE, dist.Normal(self.loc, self.log_scale.exp()).to_event(1))

    def forward(self, inputs: Tensor, weights: Tensor | None = None) -> Tensor:
        """Without weights, by the guide's means of them."""
        flat = self.loc if weights is None else weights
        if flat.dim() > 1:
            flat = flat.squeeze(-2)  # the data plate's place: one network for all data
        lead = inputs.shape[: inputs.dim() - len(self.in_shape)]
        h = inputs.reshape(*lead, -1)
        parts = flat.split(self.sizes, -1)
        for layer, (above, below) in enumerate(self.pairs):
            matrix = parts[2 * layer].unflatten(-1, (above, below))  # [*particles, in, out]
            h = h @ matrix + parts[2 * layer + 1].unsqueeze(-2)
            if layer < len(self.pairs) - 1:
                h = self.activation(h)
        return h.reshape(*h.shape[:-1], *self.out_shape)

    @torch.no_grad()
    def set_output_bias(self, value: Tensor) -> bool:
        for biases in (self.loc, self.prior_loc):
            biases[-value.numel() :] = value.flatten().to(biases)
        return True
