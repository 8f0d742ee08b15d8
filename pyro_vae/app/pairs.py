"""The Pyro pair of a VAE whose latents all belong to a datum."""

from __future__ import annotations

from collections.abc import Callable

import inference
from pyro_vae.networks.bayesian_mlp import SITE
from pyro_vae.vae import VAE


def local_pair(vae: VAE) -> tuple[Callable, Callable]:
    """Model and guide; of a Bayesian decoder, given its weights at the guide's means of them."""
    pair = vae.model, vae.guide
    if not vae.bayesian:
        return pair
    return inference.given_globals(*pair, {SITE: vae.decoder.loc.detach()})
