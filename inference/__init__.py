"""Training and evidence for any Pyro (model, guide) pair. Knows nothing of autoencoders."""

from inference.checkpoint import read_history
from inference.diagnostics.latent_usage import ActiveUnits, active_units
from inference.errors import (
    CheckpointError,
    InferenceError,
    NonFiniteError,
    PairError,
    RequestError,
)
from inference.evidence.bound import Bound, bound
from inference.evidence.estimate import Estimate
from inference.evidence.importance import Importance, log_marginal
from inference.evidence.smoothing import pareto_khat
from inference.fit import FitResult, fit
from inference.kl import analytic_kl
from inference.log_weights import LogWeights, log_weights
from inference.objectives.elbo import ELBO, OBJECTIVES
from inference.optimizer import SingleOptimizer
from inference.schedules import SCHEDULES, Constant, Cosine, Exponential, Step

# The named values of this family, as SCHEDULES and OBJECTIVES are of theirs.
ESTIMATORS = {"importance": Importance}

__all__ = [
    "ELBO",
    "ESTIMATORS",
    "OBJECTIVES",
    "SCHEDULES",
    "ActiveUnits",
    "Bound",
    "CheckpointError",
    "Constant",
    "Cosine",
    "Estimate",
    "Exponential",
    "FitResult",
    "Importance",
    "InferenceError",
    "LogWeights",
    "NonFiniteError",
    "PairError",
    "RequestError",
    "SingleOptimizer",
    "Step",
    "active_units",
    "analytic_kl",
    "bound",
    "fit",
    "log_marginal",
    "log_weights",
    "pareto_khat",
    "read_history",
]
