"""Which site of which datum is to blame for a log-weight that is no number."""

from __future__ import annotations

import math

from torch import Tensor

from inference.record import LogWeights


def first_wrong(log_weight: Tensor) -> int | None:
    """The first datum of `[K, data]` with a log-weight that is NaN or +inf; None without one."""
    wrong = ~(log_weight < math.inf).reshape(len(log_weight), -1)
    return int(wrong.any(0).nonzero()[0]) if bool(wrong.any()) else None


def blame(record: LogWeights, where: int, first: int = 0) -> str:
    """What makes the log-weight of a record's datum NaN or infinite, in a sentence.

    Args:
        where: the datum's place in the record.
        first: the index of the record's first datum.
    """
    for part, scores in (("guide", record.log_q), ("model", record.log_p)):
        worst = -math.inf if part == "guide" else math.inf
        for name, value in scores.items():
            column = value.reshape(len(value), -1)[:, where]
            if bool((column.isnan() | (column == worst)).any()):
                kind = "a NaN" if bool(column.isnan().any()) else f"an infinite ({worst})"
                return (
                    f"log w of datum {first + where} is NaN or infinite: site '{name}' of the "
                    f"{part} has {kind} log-density; check its parameters"
                )
    log_weight = record.log_weight.reshape(len(record.log_weight), -1)[:, where]
    if bool((log_weight < math.inf).all()):
        return (
            f"log w of datum {first + where} is NaN or infinite, though no site's log-density is: "
            "a draw lies at the very edge of its support, or too far away for the arithmetic; use "
            "estimator='importance', or precision='float64'"
        )
    return f"log w of datum {first + where} is NaN: infinite log-densities cancel"
