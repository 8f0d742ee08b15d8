"""Discrete sites summed over instead of sampled (`infer={"enumerate": "parallel"}`).

Pyro's `EnumMessenger` gives each such site a dimension of its own, to the left of all plates, that
holds every value of its support. Here these dimensions are summed out of the sites' log-densities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from inference.errors import PairError

Scores = dict[str, Tensor]


def is_marked(site) -> bool:
    return not site["is_observed"] and site["infer"].get("enumerate") == "parallel"


def check_marked(sites: Mapping, plate: str | None) -> tuple[str, ...]:
    """The names of sites to enumerate. Raises: `PairError` where that is not possible."""
    found = tuple(name for name, site in sites.items() if is_marked(site))
    for name in found:
        fn = sites[name]["fn"]
        if not fn.has_enumerate_support:
            raise PairError(
                f"site '{name}' is marked for enumeration, but {type(fn).__name__} has no finite "
                "support; sample it in the guide"
            )
        plates = {f.name for f in sites[name]["cond_indep_stack"]}
        if plate is None or plates != {plate}:
            raise PairError(
                f"site '{name}' is marked for enumeration in plates {sorted(plates)}; sites are "
                f"enumerated one value per datum, in plate '{plate}' alone"
            )
    return found


def aligned(scores: Scores, kept: int, count: int) -> Scores:
    """Every score with `count` enumerated dimensions in front of its `kept` last ones."""
    return {
        name: score.reshape((1,) * (count + kept - score.dim()) + tuple(score.shape))
        for name, score in scores.items()
    }


def sum_out(
    log_p: Scores,
    log_q: Scores,
    in_model: Mapping[str, int],
    in_guide: Mapping[str, int],
    observed: tuple[str, ...],
) -> tuple[Scores, Scores]:
    """Scores without enumerated dimensions.

    Sites of the model alone are marginalized exactly: with e their values,

        log p(x|z) + log p(z) = log sum_e exp(all terms that depend on e),

    one term under the name of an observed site among them, or else of the first. Over values c of
    the guide's enumerated sites every term t is averaged, sum_c q(c|x) t(c), which is what the
    ELBO asks for. `in_model`, `in_guide`: each enumerated site's dimension, from the front.
    """
    if in_model:
        dims = tuple(in_model.values())
        group = [n for n, t in log_p.items() if any(t.shape[d] > 1 for d in dims)]
        group += [n for n in in_model if n not in group]
        joint = torch.stack(torch.broadcast_tensors(*(log_p[n] for n in group))).sum(0)
        name = next((n for n in group if n in observed), group[0])
        marginal = torch.logsumexp(joint, dims, keepdim=True)
        log_p = {n: t for n, t in log_p.items() if n not in group} | {name: marginal}
    if in_guide:
        dims = tuple(in_guide.values())
        log_weight = torch.stack(torch.broadcast_tensors(*(log_q[n] for n in in_guide))).sum(0)
        weight = log_weight.exp()

        def mean(term: Tensor) -> Tensor:
            if all(term.shape[d] == 1 for d in dims):
                return term
            # A value of probability 0 counts for nothing, be its density 0, too.
            safe = torch.where(log_weight > -math.inf, term, 0.0)
            return (weight * safe).sum(dims, keepdim=True)

        log_p = {n: mean(t) for n, t in log_p.items()}
        log_q = {n: mean(t) for n, t in log_q.items()}
    return log_p, log_q
