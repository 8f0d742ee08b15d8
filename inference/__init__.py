"""Training and evidence for any Pyro (model, guide) pair. Knows nothing of autoencoders."""

from inference.checkpoint import read_history
from inference.diagnostics.calibration import Calibration, calibration
from inference.diagnostics.gaps import Gaps, gaps
from inference.diagnostics.latent_usage import ActiveUnits, active_units
from inference.diagnostics.local_guide import LocalGuide
from inference.diagnostics.reference import Reference, reference
from inference.diagnostics.renyi import VariationalBounds, variational_bounds
from inference.diagnostics.surgery import Surgery, surgery
from inference.diagnostics.unit_kl import UnitKL, unit_kl
from inference.engines.choice import ENGINES
from inference.errors import (
    CheckpointError,
    CompilationError,
    EngineWarning,
    InferenceError,
    NonFiniteError,
    PairError,
    RequestError,
    Untraceable,
)
from inference.evidence.ais import AIS
from inference.evidence.auto import Auto, AutoEstimate
from inference.evidence.bound import Bound, bound
from inference.evidence.comparison import Comparison
from inference.evidence.enumerate import Enumerate
from inference.evidence.estimate import Estimate
from inference.evidence.importance import Importance
from inference.evidence.loading import load_estimate
from inference.evidence.marginal import ESTIMATORS, log_marginal
from inference.evidence.predictive import PredictiveEstimate, log_predictive
from inference.evidence.quadrature import Quadrature
from inference.evidence.sandwich import Sandwich
from inference.evidence.smc import SMC
from inference.evidence.smoothing import pareto_khat
from inference.export import to_arviz
from inference.fit import FitResult, fit
from inference.global_draws import given_globals, global_draws
from inference.kl import analytic_kl
from inference.log_weights import log_weights
from inference.objectives.base import OBJECTIVES, Objective
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
from inference.optimizer import SingleOptimizer
from inference.record import LogWeights
from inference.schedules import SCHEDULES, Constant, Cosine, Exponential, Step
from inference.tracing import Traced, trace

__all__ = [
    "AIS",
    "ELBO",
    "ENGINES",
    "ESTIMATORS",
    "IWAE",
    "M2",
    "OBJECTIVES",
    "SCHEDULES",
    "SMC",
    "STL",
    "ActiveUnits",
    "Auto",
    "AutoEstimate",
    "BetaELBO",
    "Bound",
    "Calibration",
    "CheckpointError",
    "Comparison",
    "CompilationError",
    "Constant",
    "Cosine",
    "DReG",
    "EngineWarning",
    "Enumerate",
    "Estimate",
    "Exponential",
    "FitResult",
    "FreeBits",
    "Gaps",
    "Importance",
    "InferenceError",
    "InfoVAE",
    "LocalGuide",
    "LogWeights",
    "NonFiniteError",
    "Objective",
    "PairError",
    "PredictiveEstimate",
    "Quadrature",
    "Reconstruction",
    "Reference",
    "Renyi",
    "RequestError",
    "ReweightedWakeSleep",
    "Sandwich",
    "SingleOptimizer",
    "Step",
    "Surgery",
    "Thermodynamic",
    "TotalCorrelation",
    "Traced",
    "UnitKL",
    "Untraceable",
    "VariationalBounds",
    "active_units",
    "analytic_kl",
    "bound",
    "calibration",
    "fit",
    "gaps",
    "given_globals",
    "global_draws",
    "load_estimate",
    "log_marginal",
    "log_predictive",
    "log_weights",
    "pareto_khat",
    "read_history",
    "reference",
    "surgery",
    "to_arviz",
    "trace",
    "unit_kl",
    "variational_bounds",
]
