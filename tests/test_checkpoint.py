"""Checkpoints: exact, atomic, without pickle; and resuming as if nothing had happened."""

import math
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pyro
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from small_pairs import Tutorial, fit, line_data, line_guide, line_model, patterns

import inference
import pyro_vae as pv
from inference import ELBO, CheckpointError, RequestError
from inference.checkpoint import (
    FILE,
    Checkpoint,
    Snapshot,
    load_checkpoint,
    random_from,
    random_tensors,
    save_checkpoint,
)
from inference.files import TEMPORARY, write_bytes
from inference.isolation import random_state, seed_all, set_random_state
from pyro_vae.app import files as app_files


@pytest.fixture(autouse=True)
def params():
    with pyro.get_param_store().scope():
        yield pyro.get_param_store()


def example():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    weights = {
        "a$$$b.weight": draw(3, 2),
        "odd/name": draw(2, 3).T,  # a slash, and a stride
        "scalar": torch.tensor(1.5),
        "double": draw(2).double(),
        "not finite": torch.tensor([math.nan, math.inf, -math.inf]),
        "empty": torch.zeros(0, 3),
    }
    buffers = {"0.count": torch.tensor(3), "0.flag": torch.tensor([True, False])}
    optimizer = {
        "odd/name": {"step": torch.tensor(4.0), "exp_avg": draw(3, 2), "buffer": None},
        "scalar": {"step": 4, "rate": math.inf, "mu": 0.1 + 0.2},
    }
    snapshot = Snapshot(weights, buffers, optimizer)
    return Checkpoint(
        current=snapshot,
        best=snapshot.copy(),
        random={"cpu": torch.get_rng_state()},
        progress={"epoch": 2, "best": -math.inf, "norm_sum": math.nan, "objective_sum": 1 / 3},
        settings={"seed": 0, "objective": {"name": "elbo"}, "patience": None},
        history=[
            {"epoch": 1, "train_bound": 0.1 + 0.2, "validation_bound": None, "beta": math.nan}
        ],
    )


def equal(a, b):
    """The same types and values, where NaN equals NaN."""
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        if same and a.is_floating_point():
            return bool(((a == b) | (a.isnan() & b.isnan())).all())
        return same and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(v, b[k]) for k, v in a.items())
    if isinstance(a, list):
        return len(a) == len(b) and all(equal(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and a == b


# The file --------------------------------------------------------------------------------------


def test_a_round_trip_is_exact(tmp_path):
    saved = example()
    path = save_checkpoint(tmp_path, saved)
    assert path == tmp_path / FILE
    loaded = load_checkpoint(tmp_path)
    for name, value in vars(saved).items():
        got = vars(loaded)[name]
        if isinstance(value, Snapshot):
            assert equal(vars(value), vars(got)), name
        else:
            assert equal(value, got), name
    assert inference.read_history(tmp_path) == [] or equal(
        inference.read_history(tmp_path), saved.history
    )
    assert os.listdir(tmp_path) == [FILE]


def test_the_round_trip_check_can_fail():
    first, second = example(), example()
    second.current.optimizer["scalar"]["mu"] = 0.3
    assert not equal(vars(first.current), vars(second.current))


def test_a_checkpoint_without_a_best(tmp_path):
    saved = example()
    saved.best = None
    save_checkpoint(tmp_path, saved)
    assert load_checkpoint(tmp_path).best is None


def test_a_snapshot_copy_is_its_own():
    snapshot = example().current
    copy = snapshot.copy()
    snapshot.weights["scalar"] += 1
    snapshot.optimizer["scalar"]["step"] = 99
    assert copy.weights["scalar"] == 1.5
    assert copy.optimizer["scalar"]["step"] == 4


def test_an_optimizer_state_that_json_cannot_hold(tmp_path):
    saved = example()
    saved.current.optimizer["scalar"]["odd"] = object()
    with pytest.raises(CheckpointError, match="optimizer state holds what JSON cannot"):
        save_checkpoint(tmp_path, saved)
    assert os.listdir(tmp_path) == []


def test_a_missing_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint here") as caught:
        load_checkpoint(tmp_path / "nowhere")
    assert str(tmp_path / "nowhere" / FILE) in str(caught.value)


def damaged(tmp_path):
    """Loading is refused in one sentence that names the file."""
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path / FILE) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_truncated_file(tmp_path):
    path = save_checkpoint(tmp_path, example())
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        damaged(tmp_path)
    path.write_bytes(whole + b"x")
    damaged(tmp_path)


def test_one_flipped_bit_anywhere(tmp_path):
    path = save_checkpoint(tmp_path, example())
    whole = path.read_bytes()
    places = random.Random(0).sample(range(len(whole)), 300)
    for place in [*range(40), *places, len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        path.write_bytes(flipped)
        try:
            loaded = load_checkpoint(tmp_path)
        except CheckpointError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:  # white space of the header's padding, or a name that still sorts the same
            assert equal(vars(loaded.current), vars(example().current)), place
            assert equal(loaded.history, example().history), place
            assert loaded.settings == example().settings, place


@pytest.mark.parametrize(
    "content",
    [pickle.dumps({"a": 1}), b"", b"\x00" * 100, b"{}" * 50, b"\xff" * 4096],
)
def test_a_file_that_is_something_else(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    damaged(tmp_path)


def test_a_hostile_pickle_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    torch.save(Hostile(), tmp_path / FILE)
    damaged(tmp_path)
    (tmp_path / FILE).write_bytes(pickle.dumps(Hostile()))
    damaged(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_nothing_in_the_package_unpickles(pytestconfig):
    for package in ("inference", "pyro_vae"):
        for path in (pytestconfig.rootpath / package).rglob("*.py"):
            text = path.read_text()
            for word in ("import pickle", "from pickle", "torch.load(", "torch.save(", "joblib"):
                assert word not in text, f"{path}: {word}"


@pytest.mark.parametrize("key", ["pyro_vae", "digest"])
def test_a_missing_part_of_the_header(key, tmp_path):
    path = save_checkpoint(tmp_path, example())
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata)
    load_checkpoint(tmp_path)  # as it was
    del metadata[key]
    save_file(tensors, path, metadata)
    damaged(tmp_path)


def test_a_missing_or_reshaped_tensor(tmp_path):
    path = save_checkpoint(tmp_path, example())
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = "current/weights/a$$$b.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, path, metadata)
    damaged(tmp_path)
    save_file({**tensors, name: tensors[name].reshape(6)}, path, metadata)
    damaged(tmp_path)


def test_a_format_of_the_future(tmp_path, monkeypatch):
    monkeypatch.setattr(inference.checkpoint, "FORMAT", 99)
    save_checkpoint(tmp_path, example())
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="format 99, this version reads 2"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("function", ["replace", "fsync", "fdopen"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_crash_inside_the_write_leaves_the_old_file(function, error, tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, example())
    old = path.read_bytes()
    newer = example()
    newer.progress["epoch"] = 7

    def crash(*args, **kwargs):
        raise error

    monkeypatch.setattr(os, function, crash)
    with pytest.raises(type(error)):
        save_checkpoint(tmp_path, newer)
    monkeypatch.undo()
    assert path.read_bytes() == old
    assert os.listdir(tmp_path) == [FILE]
    save_checkpoint(tmp_path, newer)
    assert load_checkpoint(tmp_path).progress["epoch"] == 7


def test_what_a_killed_process_left_half_written_is_swept_up(tmp_path):
    path = save_checkpoint(tmp_path, example())
    (tmp_path / f"{TEMPORARY}{FILE}-half").write_bytes(path.read_bytes()[:50])
    load_checkpoint(tmp_path)
    save_checkpoint(tmp_path, example())
    assert os.listdir(tmp_path) == [FILE]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_are_readable_as_the_umask_says(umask, tmp_path):
    before = os.umask(umask)
    try:
        path = save_checkpoint(tmp_path, example())
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644 & ~umask


def test_one_writer_serves_checkpoints_and_runs(tmp_path, monkeypatch):
    """File and folder are flushed to disk, in this order, around the rename."""
    assert app_files.write_bytes is write_bytes
    calls = []
    for name, real in (("fsync", os.fsync), ("replace", os.replace)):

        def watched(*args, name=name, real=real):
            calls.append(name)
            return real(*args)

        monkeypatch.setattr(os, name, watched)
    write_bytes(tmp_path / "a", b"1")
    assert calls == ["fsync", "replace", "fsync"]
    save_checkpoint(tmp_path / "c", example())
    assert calls == ["fsync", "replace", "fsync"] * 2


def draws():
    """Of every global generator; an odd number of normals leaves one in reserve."""
    return [
        (float(torch.rand(())), np.random.normal(), random.gauss(0, 1), random.random())  # noqa: NPY002
        for _ in range(3)
    ]


@pytest.mark.parametrize("drawn", [0, 1])
def test_random_states_survive_the_file(drawn, tmp_path):
    kept = random_state()
    seed_all(2**40 + 7)
    draws()[:drawn]
    saved = example()
    saved.random = random_tensors(random_state())
    save_checkpoint(tmp_path, saved)
    expected = draws()
    seed_all(0)
    assert draws() != expected
    held = load_checkpoint(tmp_path).random
    set_random_state(random_from(held))
    assert draws() == expected
    set_random_state(kept)
    for name in ("cpu", "python", "python spare", "numpy", "numpy spare"):
        with pytest.raises(CheckpointError, match=f"lacks the random state '{name}'"):
            random_from({key: value for key, value in held.items() if key != name})


# Resuming --------------------------------------------------------------------------------------


class Crash(Exception):
    pass


def make_ours(params):
    """Our VAE with validation, patience, warm-up, fresh binarization and a cosine."""
    torch.manual_seed(0)
    mlp = {"name": "mlp", "hidden": (8,)}
    vae = pv.VAE(data_shape=(6,), latent_dim=2, encoder=mlp, decoder=mlp)
    grey = patterns() * 0.8 + 0.1
    settings = {
        "validation": patterns(30, seed=2), "patience": 4, "objective": ELBO(warmup_epochs=2),
        "schedule": inference.Cosine(), "clip_norm": 1.0, "learning_rate": 0.1, "seed": 3,
        "batch_size": 24, "epochs": 6, "optimizer": "nadam", "batch_transform": torch.bernoulli,
    }  # fmt: skip
    return (vae.model, vae.guide, grey), settings, lambda: copied(vae.state_dict())


def make_plain(params):
    """A pair of plain pyro.params, whose values live in the store alone."""
    params.clear()
    settings = {"epochs": 6, "batch_size": 16, "optimizer": "sgd", "learning_rate": 0.05}
    settings["optimizer_options"] = {"momentum": 0.9}
    read = lambda: copied(dict(params._params))  # noqa: E731
    return (line_model, line_guide, line_data()), settings, read


def make_batch_norm(params):
    """Functions that close over modules with running statistics."""
    torch.manual_seed(0)
    vae = Tutorial(batch_norm=True)

    def model(x):
        return vae.model(x)

    def guide(x):
        return vae.guide(x)

    settings = {"epochs": 6, "batch_size": 24, "optimizer": "radam", "validation": patterns(9)}
    return (model, guide, patterns()), settings, lambda: copied(vae.state_dict())


def make_foreign(params):
    """Noise for each batch from numpy and from Python's `random`."""
    torch.manual_seed(0)
    vae = Tutorial()

    def noisy(x):
        flips = np.random.normal(size=tuple(x.shape)) > 1.5  # noqa: NPY002
        flips[:, 0] |= random.gauss(0, 1) > 1
        return (x - torch.from_numpy(flips).float()).abs()

    settings = {"epochs": 6, "batch_size": 24, "learning_rate": 0.1, "batch_transform": noisy}
    return (vae.model, vae.guide, patterns()), settings, lambda: copied(vae.state_dict())


MAKERS = {
    "ours": make_ours,
    "plain": make_plain,
    "batch norm": make_batch_norm,
    "foreign noise": make_foreign,
}


def copied(state):
    return {name: value.detach().clone() for name, value in state.items()}


def untimed(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


def crash_at_epoch(epoch):
    def callback(row):
        if row["epoch"] == epoch:
            raise Crash

    return callback


@pytest.mark.parametrize("maker", MAKERS)
def test_a_resumed_training_equals_one_that_never_stopped(maker, params, tmp_path, monkeypatch):
    """Stopped at any step, and inside a write; bit for bit in weights, history and result."""
    make = MAKERS[maker]
    pair, settings, read = make(params)
    straight = fit(*pair, checkpoint=tmp_path / "straight", **settings)
    expected = read()
    real_step = inference.fit.__globals__["Training"].step
    real_replace = os.replace
    per_epoch = straight.steps // len(straight.history)
    points = [1, per_epoch, 2 * per_epoch + 1, straight.steps]
    for point in points:
        for where in ("step", "write"):
            folder = tmp_path / f"{where}-{point}"
            pair, settings, read = make(params)
            calls = {"step": 0, "write": 0}

            def crash(kind, real, calls=calls, where=where, point=point):
                def run(*args):
                    calls[kind] += 1
                    if kind == where and calls[kind] > point:
                        raise Crash
                    return real(*args)

                return run

            with monkeypatch.context() as patch:
                training = inference.fit.__globals__["Training"]
                patch.setattr(training, "step", crash("step", real_step))
                patch.setattr(os, "replace", crash("write", real_replace))
                try:
                    fit(*pair, checkpoint=folder, checkpoint_seconds=0, **settings)
                except Crash:
                    pass
                else:
                    assert point == straight.steps
            held = load_checkpoint(folder).progress["step"]
            assert held >= min(point, straight.steps) - 1
            pair, settings, read = make(params)  # a new process would start from scratch
            resumed = fit(*pair, checkpoint=folder, resume=True, **settings)
            assert equal(read(), expected), (where, point)
            assert untimed(resumed.history) == untimed(straight.history), (where, point)
            assert resumed.status == straight.status
            assert resumed.best_epoch == straight.best_epoch
            assert resumed.steps == straight.steps
            final, other = load_checkpoint(folder), load_checkpoint(tmp_path / "straight")
            assert equal(vars(final.current), vars(other.current))
            assert equal(final.random, other.random)


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_exception_in_the_callback_loses_no_more_than_the_interval(epoch, params, tmp_path):
    pair, settings, read = make_ours(params)
    straight = fit(*pair, **settings)
    expected = read()
    for name, seconds in (("often", 0), ("rarely", 60)):
        pair, settings, read = make_ours(params)
        with pytest.raises(Crash):
            fit(
                *pair, checkpoint=tmp_path / name, checkpoint_seconds=seconds,
                callback=crash_at_epoch(epoch), **settings,
            )  # fmt: skip
        held = load_checkpoint(tmp_path / name)
        steps = 3 * epoch
        assert held.progress["step"] == (0 if seconds else steps - 1)
        pair, settings, read = make_ours(params)
        resumed = fit(*pair, checkpoint=tmp_path / name, resume=True, **settings)
        assert equal(read(), expected)
        assert untimed(resumed.history) == untimed(straight.history)


def test_forgetting_any_part_of_the_state_would_show(params, tmp_path, monkeypatch):
    """The checks above can fail: drop the optimizer's state, or the random state."""
    pair, settings, read = make_ours(params)
    fit(*pair, **settings)
    expected = read()
    for part in ("optimizer", "random"):
        pair, settings, read = make_ours(params)
        folder = tmp_path / part
        with pytest.raises(Crash):
            fit(
                *pair, checkpoint=folder, checkpoint_seconds=0, callback=crash_at_epoch(3),
                **settings,
            )  # fmt: skip
        held = load_checkpoint(folder)
        if part == "optimizer":
            held.current.optimizer.clear()
        else:
            held.random["cpu"] = torch.Generator().manual_seed(1).get_state()
        save_checkpoint(folder, held)
        pair, settings, read = make_ours(params)
        fit(*pair, checkpoint=folder, resume=True, **settings)
        assert not equal(read(), expected), part


CHANGES = {
    "learning_rate": (0.2, "learning_rate was 0.1, now 0.2"),
    "batch_size": (16, "batch_size was 24, now 16"),
    "seed": (4, "seed was 3, now 4"),
    "optimizer": ("adam", "optimizer was 'nadam', now 'adam'"),
    "optimizer_options": ({"weight_decay": 0.1}, "optimizer_options was {}, now"),
    "patience": (5, "patience was 4, now 5"),
    "clip_norm": (None, "clip_norm was 1.0, now None"),
    "objective": (ELBO(), "objective was"),
    "schedule": (inference.Constant(), "schedule was"),
    "epochs": (7, "epochs was 6, now 7"),  # a cosine depends on it
    "validation": (patterns(9), "validation was"),
}


@pytest.mark.parametrize("field", CHANGES)
def test_resume_refuses_a_changed_setting_by_name(field, params, tmp_path):
    pair, settings, _ = make_ours(params)
    with pytest.raises(Crash):
        fit(*pair, checkpoint=tmp_path, callback=crash_at_epoch(1), **settings)
    before = (tmp_path / FILE).read_bytes()
    value, message = CHANGES[field]
    pair, settings, read = make_ours(params)
    start = read()
    with pytest.raises(CheckpointError, match=f"resume: the training has changed: .*{message}"):
        fit(*pair, checkpoint=tmp_path, resume=True, **{**settings, field: value})
    assert (tmp_path / FILE).read_bytes() == before
    assert equal(read(), start)


def test_resume_refuses_other_data_of_the_same_shape(params, tmp_path):
    (model, guide, x), settings, _ = make_ours(params)
    with pytest.raises(Crash):
        fit(model, guide, x, checkpoint=tmp_path, callback=crash_at_epoch(1), **settings)
    other = x.clone()
    other[7, 3] = 1 - other[7, 3]
    (model, guide, _), settings, _ = make_ours(params)
    with pytest.raises(CheckpointError, match="the training has changed: data was"):
        fit(model, guide, other, checkpoint=tmp_path, resume=True, **settings)


def test_several_changes_are_named_together(params, tmp_path):
    pair, settings, _ = make_plain(params)
    fit(*pair, checkpoint=tmp_path, **settings)
    with pytest.raises(CheckpointError, match="batch_size was 16, now 8; seed was 0, now 1"):
        fit(*pair, checkpoint=tmp_path, resume=True, **{**settings, "batch_size": 8, "seed": 1})


def test_more_epochs_equal_a_longer_training_from_the_start(params, tmp_path):
    pair, settings, read = make_batch_norm(params)
    longer = fit(*pair, **{**settings, "epochs": 9})
    expected = read()
    pair, settings, read = make_batch_norm(params)
    fit(*pair, checkpoint=tmp_path, **settings)
    assert not equal(read(), expected)
    pair, settings, read = make_batch_norm(params)
    grown = fit(*pair, checkpoint=tmp_path, resume=True, **{**settings, "epochs": 9})
    assert equal(read(), expected)
    assert untimed(grown.history) == untimed(longer.history)
    pair, settings, read = make_batch_norm(params)
    with pytest.raises(CheckpointError, match="epochs was 9, now 6"):
        fit(*pair, checkpoint=tmp_path, resume=True, **settings)


@pytest.mark.parametrize("maker", MAKERS)
def test_resuming_a_finished_training_does_nothing_more(maker, params, tmp_path):
    pair, settings, read = MAKERS[maker](params)
    first = fit(*pair, checkpoint=tmp_path, **settings)
    expected, held = read(), load_checkpoint(tmp_path)
    pair, settings, read = MAKERS[maker](params)
    rows = []
    again = fit(*pair, checkpoint=tmp_path, resume=True, callback=rows.append, **settings)
    assert rows == []
    assert equal(read(), expected)
    assert again.history == first.history
    assert (again.status, again.best_epoch) == (first.status, first.best_epoch)
    assert equal(vars(load_checkpoint(tmp_path).current), vars(held.current))


def test_a_new_training_does_not_overwrite_another_ones_checkpoint(params, tmp_path):
    pair, settings, read = make_plain(params)
    fit(*pair, checkpoint=tmp_path, **settings)
    before, trained = (tmp_path / FILE).read_bytes(), read()
    with pytest.raises(CheckpointError, match="holds a training") as caught:
        fit(*pair, checkpoint=tmp_path, **settings)
    message = str(caught.value)
    assert f"checkpoint: {tmp_path} holds" in message
    assert "resume=True, or give another folder" in message
    assert (tmp_path / FILE).read_bytes() == before
    assert equal(read(), trained)
    fit(*pair, checkpoint=tmp_path / "another", **settings)


def test_resume_needs_a_checkpoint(params, tmp_path):
    pair, settings, _ = make_plain(params)
    with pytest.raises(RequestError, match="give the checkpoint folder to resume from"):
        fit(*pair, resume=True, **settings)
    with pytest.raises(CheckpointError, match="no checkpoint here; train without resume first"):
        fit(*pair, resume=True, checkpoint=tmp_path / "none", **settings)
    assert not (tmp_path / "none").exists()
    assert not params


def test_resume_refuses_the_weights_of_another_pair(params, tmp_path):
    x, settings = patterns(), {"epochs": 1, "batch_size": 16, "checkpoint": tmp_path}
    vae, wider, other = Tutorial(), Tutorial(hidden=9), Tutorial(batch_norm=True)
    fit(vae.model, vae.guide, x, **settings)
    with pytest.raises(CheckpointError, match=r"'encoder\S+' has shape .* in the pair and"):
        fit(wider.model, wider.guide, x, resume=True, **settings)
    with pytest.raises(CheckpointError, match="is not in both the pair and the checkpoint"):
        fit(other.model, other.guide, x, resume=True, **settings)


def test_resume_refuses_a_damaged_file(params, tmp_path):
    pair, settings, _ = make_plain(params)
    fit(*pair, checkpoint=tmp_path, **settings)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="damaged"):
        fit(*pair, checkpoint=tmp_path, resume=True, **settings)


def test_a_checkpoint_lacking_progress_is_damaged(params, tmp_path):
    pair, settings, _ = make_plain(params)
    fit(*pair, checkpoint=tmp_path, **settings)
    held = load_checkpoint(tmp_path)
    del held.progress["batch"]
    save_checkpoint(tmp_path, held)
    with pytest.raises(CheckpointError, match="'batch'"):
        fit(*pair, checkpoint=tmp_path, resume=True, **settings)


def test_the_interval_between_checkpoints_is_kept(params, tmp_path, monkeypatch):
    """A clock that moves one second a look: saves come every `checkpoint_seconds` of it."""
    saves = []
    real = inference.fit.__globals__["save_checkpoint"]

    def watched(folder, checkpoint):
        saves.append(checkpoint.progress["step"])
        return real(folder, checkpoint)

    monkeypatch.setitem(inference.fit.__globals__, "save_checkpoint", watched)
    pair, settings, _ = make_plain(params)
    fit(*pair, checkpoint=tmp_path, checkpoint_seconds=0, **settings)
    assert saves == sorted({*range(19)}) or saves == [*range(19), 18]  # 6 epochs of 3 steps
    saves.clear()
    params.clear()
    fit(*pair, checkpoint=tmp_path / "two", checkpoint_seconds=60, **settings)
    assert saves == [0, 18]


# SIGKILL ---------------------------------------------------------------------------------------

VICTIM = """
import os, sys, time
from pathlib import Path
import pyro, torch
import test_checkpoint as t

folder, maker, resume, where = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "resume", sys.argv[4]
epochs = int(sys.argv[5])
store = pyro.get_param_store()
pair, settings, read = t.MAKERS[maker](store)
real_fsync, real_replace = os.fsync, os.replace
def fsync(handle):
    if where == "write":
        (folder.parent / "write").touch()
        time.sleep(60)  # killed long before
    real_fsync(handle)
def replace(*args):
    real_replace(*args)
    (folder.parent / "step").touch()
os.fsync, os.replace = fsync, replace
(folder.parent / "start").touch()
settings.update(epochs=epochs, patience=None)
t.fit(*pair, checkpoint=folder, checkpoint_seconds=0, resume=resume, **settings)
"""


def run_victim(root, folder, maker, epochs, kill_after, where):
    """Train, or go on, in a process of its own, and kill it.

    That is so many seconds after the `start` of fit, after its first saved `step`, or after it
    began to `write`. Returns whether it was killed while at work, and inside a write.
    """
    folder.parent.mkdir(exist_ok=True)
    for mark in ("start", "step", "write"):
        (folder.parent / mark).unlink(missing_ok=True)
    before = {*folder.glob(f"{TEMPORARY}*")}
    resume = "resume" if (folder / FILE).exists() else ""
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM, folder, maker, resume, where, str(epochs)],
        env={"PYTHONPATH": f"{root}:{root / 'tests'}", "OMP_NUM_THREADS": "1", "PATH": ""},
        stderr=subprocess.PIPE,
        text=True,
    )
    while not (folder.parent / where).exists() and process.poll() is None:
        time.sleep(0.002)
    time.sleep(kill_after)
    process.send_signal(signal.SIGKILL)
    errors = process.communicate()[1]
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0, bool({*folder.glob(f"{TEMPORARY}*")} - before)


def kill_and_resume(params, root, tmp_path, maker, moments, epochs=100):
    """Kill at every moment, resume each time; in the end all is as if nothing had happened."""
    pair, settings, read = MAKERS[maker](params)
    settings.update(epochs=epochs, patience=None)
    straight = fit(*pair, **settings)
    expected = read()
    folder = tmp_path / "killed" / "c"
    kills = []
    for when, where in moments:
        killed, in_write = run_victim(root, folder, maker, epochs, when, where)
        assert killed, f"it was done {when} s after its {where}"
        assert in_write or where != "write"
        kills.append(killed)
    steps = load_checkpoint(folder).progress["step"]
    assert 0 < steps < straight.steps  # there was work between the kills, and is some left
    pair, settings, read = MAKERS[maker](params)
    settings.update(epochs=epochs, patience=None)
    resumed = fit(*pair, checkpoint=folder, resume=True, **settings)
    assert equal(read(), expected)
    assert untimed(resumed.history) == untimed(straight.history)
    assert os.listdir(folder) == [FILE]
    return len(kills)


@pytest.mark.slow
def test_sigkill_costs_nothing(params, pytestconfig, tmp_path):
    """In the first second, at a random moment of the training, and inside a write."""
    draw = random.Random(0)
    moments = [(draw.uniform(0, 1), "start"), (draw.uniform(0.05, 0.2), "step"), (0.02, "write")]
    assert kill_and_resume(params, pytestconfig.rootpath, tmp_path, "ours", moments) == 3


@pytest.mark.slow
@pytest.mark.parametrize("maker", MAKERS)
def test_sigkill_ten_times(maker, params, pytestconfig, tmp_path):
    draw = random.Random(maker)
    moments = [
        (draw.uniform(0, 0.5), "start"),
        (draw.uniform(0.05, 0.3), "step"),
        *((draw.uniform(0, 0.3), "write" if i % 4 == 0 else "step") for i in range(8)),
    ]
    root = pytestconfig.rootpath
    assert kill_and_resume(params, root, tmp_path, maker, moments, epochs=500) == 10
