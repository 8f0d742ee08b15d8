"""Log-weights that stream by in pieces give what the whole matrix gives, at all edges."""

from __future__ import annotations

import math

import pytest
import torch

from inference.evidence import streaming
from inference.evidence.smoothing import pareto_fit, pareto_khat, tail_length

NAN, INF = math.nan, math.inf


def direct(log_weight, rounding):
    """Each column by its definition, from the whole matrix `[N, K]`."""
    num_samples = log_weight.shape[1]
    log_total = log_weight.logsumexp(1)
    shares = log_weight.softmax(1)
    ess = 1 / shares.square().sum(1)
    constant = log_weight.amax(1) - log_weight.amin(1) <= rounding
    std_error = (1 / ess - 1 / num_samples).clamp_min(0).sqrt()
    if num_samples == 1:
        std_error[:] = NAN
    else:
        std_error[constant] = 0.0
    value = log_total - math.log(num_samples)
    none = log_total == -INF
    khat = pareto_khat(log_weight, resolution=rounding)
    return {
        "value": value,
        "std_error": std_error,
        "ess": ess,
        "khat": khat,
        "elbo": log_weight.mean(1),
        "half": of_halves(log_weight),
        "delta": torch.where(none, value, value + std_error.square() / 2),
        "jackknife": torch.where(none | constant & (num_samples > 1), value, left_out(log_weight)),
        "psis": smoothed(log_weight, khat, constant),
    }


def of_halves(log_weight):
    num_samples = log_weight.shape[1]
    if num_samples == 1:
        return torch.full_like(log_weight[:, 0], NAN)
    halves = log_weight[:, : num_samples // 2], log_weight[:, num_samples // 2 :]
    return sum(half.logsumexp(1) - math.log(half.shape[1]) for half in halves) / 2


def left_out(log_weight):
    """K log p^ - (K-1)/K sum_k log p^_(-k)."""
    num_samples = log_weight.shape[1]
    if num_samples == 1:
        return torch.full_like(log_weight[:, 0], NAN)
    if num_samples <= 400:
        gone = torch.eye(num_samples, dtype=torch.bool)
        without = torch.stack([row.masked_fill(gone, -INF).logsumexp(1) for row in log_weight])
    else:
        shares = log_weight.softmax(1)
        without = log_weight.logsumexp(1, keepdim=True) + torch.log1p(-shares)
    without = (without - math.log(num_samples - 1)).mean(1)
    value = log_weight.logsumexp(1) - math.log(num_samples)
    return num_samples * value - (num_samples - 1) * without


def smoothed(log_weight, khat, constant):
    """The log mean weight with fitted order statistics for a tail, row by row."""
    num_samples = log_weight.shape[1]
    found = []
    for row, k, same in zip(log_weight, khat.tolist(), constant.tolist(), strict=True):
        row = row.sort().values
        if math.isfinite(k) and not same:
            weight = (row - row[-1]).exp()
            cutoff = weight[-tail_length(num_samples) - 1]
            tail = weight[weight > cutoff]
            _, scale = pareto_fit((tail - cutoff)[None])
            p = (torch.arange(len(tail)) + 0.5).double() / len(tail)
            tail = (cutoff + scale * ((1 - p) ** -k - 1) / k).clamp_max(1.0)
            row = torch.cat([row[: num_samples - len(tail)], tail.log() + row[-1]])
        found.append(row.logsumexp(0) - math.log(num_samples))
    return torch.stack(found)


def streamed(log_weight, rounding, sizes, update=streaming.update):
    state = streaming.init(*log_weight.shape)
    for piece in log_weight.split(sizes, 1):
        state = update(state, piece, rounding)
    return streaming.finish(state)


NATS = ("value", "elbo", "half", "delta", "psis")


def agree(found, expected, but=()) -> bool:
    """1e-10 nats, 1e-8 by a series, and 1e-12 of what is no logarithm."""
    assert set(found) == set(expected)
    limits = {name: {"atol": 0.0, "rtol": 1e-12} for name in expected}
    limits |= {name: {"atol": 1e-10, "rtol": 0.0} for name in NATS}
    limits["jackknife"] = {"atol": 1e-8, "rtol": 0.0}
    return all(
        found[name].dtype == torch.float64
        and torch.allclose(found[name], expected[name], equal_nan=True, **limits[name])
        for name in expected
        if name not in but
    )


def columns(size, num_samples):
    """Sizes of pieces."""
    if size == "ragged":
        sizes, left = [], num_samples
        for width in (1, 7, 2, 60, 1, 500, 13):
            if left > width:
                sizes.append(width)
                left -= width
        return [*sizes, left]
    return min(size, num_samples)


def rows(name, K):
    """Log-weights `[N, K]`, nasty ones among them."""
    g = torch.Generator().manual_seed(0)
    noise = torch.randn(6, K, generator=g, dtype=torch.float64)
    return {
        "normal": noise,
        "far from zero": 3 * noise - 750,
        "very wide": 300 * noise,  # the peak jumps by more than the range of a float64
        "ascending": (5 * noise - 1e4).sort(1).values,  # it grows in every piece
        "descending": (5 * noise + 1e4).sort(1, descending=True).values,
        "ties": (3 * noise).round(),
        "zero weights": torch.where(noise > 0.3, -INF, noise - 80),
        "no weight but one": torch.where(torch.arange(K) == K // 2, noise - 700, -INF),
        "no weight": torch.full((2, K), -INF, dtype=torch.float64),
        "constant": torch.tensor([0.0, -740.3, 1e4]).double()[:, None].expand(3, K).clone(),
    }[name]


NASTY = (
    "normal",
    "far from zero",
    "very wide",
    "ascending",
    "descending",
    "ties",
    "zero weights",
    "no weight but one",
    "no weight",
    "constant",
)


@pytest.mark.parametrize("size", [1, 17, "ragged", 10_000])
@pytest.mark.parametrize("K", [1, 2, 20, 21, 400])
@pytest.mark.parametrize("name", NASTY)
def test_pieces_give_what_the_whole_gives(name, K, size):
    log_weight = rows(name, K)
    rounding = torch.zeros(len(log_weight), dtype=torch.float64)
    expected = direct(log_weight, rounding)
    assert agree(streamed(log_weight, rounding, columns(size, K)), expected)
    order = torch.randperm(K, generator=torch.Generator().manual_seed(0))
    shuffled = streamed(log_weight[:, order], rounding, columns(size, K))
    assert agree(shuffled, expected, but=["half"])  # which halves differ then
    assert agree(shuffled, direct(log_weight[:, order], rounding))


def test_many_pieces_lose_nothing():
    log_weight = 3 * torch.randn(2, 100_000, dtype=torch.float64) - 90
    rounding = torch.zeros(2, dtype=torch.float64)
    assert agree(streamed(log_weight, rounding, 999), direct(log_weight, rounding))


def unscaled(state, piece, rounding):
    """Wrong: sums of other peaks are added as they are."""
    new = streaming.update(state, piece, rounding)
    part = streaming.update(streaming.init(*piece.shape), piece, rounding)
    return new._replace(powers=state.powers + part.powers)


def scaled_once(state, piece, rounding):
    """Wrong: squares are rescaled as sums are."""
    new = streaming.update(state, piece, rounding)
    shrink = (state.peaks - new.peaks).exp().nan_to_num(0)
    powers = new.powers.clone()
    powers[..., 1] += state.powers[..., 1] * (shrink - shrink.square())
    return new._replace(powers=powers)


def last_tail(state, piece, rounding):
    """Wrong: the tail of the last piece alone."""
    new = streaming.update(state, piece, rounding)
    nothing = streaming.init(len(piece), state.num_samples)
    alone = streaming.update(nothing, piece, rounding)
    return new._replace(tail=alone.tail)


def last_lowest(state, piece, rounding):
    """Wrong: the smallest of the last piece."""
    return streaming.update(state, piece, rounding)._replace(lowest=piece.amin(1))


def one_half(state, piece, rounding):
    """Wrong: all samples are of the first half."""
    return streaming.update(state, piece, rounding)._replace(seen=state.seen)


@pytest.mark.parametrize("wrong", [unscaled, scaled_once, last_tail, one_half])
def test_wrong_updates_are_caught(wrong):
    log_weight = rows("far from zero", 400)
    rounding = torch.zeros(len(log_weight), dtype=torch.float64)
    expected = direct(log_weight, rounding)
    assert agree(streamed(log_weight, rounding, 100), expected)
    assert not agree(streamed(log_weight, rounding, 100, update=wrong), expected)


def test_pieces_constant_in_themselves_are_not_constant():
    log_weight = torch.tensor([[-3.0] * 50 + [-2.0] * 50], dtype=torch.float64)
    rounding = torch.zeros(1, dtype=torch.float64)
    expected = direct(log_weight, rounding)
    assert float(expected["std_error"]) > 0
    assert agree(streamed(log_weight, rounding, 50), expected)
    assert not agree(streamed(log_weight, rounding, 50, update=last_lowest), expected)


def test_the_worst_rounding_of_all_pieces_counts():
    log_weight = -80 + 1e-6 * torch.randn(4, 200, dtype=torch.float64)
    early, late = torch.tensor([[1e-4, 1e-9, 0.0, 1.0], [1e-9, 1e-4, 0.0, 0.0]]).double()
    state = streaming.init(4, 200)
    for piece, rounding in zip(log_weight.split(100, 1), (early, late), strict=True):
        state = streaming.update(state, piece, rounding)
    found = streaming.finish(state)
    assert state.rounding.tolist() == torch.maximum(early, late).tolist()
    # Beyond the cap, nothing is called constant.
    assert (found["khat"] == -INF).tolist() == [True, True, False, False]
    assert (found["std_error"] == 0).tolist() == [True, True, False, False]


@pytest.mark.parametrize("K", [1, 20, 21, 200, 5000, 100_000])
def test_a_state_is_small(K):
    state = streaming.init(3, K)
    assert state.tail.shape == (3, streaming.num_kept(K))
    assert state.tail.shape[1] <= max(128, 3 * math.sqrt(K) + 2)
    assert state.tail.shape[1] >= min(K, 128)
    if K >= 2000:
        assert state.tail.shape[1] == tail_length(K) + 1
    piece = torch.randn(3, K, dtype=torch.float64)
    after = streaming.update(state, piece, torch.zeros(3, dtype=torch.float64))
    assert [t.shape for t in after[1:]] == [t.shape for t in state[1:]]
    # Nothing keeps a piece alive.
    held = {t.untyped_storage().data_ptr() for t in after[1:] if t.numel()}
    assert piece.untyped_storage().data_ptr() not in held
    held = sum(t.untyped_storage().nbytes() for t in after[1:])
    assert held <= 3 * 8 * (streaming.num_kept(K) + 14)


def test_an_update_leaves_its_state_alone():
    log_weight = rows("normal", 100)
    rounding = torch.zeros(len(log_weight), dtype=torch.float64)
    state = streaming.update(streaming.init(6, 100), log_weight[:, :50], rounding)
    before = [t.clone() for t in state[1:]]
    streaming.update(state, 10 + log_weight[:, 50:], 1 + rounding)
    assert all(torch.equal(a, b) for a, b in zip(before, state[1:], strict=True))


def test_a_state_is_filled_part_by_part_in_place():
    log_weight = rows("far from zero", 400)
    rounding = torch.zeros(len(log_weight), dtype=torch.float64)
    state = streaming.init(len(log_weight) + 2, 400)
    held = [tensor.data_ptr() for tensor in state[1:]]
    assert len(set(held)) == len(held)
    for start, stop in ((4, 6), (0, 4)):
        for columns in (slice(150), slice(150, None)):
            old = streaming.part(state, start, stop)
            piece = log_weight[start:stop, columns]
            streaming.keep(old, streaming.update(old, piece, rounding[start:stop]))
    assert held == [tensor.data_ptr() for tensor in state[1:]]
    assert agree(streaming.finish(streaming.part(state, 0, 6)), direct(log_weight, rounding))
    nested = streaming.part((400, state), 1, 3)  # a state within another
    assert nested[0] == 400
    assert torch.equal(nested[1].tail, state.tail[1:3])
    assert bool((state.peak[6:] == -math.inf).all())


# Edges, by hand ----------------------------------------------------------------------------


def summary(*rows) -> dict[str, torch.Tensor]:
    log_weight = torch.tensor(rows, dtype=torch.float64)
    return streamed(log_weight, torch.zeros(len(rows), dtype=torch.float64), 1)


def test_one_sample_has_no_error():
    found = summary([-3.0])
    assert found["value"].tolist() == [-3.0]
    assert math.isnan(found["std_error"])
    assert math.isnan(found["khat"])
    assert found["ess"].tolist() == [1.0]


def test_constant_weights_have_no_error():
    found = summary([-3.0] * 7, [2.5] * 7)
    assert found["value"].tolist() == pytest.approx([-3.0, 2.5], abs=1e-14)
    assert found["std_error"].tolist() == [0.0, 0.0]
    assert found["khat"].tolist() == [-INF, -INF]
    assert found["ess"].tolist() == [7.0, 7.0]


def test_value_and_error_by_hand():
    w = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    found = summary((w.log() - 400).tolist())  # far below the smallest float64 weight squared
    assert float(found["value"]) == pytest.approx(math.log(3.0) - 400)
    assert float(found["ess"]) == pytest.approx(144 / 50)
    assert float(found["std_error"]) == pytest.approx(math.sqrt(50 / 144 - 1 / 4))
    assert float(found["elbo"]) == pytest.approx(math.log(36) / 4 - 400)


def test_zero_weights_count_in_the_mean():
    found = summary([0.0, -INF], [-INF, -700.0])  # a zero weight first, then far from zero
    assert found["value"].tolist() == pytest.approx([-math.log(2), -700 - math.log(2)])
    assert found["ess"].tolist() == [1.0, 1.0]
    assert found["elbo"].tolist() == [-INF, -INF]
    none = summary([-INF, -INF])
    assert none["value"].tolist() == [-INF]
    assert none["elbo"].tolist() == [-INF]
    assert math.isnan(none["std_error"])
    assert math.isnan(none["khat"])
