"""log p and log q of one pass over any pair, per particle and datum."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from inference.errors import PairError
from inference.isolation import modes, modules_of, own_store
from inference.pair import Pair, as_arguments, examine
from inference.particles import Scorer, every_row
from inference.record import LogWeights
from inference.rows import check_rows


def log_weights(
    model: Callable,
    guide: Callable,
    *arguments: Tensor,
    num_particles: int = 1,
    plate: str | None = "data",
) -> LogWeights:
    """Draw `num_particles` latents per datum from the guide and score them under both programs.

        log w_nk = log p(x_n, z_nk) - log q(z_nk | x_n),   z_nk ~ q(z|x_n)

    Args:
        model, guide: any Pyro pair whose per-datum sites stand in a plate as long as the batch.
        arguments: tensors `[N, ...]`.
        num_particles: K.
        plate: name of the data plate, or None for one joint weight per particle.
    Returns: a `LogWeights` record; it carries gradients unless under `torch.no_grad()`.
    Raises: `PairError` if the pair's sites, shapes, supports, masks or plates do not fit, or if the
        log-density of a datum changes with the data beside it.
    """
    arguments = as_arguments(arguments)
    with own_store(share=True):
        with modes(modules_of(model, guide), training=False):  # a look leaves no statistics
            pair = evidence_pair(examine(model, guide, arguments, plate))
            check_rows(pair, arguments, split=False)
            scorer = Scorer(pair, arguments)
        subset = None
        if pair.subsampling == "own":
            subset = every_row(pair, arguments)
        return scorer(arguments, num_particles, subset, check=True)


def evidence_pair(pair: Pair) -> Pair:
    """The pair, if log p(x) per datum is a question it can answer.

    Sites that are marked for enumeration are summed over where the model alone has them; where the
    guide has them, too, they are drawn like all others.
    Raises: `PairError`.
    """
    if pair.scaled_sites:
        raise PairError(
            f"site '{pair.scaled_sites[0]}' is scaled by poutine.scale; the evidence of a scaled "
            "density is not defined: remove the scale for this call"
        )
    if pair.refusals:
        raise PairError(pair.refusals[0])
    if pair.plate is not None and pair.global_sites:
        raise PairError(
            f"site '{pair.global_sites[0]}' stands outside plate '{pair.plate}', so log p(x) does "
            "not split by datum; ask for one joint evidence with plate=None, or for "
            "log p(x | global draws) with inference.log_predictive"
        )
    return pair.drawing()
