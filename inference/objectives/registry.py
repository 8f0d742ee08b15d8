"""Every objective by its name."""

from __future__ import annotations

from inference.objectives.base import Objective
from inference.objectives.beta_elbo import BetaELBO
from inference.objectives.dreg import DReG
from inference.objectives.elbo import ELBO
from inference.objectives.free_bits import FreeBits
from inference.objectives.info_vae import InfoVAE
from inference.objectives.iwae import IWAE
from inference.objectives.m2 import M2
from inference.objectives.reconstruction import Reconstruction
from inference.objectives.renyi import Renyi
from inference.objectives.reweighted_wake_sleep import ReweightedWakeSleep
from inference.objectives.stl import STL
from inference.objectives.thermodynamic import Thermodynamic
from inference.objectives.total_correlation import TotalCorrelation

OBJECTIVES: dict[str, type[Objective]] = {
    "elbo": ELBO,
    "iwae": IWAE,
    "dreg": DReG,
    "stl": STL,
    "renyi": Renyi,
    "beta_elbo": BetaELBO,
    "free_bits": FreeBits,
    "info_vae": InfoVAE,
    "total_correlation": TotalCorrelation,
    "reweighted_wake_sleep": ReweightedWakeSleep,
    "thermodynamic": Thermodynamic,
    "m2": M2,
    "reconstruction": Reconstruction,
}
