"""Training and evidence for any Pyro (model, guide) pair. Knows nothing of autoencoders."""

from inference.checkpoint import read_history
from inference.diagnostics.latent_usage import ActiveUnits, active_units
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
from inference.evidence.bound import Bound, bound
from inference.evidence.enumerate import Enumerate
from inference.evidence.estimate import Estimate
from inference.evidence.importance import Importance
from inference.evidence.marginal import ESTIMATORS, log_marginal
from inference.evidence.quadrature import Quadrature
from inference.evidence.sandwich import Sandwich
from inference.evidence.smc import SMC
from inference.evidence.smoothing import pareto_khat
from inference.fit import FitResult, fit
from inference.kl import analytic_kl
from inference.log_weights import log_weights
from inference.objectives.elbo import ELBO, OBJECTIVES
from inference.optimizer import SingleOptimizer
from inference.record import LogWeights
from inference.schedules import SCHEDULES, Constant, Cosine, Exponential, Step
from inference.tracing import Traced, trace

__all__ = [
    "AIS",
    "ELBO",
    "ENGINES",
    "ESTIMATORS",
    "OBJECTIVES",
    "SCHEDULES",
    "SMC",
    "ActiveUnits",
    "Bound",
    "CheckpointError",
    "CompilationError",
    "Constant",
    "Cosine",
    "EngineWarning",
    "Enumerate",
    "Estimate",
    "Exponential",
    "FitResult",
    "Importance",
    "InferenceError",
    "LogWeights",
    "NonFiniteError",
    "PairError",
    "Quadrature",
    "RequestError",
    "Sandwich",
    "SingleOptimizer",
    "Step",
    "Traced",
    "Untraceable",
    "active_units",
    "analytic_kl",
    "bound",
    "fit",
    "log_marginal",
    "log_weights",
    "pareto_khat",
    "read_history",
    "trace",
]
