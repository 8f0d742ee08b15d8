"""Labels as latents: p(y) and q(y|x)."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.networks.base import Net

# log-odds of a known label: q(y|x) puts probability 1 on it, to the last bit of float32.
CERTAIN = 1e4


class Labels(nn.Module):
    """The site "y" of model and guide.

    Model: y ~ Categorical(pi), learned. Guide of a `latent` label: y ~ q(y|x) where it is missing
    (-1), and with probability 1 what it is where it is known, so that one program serves both and
    the objective is log p(x, y)'s bound there and log p(x)'s here (arXiv:1406.5298, eqs. 6 and 7).
    Both are summed over all classes. A condition is no site: it is `needed`.
    """

    codes: Tensor

    def __init__(self, classes: int, classifier: Net | None, *, needed: bool = False):
        super().__init__()
        # What stands for a missing label. One that is needed leaves no number unspoilt: p(x|y) of
        # no y is no density.
        self.missing = math.nan if needed else 0.0
        self.logits = nn.Parameter(torch.zeros(classes))
        self.classifier = classifier
        self.register_buffer("codes", torch.eye(classes), persistent=False)

    def one_hot(self, y: Tensor) -> Tensor:
        """`[..., classes]`; zeros where a label is missing, or NaN where it is `needed`."""
        return torch.where((y >= 0).unsqueeze(-1), self.codes[y.clamp_min(0)], self.missing)

    def prior(self) -> dist.Categorical:
        return dist.Categorical(logits=self.logits)

    def sample_prior(self) -> Tensor:
        return pyro.sample("y", self.prior(), infer={"enumerate": "parallel"})

    def posterior(self, x: Tensor) -> dist.Categorical:
        """q(y|x) of what the classifier is handed `[N, *seen]`."""
        assert self.classifier is not None
        return dist.Categorical(logits=self.classifier(x))

    def sample_posterior(self, x: Tensor, y: Tensor | None) -> Tensor:
        """The guide's site; beside it, what the classifier says of labels that are known."""
        q = self.posterior(x)
        if y is not None:
            known = y >= 0
            told = q.log_prob(y.clamp_min(0))
            # No density: an objective may add it.
            pyro.deterministic("log_classifier", torch.where(known, told, 0.0), event_dim=0)
            certain = CERTAIN * (self.one_hot(y) - 1)
            q = dist.Categorical(logits=torch.where(known.unsqueeze(-1), certain, q.logits))
        return pyro.sample("y", q, infer={"enumerate": "parallel"})
