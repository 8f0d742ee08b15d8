"""Does the log-density of a datum hang on the data beside it? Then log p(x) has no share for each.

A mean over the rows at hand does that, or a BatchNorm in training mode: results would change with
the tile that a datum is scored in.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from inference.errors import PairError
from inference.isolation import modules_of, own_randomness, validation
from inference.pair import Pair
from inference.particles import Given, record_of
from inference.precision import cast, in_dtype, switches
from inference.record import LogWeights
from inference.supports import is_point

SPREAD = 7  # rows from all over the data that are scored together
MANY_ULP = 200  # what another number of rows may change in a network by rounding
MANY_INVERSE = 10  # the same for a guide whose inverse misses its draws
NEGLIGIBLE = 1e-3  # nats

Data = tuple[Tensor, ...]


class Rows(NamedTuple):
    """Data that are scored together, and some of them beside fewer or others."""

    first: list[int]
    second: list[int]


class Difference(NamedTuple):
    """A site's log-density of one datum, among the first and among the second rows."""

    program: str
    site: str
    datum: int
    before: float
    after: float


def check_rows(pair: Pair, arguments: Data, *, split: bool) -> None:
    """See that a few data score the same beside others, at the same latents.

    `split`: whether data are scored in parts, so that a datum's place changes, too. What cannot be
    told is let through: a pair that runs on all of its data only, or that draws as it scores.
    Raises: `PairError` naming the site.
    """
    rows = rows_of(pair, len(arguments[0]), split)
    if rows is None:
        return
    full = switches("float32", arguments[0].device)  # TF32 would round few rows in another way
    with own_randomness(0), validation(False), torch.no_grad(), full:
        try:
            found = _difference(pair, arguments, rows)
        except Exception:  # a pair that does not take these rows: scoring all of them tells why
            return
        if found is not None and _is_rounding(pair, arguments, rows):
            return
    if found is not None:
        raise PairError(
            f"site '{found.site}' of the {found.program}: its log-density of a datum (row "
            f"{found.datum}) changes with the rows beside it, from {found.before:.6g} to "
            f"{found.after:.6g} nats at the same latents, so log p(x) does not split by datum; "
            "compute what takes several rows (a mean, a standard deviation) once, outside of the "
            "pair, and call module.eval() on a BatchNorm in training mode"
        )


def rows_of(pair: Pair, num_data: int, split: bool) -> Rows | None:
    """Which rows to compare; None if there is nothing to."""
    if pair.plate is None:
        return None
    if pair.subsampling == "own":
        size, half = pair.subsample_size, pair.subsample_size // 2
        others = range(num_data - size + half, num_data)
        return Rows(list(range(size)), [*others, *range(half)]) if half else None
    if pair.whole or num_data < 2:
        return None
    first = sorted({0, 1, *(i * (num_data - 1) // (SPREAD - 1) for i in range(SPREAD))})
    few = first[: min(3, len(first) - 1)]
    return Rows(first, [few[-1], *few[:-1]] if split else few)


def _is_rounding(pair: Pair, arguments: Data, rows: Rows) -> bool:
    """Whether float64 has no difference: a narrow density magnifies a network's rounding."""
    modules = modules_of(pair.model, pair.guide)
    try:
        with in_dtype(modules, "float64"):
            return _difference(pair, cast(arguments, "float64"), rows) is None
    except Exception:  # a pair that is float32 throughout: what was seen stands
        return False


def _difference(pair: Pair, arguments: Data, rows: Rows) -> Difference | None:
    drawn = _scored(pair, arguments, rows.first)

    def at_the_same(guide, those: list[int]) -> LogWeights:
        # Rows that nothing was drawn for take the latents of another.
        places = [rows.first.index(row) if row in rows.first else i for i, row in enumerate(those)]
        given = _given(replace(pair, guide=guide), drawn, places)
        return _scored(given, arguments, those)

    guide = pair.guide
    try:
        second = at_the_same(guide, rows.second)
    except Exception:  # its density is known at its own draws only: the model alone
        guide = _no_guide
        second = at_the_same(guide, rows.second)
    exact = torch.zeros(())
    if _compared(rows, drawn, second, exact) is None:
        return None
    # A guide's inverse may find back to its draws by and large only, and a pair may draw by itself.
    first, again = at_the_same(guide, rows.first), at_the_same(guide, rows.second)
    inverse = exact
    if first.log_q:
        inverse = (_total(drawn.log_q) - _total(first.log_q)).abs().nan_to_num()
    if _compared(rows._replace(first=rows.second), second, again, exact):
        return None
    return _compared(rows, first, second, MANY_INVERSE * inverse)


def _compared(
    rows: Rows, first: LogWeights, second: LogWeights, slack: Tensor
) -> Difference | None:
    """The first site that differs by more than rounding, if one does."""
    common = [row for row in rows.second if row in rows.first]
    places = [[part.index(row) for row in common] for part in (rows.first, rows.second)]
    close = NEGLIGIBLE + MANY_ULP * first.ulp[0] + slack
    for program, before, after in (
        ("guide", first.log_q, second.log_q),
        ("model", first.log_p, second.log_p),
    ):
        for name in (n for n in before if n in after):
            a, b = before[name][0][places[0]], after[name][0][places[1]]
            same = (a == b) | (a.isnan() & b.isnan()) | ((a - b).abs() <= close[places[0]])
            if not bool(same.all()):
                at = int((~same).nonzero()[0])
                return Difference(program, name, common[at], float(a[at]), float(b[at]))
    return None


def _scored(pair: Pair, arguments: Data, rows: list[int]) -> LogWeights:
    """One draw of each of these data. Raises: `ValueError` where there are more or fewer scores."""
    index = torch.tensor(rows, device=arguments[0].device)
    if pair.subsampling == "own":
        record = record_of(pair, arguments, 1, index, vectorize=False)
    else:
        record = record_of(pair, tuple(a[index] for a in arguments), 1, vectorize=False)
    for score in (*record.log_p.values(), *record.log_q.values(), record.ulp):
        if score.shape != (1, len(rows)):
            raise ValueError(f"a score of shape {tuple(score.shape)} for {len(rows)} data")
    return record


def _given(pair: Pair, drawn: LogWeights, places: list[int]) -> Pair:
    """Both programs at latents that were drawn, of data in these places."""
    values, free = {}, {}
    for name, value in {**drawn.latents, **drawn.auxiliary}.items():
        if name in pair.enumerated:  # all of its values at once
            continue
        fn = drawn.guide_fn[name]
        axis = pair.data_dim - fn.event_dim  # type: ignore[operator]
        values[name] = value[0].index_select(axis, torch.tensor(places, device=value.device))
        if not is_point(fn):  # points follow from the other draws
            free[name] = values[name]
    return replace(pair, model=Given(values)(pair.model), guide=Given(free)(pair.guide))


def _no_guide(*arguments: Tensor) -> None:
    """Leaves every site to the model."""


def _total(scores: dict[str, Tensor]) -> Tensor:
    return sum(scores.values())[0]  # type: ignore[return-value,index]
