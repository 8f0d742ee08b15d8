"""pyro-vae: variational autoencoders as Pyro programs, with a log p(x) that carries its error.

Names are loaded when first used, so that `pyro-vae --help` need not import torch.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_NAMES = {
    "VAE": "pyro_vae.vae",
    "VAESpec": "pyro_vae.spec",
    "Component": "pyro_vae.component",
    "Prior": "pyro_vae.priors.base",
    "Guide": "pyro_vae.guides.base",
    "Likelihood": "pyro_vae.likelihoods.base",
    "Network": "pyro_vae.networks.base",
    "Data": "pyro_vae.data.base",
    "Dataset": "pyro_vae.data.base",
    "Mixture": "pyro_vae.mixture",
    "ExperimentSpec": "pyro_vae.app.experiment",
    "load": "pyro_vae.app.run",
    "PyroVAEError": "pyro_vae.errors",
    "RequestError": "pyro_vae.errors",
    "SpecError": "pyro_vae.errors",
    "DataError": "pyro_vae.errors",
    "RunError": "pyro_vae.errors",
}
_PACKAGES = ("priors", "guides", "likelihoods", "networks", "data", "app")

__all__ = [*_NAMES, *_PACKAGES]

if TYPE_CHECKING:
    from pyro_vae.app.experiment import ExperimentSpec
    from pyro_vae.app.run import load
    from pyro_vae.component import Component
    from pyro_vae.data.base import Data, Dataset
    from pyro_vae.errors import DataError, PyroVAEError, RequestError, RunError, SpecError
    from pyro_vae.guides.base import Guide
    from pyro_vae.likelihoods.base import Likelihood
    from pyro_vae.mixture import Mixture
    from pyro_vae.networks.base import Network
    from pyro_vae.priors.base import Prior
    from pyro_vae.spec import VAESpec
    from pyro_vae.vae import VAE


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _PACKAGES:
        return importlib.import_module(f"pyro_vae.{name}")
    raise AttributeError(f"module 'pyro_vae' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


def _refuse_foreign_inference() -> None:
    """Another distribution also installs a package called `inference`."""
    found = importlib.util.find_spec("inference")
    origin = Path(found.origin).parent if found and found.origin else None
    if origin is None or not (origin / "log_weights.py").exists():
        raise ImportError(
            f"pyro-vae needs its own package 'inference', but Python finds {origin or 'none'}; if "
            "another distribution uses that name, uninstall it or use a fresh environment"
        )


_refuse_foreign_inference()
