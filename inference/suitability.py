"""Does an objective suit a pair? Asked once, before anything is trained or recorded."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from inference.errors import InferenceError, PairError, Untraceable
from inference.isolation import own_randomness, validation
from inference.objectives.base import Objective
from inference.pair import Pair
from inference.particles import record_of
from inference.record import LogWeights
from inference.stopped import FixedDraws, Scoring
from inference.supports import family_of

# Beyond rounding, and the inverse of a flow.
TOLERANCE = 1e-3


def check_objective(
    pair: Pair, objective: Objective, arguments: tuple[Tensor, ...], modules: Sequence[nn.Module]
) -> None:
    """Refuse an objective that a pair has no gradients, densities or terms for.

    To be asked in the mode that modules will be in, for their noise (dropout) may be what does not
    fit; their buffers end as they were. What Pyro's own estimator takes is left to it.
    Raises: `PairError`, in a sentence that names the site and what fits.
    """
    objective.check(pair)
    if objective.pyro_loss(vectorize=False, max_plate_nesting=1) and not pair.enumerated:
        return
    buffers = [(b, b.detach().clone()) for module in modules for b in module.buffers()]
    try:
        with own_randomness(0), validation(False), torch.enable_grad():
            _check(pair, objective, arguments)
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _check(pair: Pair, objective: Objective, arguments: tuple[Tensor, ...]) -> None:
    def record(scoring: Scoring) -> LogWeights:
        particles = min(2, objective.num_particles)
        return record_of(pair, arguments, particles, vectorize=False, scoring=scoring)

    try:
        found = record(objective.scoring)
        held = None
        if objective.scoring == "stopped":
            with FixedDraws():
                held = record("stopped")
    except InferenceError:
        raise
    except Exception as error:
        if objective.scoring == "paths":
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise PairError(
            f"objective '{objective.name}' asks the guide's density of its draws a second time, "
            f"which fails ({said}): is it known at its own samples only? Train by 'elbo' or 'iwae'"
        ) from error
    if objective.scoring != "fixed draws":
        try:
            check_gradients(found, pair)
        except Untraceable as error:
            raise PairError(
                f"objective '{objective.name}' differentiates draws, but {error}; train by "
                "'reweighted_wake_sleep' or 'thermodynamic', which do not, by 'elbo' in the eager "
                "engine, or mark a discrete site for enumeration (infer={'enumerate': 'parallel'})"
            ) from None
    if found.entangled and objective.weighs_kl:
        latent, observed = found.entangled[0]
        raise PairError(
            f"sites '{latent}' and '{observed}' depend on the same enumerated values, over which "
            f"the model sums log p({latent}) and log p({observed}|...) together, so objective "
            f"'{objective.name}' cannot weigh the KL term of the first alone (warm-up, too, weighs "
            "it); train without warm-up by 'elbo', or enumerate in the guide, too"
        )
    if held is not None:
        _check_stopped(found, held)
    objective.loss(found, 1.0, len(arguments[0]))


def _check_stopped(record: LogWeights, held: LogWeights) -> None:
    """Is log q the same when it is scored again, and free of the guide's parameters?

    `held`: a record whose draws are fixed, so that only parameters could have a gradient.
    """
    drawn = record.latents.keys() | record.auxiliary.keys()
    for name, score in record.log_q.items():
        again = record.log_q_stopped[name]
        if not torch.allclose(score, again, rtol=TOLERANCE, atol=TOLERANCE):
            raise PairError(
                f"site '{name}' of the guide: the same draws have another log-density when they "
                "are scored again; make its noise a sample site, leave dropout out of the guide, "
                "or train by 'elbo' or 'iwae', which score them once"
            )
        if name in drawn and held.log_q_stopped[name].requires_grad:
            raise PairError(
                f"site '{name}' of the guide: its log-density depends on parameters that cannot be "
                "held still (compiled code, an autograd function of its own); train by 'elbo' or "
                "'iwae', which need not"
            )


def check_gradients(record: LogWeights, pair: Pair) -> None:
    """Refuse latents whose gradient is not that of a path through their draws."""
    for name, fn in record.guide_fn.items():
        if getattr(fn, "has_rsample", False) or name in pair.enumerated:
            continue
        latent = name in record.latents or name in record.auxiliary
        if not latent and name in record.log_q:
            raise Untraceable(
                f"factor '{name}' of the guide is taken for a score function: say "
                "has_rsample=True if its draws are reparametrized"
            )
        if latent:
            raise Untraceable(
                f"site '{name}' draws from {family_of(fn)}, which has no reparametrized "
                "sample: its gradient is a score function"
            )
