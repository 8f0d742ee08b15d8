"""What the data sets hold, and what is drawn when."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.data.arrays import Arrays, dataset_from_arrays
from pyro_vae.data.base import SPLITS, Data, check_fit, likelihoods_for
from pyro_vae.data.binarized_mnist import BinarizedMNIST
from pyro_vae.data.digits import Digits
from pyro_vae.data.roots import cache_root, data_root
from pyro_vae.data.rows import Rows, permutation, uniforms
from pyro_vae.data.torchvision_sets import MNIST, FashionMNIST

FIXED_UNIFORMS = [[10686443, 4526269], [687421, 277287]]
FIXED_PERMUTATION = [0, 4, 3, 1, 2, 5]
DIGITS_TEST = "8e4a622e4e348f7bcc3dd24b40650866e42eda79a23a0bfe08e8c139acb98077"
BINARIZED_TEST = "733e7fa1"


@pytest.fixture(scope="module")
def grey():
    return Digits(binarize="none").load()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(11)


# Fixed random numbers --------------------------------------------------------------------------


def test_fixed_numbers_never_change():
    drawn = uniforms((0, 0), (2, 2))
    assert (drawn * 2**24).astype(int).tolist() == FIXED_UNIFORMS
    assert permutation(20130820, 6).tolist() == FIXED_PERMUTATION
    assert drawn.dtype == np.float32


def test_uniforms_are_uniform_and_never_one():
    drawn = uniforms((3, 1), (1000, 100))
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.mean() - 0.5) < 5 * np.sqrt(1 / 12 / drawn.size)
    assert abs(drawn.var() - 1 / 12) < 1e-3


def test_noise_of_a_row_does_not_depend_on_the_rows_chosen():
    whole = Rows(np.zeros((50, 3)))
    held, rest = whole.hold_out(10)
    noise = whole.uniforms(4)
    assert np.array_equal(held.uniforms(4), noise[held.index])
    assert np.array_equal(rest.subset(7).uniforms(4), noise[rest.subset(7).index])
    assert sorted([*held.index, *rest.index]) == list(range(50))
    assert set(rest.subset(7).index) < set(rest.subset(20).index) < set(rest.index)


# Digits ----------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn(grey):
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    held = load_digits()
    rows = np.concatenate([getattr(grey, split).numpy() for split in SPLITS])
    labels = np.concatenate([grey.labels[split].numpy() for split in SPLITS])
    ours = np.column_stack([np.rint(rows.reshape(-1, 64) * 16), labels])
    theirs = np.column_stack([held.data, held.target])
    assert np.array_equal(ours[np.lexsort(ours.T)], theirs[np.lexsort(theirs.T)])


def test_digits_splits(grey):
    assert grey.name == "digits"
    assert grey.shape == (8, 8)
    assert [len(grey.split(split)) for split in SPLITS] == [1200, 200, 397]
    assert [len(grey.labels[split]) for split in SPLITS] == [1200, 200, 397]
    assert all(grey.split(split).dtype == torch.float32 for split in SPLITS)
    assert all(grey.labels[split].dtype == torch.int64 for split in SPLITS)
    assert grey.support == "levels"
    assert grey.levels == 17
    assert not grey.dequantized
    assert grey.train_transform is None


def test_more_validation_data_leave_the_test_data_alone(grey):
    other = Digits(binarize="none", validation=300).load()
    assert other.fingerprint("test") == grey.fingerprint("test")
    assert len(other.train) == 1100
    assert Digits(validation=0).load().validation.shape == (0, 8, 8)


def test_default_fingerprint_never_changes():
    assert Digits().load().fingerprint("test") == DIGITS_TEST


def test_fingerprint_sees_values_and_shape():
    x = torch.arange(8.0).reshape(4, 2)
    first = dataset_from_arrays(x).fingerprint("train")
    assert first == dataset_from_arrays(x.double()).fingerprint("train")
    assert first == dataset_from_arrays(x.T.contiguous().T).fingerprint("train")
    assert first != dataset_from_arrays(x.reshape(4, 1, 2)).fingerprint("train")
    assert first != dataset_from_arrays(x.flip(0)).fingerprint("train")


def test_loading_leaves_the_global_generators_alone():
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    Digits(binarize="dynamic", train_size=100, test_size=50).load()
    Digits(dequantize="uniform", binarize="none").load()
    dataset_from_arrays(torch.ones(20, 2), binarize="fixed", validation=3, test=3)
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(numpy_before, np.random.get_state()[1])  # noqa: NPY002


# Binarized and dequantized ---------------------------------------------------------------------


def test_threshold(grey):
    found = Digits(binarize="threshold").load()
    for split in SPLITS:
        assert torch.equal(found.split(split), (grey.split(split) >= 0.5).float())
    assert found.support == "binary"
    assert found.train_transform is None


def test_dynamic_training_batches_are_drawn_afresh(grey):
    found = Digits(binarize="dynamic").load()
    assert torch.equal(found.train, grey.train)
    assert found.support == "binary"
    first, second = found.train_transform(found.train), found.train_transform(found.train)
    assert not torch.equal(first, second)
    assert set(first.unique().tolist()) == {0.0, 1.0}
    mean = torch.stack([found.train_transform(found.train) for _ in range(400)]).mean(0)
    error = (grey.train * (1 - grey.train) / 400).sqrt()
    assert ((mean - grey.train).abs() <= 6 * error + 1e-7).all()


def test_dynamic_transform_follows_the_global_seed():
    found = Digits(binarize="dynamic").load()
    torch.manual_seed(1)
    first = found.train_transform(found.train)
    torch.manual_seed(1)
    assert torch.equal(first, found.train_transform(found.train))


@pytest.mark.parametrize("binarize", ["dynamic", "fixed"])
def test_what_is_drawn_once_follows_its_own_seed(grey, binarize):
    found, again, other = (
        Digits(binarize=binarize, binarization_seed=seed).load() for seed in (5, 5, 6)
    )
    for split in ("validation", "test"):
        x = found.split(split)
        assert set(x.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(x, again.split(split))
        assert found.fingerprint(split) != other.fingerprint(split)
        p = grey.split(split)
        assert abs((x - p).sum()) < 5 * (p * (1 - p)).sum().sqrt()
        assert torch.equal(x[p == 0], torch.zeros_like(x[p == 0]))
        assert torch.equal(x[p == 1], torch.ones_like(x[p == 1]))


def test_fixed_training_data(grey):
    found = Digits(binarize="fixed").load()
    assert found.train_transform is None
    assert set(found.train.unique().tolist()) == {0.0, 1.0}
    assert found.fingerprint("train") == Digits(binarize="fixed").load().fingerprint("train")
    dynamic = Digits(binarize="dynamic").load()
    assert found.fingerprint("test") == dynamic.fingerprint("test")


def test_dequantized_digits(grey):
    found = Digits(binarize="none", dequantize="uniform").load()
    assert found.levels == 17
    assert found.support == "inside"
    assert found.dequantized
    train = found.train_transform(found.train)
    assert not torch.equal(train, found.train_transform(found.train))
    for x, levels in ((train, grey.train * 16), (found.test, grey.test * 16)):
        above = x - levels / 17
        assert above.min() >= -1e-6
        assert above.max() <= 1 / 17 + 1e-6
        assert abs(above.mean() * 17 - 0.5) < 5 * np.sqrt(1 / 12 / x.numel())
    same, other = (
        Digits(binarize="none", dequantize="uniform", binarization_seed=seed).load()
        for seed in (0, 1)
    )
    assert same.fingerprint("test") == found.fingerprint("test") != other.fingerprint("test")


def test_transforms_work_where_the_batch_is():
    found = Digits(binarize="none", dequantize="uniform").load()
    batch = found.train[:5].to("meta")
    assert found.train_transform(batch).device.type == "meta"


# Sizes -----------------------------------------------------------------------------------------


def test_sizes_take_random_but_fixed_rows(grey):
    small = Digits(binarize="none", train_size=50, test_size=40).load()
    assert [len(small.split(split)) for split in SPLITS] == [50, 200, 40]
    assert [len(small.labels[split]) for split in SPLITS] == [50, 200, 40]
    assert not torch.equal(small.test, grey.test[:40])
    again = Digits(binarize="none", train_size=60, test_size=40).load()
    assert again.fingerprint("test") == small.fingerprint("test")
    held = {tuple(row.flatten().tolist()) for row in again.train}
    assert all(tuple(row.flatten().tolist()) in held for row in small.train)


def test_a_cut_keeps_the_drawn_values():
    whole = Digits(binarize="fixed").load()
    small = Digits(binarize="fixed", test_size=40, validation=10).load()
    held = {tuple(row.flatten().tolist()) for row in whole.test}
    assert all(tuple(row.flatten().tolist()) in held for row in small.test)


# Arrays ----------------------------------------------------------------------------------------


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_npz_with_splits_and_labels(in_tmp):
    x = np.random.default_rng(0).random((20, 2, 3))
    np.savez("x.npz", train=x[:10], validation=x[10:13], test=x[13:], test_labels=np.arange(7))
    found = Arrays(path="x.npz").load()
    assert [len(found.split(split)) for split in SPLITS] == [10, 3, 7]
    assert torch.equal(found.train, torch.from_numpy(x[:10].astype(np.float32)))
    assert found.labels.keys() == {"test"}
    assert found.labels["test"].tolist() == list(range(7))
    assert found.support == "inside"


@pytest.mark.parametrize("suffix", ["npy", "npz", "safetensors"])
def test_one_array_is_cut(in_tmp, suffix):
    x = np.arange(60, dtype=np.float32).reshape(20, 3)
    if suffix == "npy":
        np.save("x.npy", x)
    elif suffix == "npz":
        np.savez("x.npz", x=x, labels=np.arange(20))
    else:
        from safetensors.torch import save_file

        save_file({"x": torch.from_numpy(x).bfloat16()}, "x.safetensors")
    found = Arrays(path=f"x.{suffix}", validation=4, test=6).load()
    assert [len(found.split(split)) for split in SPLITS] == [10, 4, 6]
    rows = torch.cat([found.split(split) for split in SPLITS])
    assert torch.equal(rows.sort(0).values, torch.from_numpy(x))
    assert found.support == "real"
    if suffix == "npz":
        assert torch.equal(found.labels["test"], (found.test[:, 0] / 3).long())


def test_bytes_are_grey_levels():
    x = np.arange(512, dtype=np.uint8).reshape(2, 256).repeat(3, 0)
    assert torch.equal(dataset_from_arrays(x).train[0], torch.arange(256) / 255)
    assert dataset_from_arrays(x).support == "levels"
    assert dataset_from_arrays(x).levels == 256
    found = dataset_from_arrays(x, dequantize="uniform")
    assert torch.equal(found.train[0], torch.arange(256) / 256)
    assert found.levels == 256
    above = found.train_transform(found.train) - found.train
    assert 0 <= above.min() <= above.max() <= 1 / 256 + 1e-6
    binary = dataset_from_arrays(x, binarize="threshold")
    assert torch.equal(binary.train[0], (torch.arange(256) >= 128).float())


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float64])
def test_zeros_and_ones_are_binary_in_every_type(dtype):
    x = np.eye(4).astype(dtype)
    found = dataset_from_arrays(x)
    assert found.support == "binary"
    assert torch.equal(found.train, torch.eye(4))


@pytest.mark.parametrize(
    ("array", "support"),
    [
        (np.arange(12).reshape(6, 2), "count"),
        (np.arange(12, dtype=np.uint16).reshape(6, 2), "count"),
        (np.arange(12).reshape(6, 2) - 1, "real"),
        (np.arange(12.0).reshape(6, 2), "real"),
        (np.linspace(0.1, 0.9, 12).reshape(6, 2), "inside"),
        (np.linspace(0.0, 0.9, 12).reshape(6, 2), "unit"),
        (np.linspace(0.1, 1.0, 12).reshape(6, 2), "unit"),
        (np.linspace(0.1, 1.1, 12).reshape(6, 2), "real"),
    ],
)
def test_kinds_of_values(array, support):
    found = dataset_from_arrays(array, validation=2)
    assert found.support == support
    assert found.levels is None
    fits = [name for name in pv.Likelihood.registry if name in likelihoods_for(support)]
    assert "gaussian" in fits
    assert ("poisson" in fits) == (support == "count")
    assert ("beta" in fits) == (support == "inside")
    assert ("continuous_bernoulli" in fits) == (support in ("inside", "unit"))


def test_counts_are_held_as_they_are():
    x = np.arange(12).reshape(6, 2)
    assert torch.equal(dataset_from_arrays(x).train, torch.from_numpy(x).float())


def test_arrays_from_python_with_labels():
    x = torch.rand(30, 4, generator=torch.Generator().manual_seed(0))
    found = dataset_from_arrays(
        x, labels={"train": torch.arange(30)}, name="mine", binarize="dynamic", test=5
    )
    assert found.name == "mine"
    assert torch.equal(found.train, x[found.labels["train"]])
    assert found.test.shape == (5, 4)


# Fit of likelihood and data --------------------------------------------------------------------


def test_fitting_pairs_pass(grey):
    check_fit(Digits().load(), pv.likelihoods.Bernoulli())
    check_fit(Digits().load(), pv.likelihoods.Gaussian())
    check_fit(grey, pv.likelihoods.Gaussian())
    check_fit(Digits(binarize="none", dequantize="uniform").load(), pv.likelihoods.Gaussian())


# The family ------------------------------------------------------------------------------------


def test_registry_and_round_trip():
    assert {"digits", "mnist", "fashion_mnist", "binarized_mnist", "arrays"} <= set(Data.registry)
    for name in ("digits", "mnist", "fashion_mnist", "binarized_mnist"):
        spec = Data.resolve(name)
        assert Data.resolve(spec.to_dict()) == spec
    spec = Arrays(path="x.npz", binarize="fixed")
    assert Data.resolve(spec.to_dict()) == spec
    assert hash(spec) == hash(Arrays(path="x.npz", binarize="fixed"))


def test_import_and_digits_need_no_torchvision_and_no_scikit_learn():
    code = (
        "import sys, pyro_vae as pv; pv.data.Digits().load(); "
        "print([name for name in ('torchvision', 'sklearn') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_roots(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("PYRO_VAE_DATA", raising=False)
    assert data_root() == cache_root() == tmp_path / "pyro-vae"
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "data"))
    assert data_root() == tmp_path / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_root() == Path("~/.cache/pyro-vae").expanduser()


# Sets in the MNIST format ----------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.tobytes()


@pytest.fixture
def small_mnist(tmp_path, monkeypatch):
    """torchvision's MNIST with tiny files, which lie in `files`; the network leads nowhere."""
    datasets = pytest.importorskip("torchvision.datasets")
    rng = np.random.default_rng(0)
    folder, resources, arrays = tmp_path / "files", [], {}
    folder.mkdir()
    for part, size in (("train", 12), ("t10k", 6)):
        arrays[part] = rng.integers(0, 256, (size, 28, 28), dtype=np.uint8)
        labels = np.arange(size, dtype=np.uint8)
        for kind, array in (("images-idx3", arrays[part]), ("labels-idx1", labels)):
            name = f"{part}-{kind}-ubyte.gz"
            (folder / name).write_bytes(gzip.compress(idx(array)))
            resources.append((name, hashlib.md5((folder / name).read_bytes()).hexdigest()))
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    monkeypatch.setattr(datasets.MNIST, "mirrors", ["http://127.0.0.1:9/"])
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder, arrays


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_packed_files_are_read_and_nothing_is_written(small_mnist, tmp_path):
    folder, arrays = small_mnist
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.parent.mkdir(parents=True)
    folder.rename(raw)
    before = everything(tmp_path)
    found = MNIST(binarize="none", validation=2).load()
    assert everything(tmp_path) == before
    assert [len(found.split(split)) for split in SPLITS] == [10, 2, 6]
    grey = torch.from_numpy(arrays["train"] / np.float32(255))
    assert torch.equal(found.train, grey[found.labels["train"]])
    assert torch.equal(found.test, torch.from_numpy(arrays["t10k"] / np.float32(255)))
    assert found.labels["test"].tolist() == list(range(6))


@pytest.fixture
def mirror(small_mnist, monkeypatch):
    """A server on this machine that holds the tiny files."""
    from torchvision.datasets import MNIST as Torchvision

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(small_mnist[0]))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setattr(Torchvision, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("writable", [True, False])
def test_missing_files_are_downloaded_once(mirror, small_mnist, tmp_path, monkeypatch, writable):
    from torchvision.datasets import MNIST as Torchvision

    kept = tmp_path / "data"
    if not writable:  # a file is no place to write to
        kept.write_text("")
        kept = tmp_path / "cache" / "pyro-vae"
    first = MNIST(binarize="none").load()
    grey = torch.from_numpy(small_mnist[1]["t10k"] / np.float32(255))
    assert torch.equal(first.test, grey)
    held = everything(kept)
    assert len(held) == 8
    assert all(name.startswith("MNIST/raw/") for name in held)
    assert not list(kept.glob(".download-*"))
    monkeypatch.setattr(Torchvision, "mirrors", ["http://127.0.0.1:9/"])
    assert MNIST(binarize="none").load().fingerprint("train") == first.fingerprint("train")


# The real sets, where they are at hand ---------------------------------------------------------


def at_hand(*files: str):
    root = data_root()
    missing = [file for file in files if not (root / file).is_file()]
    reason = f"PYRO_VAE_DATA names no folder that holds {missing}"
    return pytest.mark.skipif(bool(missing) or "PYRO_VAE_DATA" not in os.environ, reason=reason)


@at_hand("MNIST/raw/train-images-idx3-ubyte.gz")
def test_real_mnist():
    before = everything(data_root())
    found = MNIST(validation=10000, train_size=1000, test_size=5000).load()
    assert everything(data_root()) == before
    assert [len(found.split(split)) for split in SPLITS] == [1000, 10000, 5000]
    assert found.shape == (28, 28)
    assert found.support == "binary"
    assert abs(found.test.mean() - 0.1325) < 0.005
    counts = found.labels["test"].bincount(minlength=10)
    assert counts.min() > 350


@at_hand("FashionMNIST/raw/train-images-idx3-ubyte.gz")
def test_real_fashion_mnist():
    found = FashionMNIST(train_size=1000).load()
    assert [len(getattr(found, split)) for split in SPLITS] == [1000, 0, 10000]
    assert found.levels == 256
    assert found.support == "inside"
    assert abs(found.test.mean() * 256 - (0.286849 * 255 + 0.5)) < 0.01


@at_hand("binarized_mnist/binarized_mnist.npz")
def test_real_binarized_mnist(monkeypatch):
    found = BinarizedMNIST().load()
    assert [len(found.split(split)) for split in SPLITS] == [50000, 10000, 10000]
    assert found.support == "binary"
    assert found.labels == {}
    for split, mean in zip(SPLITS, (0.130562, 0.131127, 0.132512), strict=True):
        assert abs(found.split(split).double().mean() - mean) < 1e-6
    assert found.fingerprint("test").startswith(BINARIZED_TEST)


@at_hand("binarized_mnist/binarized_mnist.npz")
def test_binarized_mnist_from_the_original_text(tmp_path, monkeypatch):
    expected = BinarizedMNIST(train_size=5).load()
    folder = tmp_path / "binarized_mnist"
    folder.mkdir()
    whole = BinarizedMNIST().load()
    for split, key in zip(SPLITS, ("train", "valid", "test"), strict=True):
        text = np.full((len(whole.split(split)), 2 * 784), ord(" "), np.uint8)
        text[:, ::2] = whole.split(split).reshape(-1, 784).numpy() + ord("0")
        text[:, -1] = ord("\n")
        (folder / f"binarized_mnist_{key}.amat").write_bytes(text.tobytes())
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path))
    found = BinarizedMNIST(train_size=5).load()
    assert all(found.fingerprint(split) == expected.fingerprint(split) for split in SPLITS)
