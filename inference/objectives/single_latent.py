"""The one latent site of a pair whose draws of different data are compared."""

from __future__ import annotations

from inference.errors import PairError
from inference.objectives.kl_terms import in_plate
from inference.record import LogWeights


def single_latent(record: LogWeights, what: str) -> str:
    """The name of the latent that stands alone in the data plate.

    `what`: the objective's name. Raises: `PairError` where others stand beside it, for then the
    distributions of a record are those given the others' draws.
    """
    drawn = [*record.latents, *record.auxiliary]
    part = record.draws[0]
    assert part.dimensions is not None
    if len(drawn) != 1:
        raise PairError(
            f"objective '{what}' compares draws of one latent site over all data, but this pair "
            f"draws {', '.join(drawn) or 'none'}; train by objective 'elbo' or 'free_bits'"
        )
    (name,) = drawn
    if name not in part.log_q or not in_plate(record, name) or part.dimensions.plates != 1:
        raise PairError(
            f"objective '{what}' compares draws of site '{name}' over data, which takes one value "
            "a datum, in the data plate alone; train by objective 'elbo'"
        )
    return name
