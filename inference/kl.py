"""KL(q || p) in closed form, where one exists."""

from __future__ import annotations

import torch
from pyro.distributions import MultivariateNormal, Normal
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from inference.record import LogWeights
from inference.supports import is_point


def analytic_kl(q, p) -> Tensor | None:
    """KL(q || p) in nats with the distributions' batch shape, or None where no form is known.

    Point masses have none. Knows what torch and Pyro know, and full-covariance against diagonal
    Gaussians:
    KL = 1/2 [ tr(P^-1 S) + (m_p - m_q)' P^-1 (m_p - m_q) - L + ln |P| - ln |S| ].
    """
    if is_point(q):
        return None  # Pyro's form leaves out the point's log_density
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        pass
    full_q, full_p = _as_multivariate(q), _as_multivariate(p)
    if full_q is None or full_p is None:
        return None
    return kl_divergence(full_q, full_p)


def site_kl(record: LogWeights, name: str) -> Tensor | None:
    """KL of one site with the site's batch shape, if both densities are known in closed form.

    Given every value of enumerated sites that it depends on.

    The closed form integrates over z_i with all else fixed, so what p(z_i|.) depends on must not
    depend on z_i: its predecessors in the model must come before it in the guide, too.
    """
    q, p = record.guide_fn[name], record.model_fn.get(name)
    if p is None:
        return None
    model_order, guide_order = list(record.model_fn), list(record.guide_fn)
    earlier = set(model_order[: model_order.index(name)]) - set(record.observed)
    if not earlier <= set(guide_order[: guide_order.index(name)]):
        return None
    if q.event_shape != p.event_shape:
        return None
    if q.batch_shape != p.batch_shape:
        if record.expected is None:
            return None
        # One of them, or both, for each of the values that others are summed over.
        shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
        q, p = q.expand(shape), p.expand(shape)
    return analytic_kl(q, p)


def _as_multivariate(fn):
    if isinstance(fn, torch.distributions.MultivariateNormal):
        return fn
    if (
        isinstance(fn, Independent)
        and fn.reinterpreted_batch_ndims == 1
        and isinstance(fn.base_dist, Normal | torch.distributions.Normal)
    ):
        base = fn.base_dist
        tril = torch.diag_embed(base.scale)
        return MultivariateNormal(base.loc, scale_tril=tril, validate_args=False)
    return None
