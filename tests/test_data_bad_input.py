"""What is refused, and in which words."""

from __future__ import annotations

import gzip
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.app.experiment import ExperimentSpec, resolve
from pyro_vae.data.arrays import Arrays, dataset_from_arrays
from pyro_vae.data.base import Data, check_fit
from pyro_vae.data.binarized_mnist import BinarizedMNIST
from pyro_vae.data.digits import Digits
from pyro_vae.data.torchvision_sets import MNIST, FashionMNIST
from pyro_vae.errors import DataError, RequestError, SpecError

X = np.full((6, 3), 0.5, np.float32)
UNIT = SimpleNamespace(name="continuous_bernoulli", support="unit")
BINARY = SimpleNamespace(name="bernoulli", support="binary")


def says(kind: type[Exception], text: str):
    """The error, with exactly this text in its one line."""
    return pytest.raises(kind, match=rf"\A[^\n]*{re.escape(text)}[^\n]*\Z")


@pytest.fixture(autouse=True)
def _in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYRO_VAE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Fields ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("binarize", ["threshold", "dynamic", "fixed"])
def test_binarize_and_dequantize_together(binarize):
    with says(SpecError, f"binarize={binarize} and dequantize=uniform exclude each other"):
        Digits(binarize=binarize, dequantize="uniform")


def test_defaults_that_exclude_what_is_asked_name_the_way_out():
    with says(SpecError, "set dequantize=none for binary data, or binarize=none for real ones"):
        FashionMNIST(binarize="dynamic")


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"binarize": "yes"}, "binarize: expected 'none', 'threshold', 'dynamic' or"),
        ({"binarization_seed": -1}, "binarization_seed: expected a number of at least 0"),
        ({"train_size": 1}, "train_size: expected a number of at least 2"),
        ({"test_size": 0}, "test_size: expected a number of at least 1"),
        ({"validation": -1}, "validation: expected a number of at least 0"),
        ({"validations": 1}, "validations: no such field of Digits; did you mean 'validation'?"),
    ],
)
def test_fields_out_of_range(fields, text):
    with says(SpecError, text):
        Digits(**fields)


def test_binarized_mnist_offers_no_other_binarization():
    with says(SpecError, "binarize: no such field of BinarizedMNIST"):
        BinarizedMNIST(binarize="dynamic")


def test_unknown_set():
    with says(SpecError, "no data is called 'digit'; did you mean 'digits'?"):
        Data.resolve("digit")


def test_sizes_and_hold_outs_that_are_too_large():
    with says(DataError, "data.train_size: 5000, but data 'digits' has only 1200 train rows"):
        Digits(train_size=5000).load()
    with says(DataError, "data.test_size: 398, but data 'digits' has only 397 test rows"):
        Digits(test_size=398).load()
    with says(DataError, "data.validation: 1399 beside 397 test data leaves 1 of the 1797 rows"):
        Digits(validation=1399).load()
    with says(DataError, "data.test: 5 leaves 1 of the 6 rows of 'arrays' for training"):
        dataset_from_arrays(X, test=5)
    with says(DataError, "data.test_size: 3, but data 'arrays' has only 0 test rows"):
        dataset_from_arrays(X, test_size=3)


# Splits ----------------------------------------------------------------------------------------


def test_splits_that_are_not_there():
    found = dataset_from_arrays(X, test=2)
    with says(
        RequestError, "no split is called 'tests'; did you mean 'test'? Choices: test, train"
    ):
        found.split("tests")
    text = (
        "data 'arrays' has no validation data (data.validation, where offered, holds some out). "
        "Choices: test, train"
    )
    with says(RequestError, text):
        found.split("validation")
    with says(RequestError, text):
        found.fingerprint("validation")


# Likelihood and data ---------------------------------------------------------------------------


def test_grey_data_under_a_binary_likelihood():
    with says(
        DataError,
        "likelihood 'bernoulli' scores values in {0, 1}, but data 'digits' has grey values; set "
        "data.binarize=dynamic (or threshold, fixed), or model.likelihood=",
    ) as caught:
        check_fit(Digits(binarize="none").load(), pv.likelihoods.Bernoulli())
    assert "gaussian" in str(caught.value)
    assert str(caught.value).endswith("with data.dequantize=uniform")


def test_dequantized_data_under_a_likelihood_of_binary_values_or_levels():
    found = Digits(binarize="none", dequantize="uniform").load()
    with says(
        DataError,
        "but data 'digits' has dequantized real values; set data.dequantize=none and "
        "data.binarize=dynamic, or model.likelihood=",
    ):
        check_fit(found, BINARY)
    with says(
        DataError,
        "likelihood 'categorical' scores grey levels, but data 'digits' has dequantized real "
        "values; set data.dequantize=none, or model.likelihood=",
    ):
        check_fit(found, pv.likelihoods.Categorical(levels=17))
    check_fit(found, UNIT)


def test_exemplars_of_data_that_are_drawn_anew():
    """None of them would equal the datum, so that none would be left out."""
    for data, likelihood, once in (
        ({"binarize": "dynamic"}, "bernoulli", "binarize=fixed"),
        ({"binarize": "none", "dequantize": "uniform"}, "gaussian", "dequantize=none"),
    ):
        model = {"prior": "exemplar", "likelihood": likelihood}
        spec = ExperimentSpec.from_dict({"data": {"name": "digits", **data}, "model": model})
        with says(pv.SpecError, f"draws each batch anew, so that none would be; set data.{once}"):
            resolve(spec, spec.data.load())
    fixed = {"data": {"name": "digits", "binarize": "fixed"}, "model": {"prior": "exemplar"}}
    spec = ExperimentSpec.from_dict(fixed)
    assert resolve(spec, spec.data.load()).model.data_shape == (8, 8)


def test_likelihoods_of_levels_have_as_many_as_the_data():
    grey = Digits(binarize="none").load()
    check_fit(grey, pv.likelihoods.Categorical(levels=17))
    for likelihood in (pv.likelihoods.Categorical(), pv.likelihoods.DiscretizedLogistic()):
        with says(
            DataError,
            f"likelihood '{likelihood.name}' has 256 levels, but data 'digits' has 17; set "
            "model.likelihood.levels=17",
        ):
            check_fit(grey, likelihood)


def test_grey_levels_under_a_likelihood_of_values_inside():
    with says(
        DataError,
        "likelihood 'beta' scores values inside (0, 1), but data 'digits' has grey values; set "
        "data.dequantize=uniform, or model.likelihood=categorical or discretized_logistic, or",
    ):
        check_fit(Digits(binarize="none").load(), pv.likelihoods.Beta())


def test_counts_are_integers():
    counts = np.arange(12).reshape(6, 2)
    poisson = pv.likelihoods.Poisson()
    check_fit(dataset_from_arrays(counts), poisson)
    with says(
        DataError,
        "likelihood 'poisson' scores counts 0, 1, 2, ..., but data 'arrays' has real values; set "
        "integers in place of the floats that hold these counts, or model.likelihood=gaussian",
    ):
        check_fit(dataset_from_arrays(counts.astype(float)), poisson)
    with says(DataError, "but data 'arrays' has real values; set model.likelihood=gaussian"):
        check_fit(dataset_from_arrays(counts - 3), poisson)
    with says(
        DataError,
        "likelihood 'categories' has 11 levels, but data 'arrays' has 12; set "
        "model.likelihood.levels=12",
    ):
        check_fit(dataset_from_arrays(counts), pv.likelihoods.Categories(levels=11))
    check_fit(dataset_from_arrays(counts), pv.likelihoods.Categories(levels=13))


def test_columns_of_a_table_that_their_part_cannot_score():
    rng = np.random.default_rng(0)
    columns = rng.normal(size=6), rng.integers(0, 2, 6), rng.integers(0, 9, 6), rng.random(6)
    table = dataset_from_arrays(np.stack(columns, 1))

    def mixed(*names):
        return pv.likelihoods.Mixed(parts=[{"likelihood": name} for name in names])

    check_fit(table, mixed("student_t", "bernoulli", "poisson", "beta"))
    codes = {"name": "categories", "levels": 9}
    check_fit(table, mixed("gaussian", "bernoulli", codes, "continuous_bernoulli"))
    with says(
        DataError,
        "likelihood 'mixed': part 3 ('bernoulli', columns 2 to 2) scores values in {0, 1}, but "
        "'train' of data 'arrays' has ",
    ) as caught:
        check_fit(table, mixed("gaussian", "bernoulli", "bernoulli", "beta"))
    assert str(caught.value).endswith(
        "choices: gaussian, gaussian_covariance, laplace, multinomial, negative_binomial, poisson, "
        "student_t, zero_inflated"
    )
    with says(DataError, "part 3 ('categories', columns 2 to 2) scores counts 0, 1, 2, ... of 3"):
        check_fit(table, mixed("gaussian", "bernoulli", codes | {"levels": 3}, "beta"))
    with says(DataError, "likelihood 'mixed' covers 2 columns, but a datum of 'arrays' has shape"):
        check_fit(table, mixed("gaussian", "bernoulli"))


def test_real_data_under_a_unit_likelihood():
    with says(DataError, "but data 'arrays' has real values; set model.likelihood="):
        check_fit(dataset_from_arrays(X * 9), UNIT)


# Files -----------------------------------------------------------------------------------------


def test_missing_file_and_folder(tmp_path):
    with says(
        DataError,
        f"data.path: 'none.npz' does not exist; expected a file, relative to the folder {tmp_path}",
    ):
        Arrays(path="none.npz").load()
    (tmp_path / "x.npz").mkdir()
    with says(DataError, "data.path: 'x.npz' is a folder; expected a file"):
        Arrays(path="x.npz").load()


def test_unknown_suffix(tmp_path):
    (tmp_path / "x.csv").write_text("1,2")
    with says(DataError, "data.path: 'x.csv' ends in '.csv'; expected one of .npy, .npz, .safet"):
        Arrays(path="x.csv").load()
    with says(DataError, "data.path: 'x' has no ending; expected one of .npy"):
        Arrays(path="x").load()


def test_path_is_needed():
    with says(SpecError, "path: missing; Arrays needs it"):
        Arrays()


@pytest.mark.parametrize("suffix", ["npz", "npy", "safetensors"])
@pytest.mark.parametrize("damage", ["empty", "truncated", "noise", "flipped"])
def test_damaged_files(tmp_path, suffix, damage):
    from safetensors.torch import save_file

    path = tmp_path / f"x.{suffix}"
    if suffix == "npz":
        np.savez_compressed(path, train=np.random.default_rng(0).random((50, 20)))
    elif suffix == "npy":
        np.save(path, np.random.default_rng(0).random((50, 20)))
    else:
        save_file({"train": torch.rand(50, 20)}, path)
    whole = path.read_bytes()
    changed = bytearray(whole)
    if suffix == "npz":  # in the middle: the checksum of the archive sees it
        changed[len(whole) // 2] ^= 255
    else:  # in the header
        changed[9] ^= 255
    path.write_bytes(
        {
            "empty": b"",
            "truncated": whole[: len(whole) // 2],
            "noise": b"no data at all, but text",
            "flipped": bytes(changed),
        }[damage]
    )
    with says(DataError, f"x.{suffix}: "):
        Arrays(path=f"x.{suffix}").load()


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_python_objects_are_never_loaded(suffix):
    x = np.array([[1, None], [2, 3]], dtype=object)
    (np.savez if suffix == "npz" else np.save)(f"x.{suffix}", x)
    with says(DataError, "Python objects, which are never loaded since they can run code"):
        Arrays(path=f"x.{suffix}").load()


def test_arrays_of_other_names():
    np.savez("x.npz", train=X, valid=X)
    with says(
        DataError, "x.npz: holds 'valid', which means nothing here; did you mean 'validation'"
    ):
        Arrays(path="x.npz").load()
    np.savez("y.npz", a=X, b=X)
    with says(DataError, "y.npz: holds 'a', 'b'; expected 'train'"):
        Arrays(path="y.npz").load()


# Arrays ----------------------------------------------------------------------------------------


def spoiled(value, *rows):
    x = X.copy()
    x[list(rows), 1] = value
    return x


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_values_that_are_not_finite(value):
    text = "'train' holds 2 infinite values in 2 of 6 rows, the first in row 3; remove them, or"
    with says(DataError, text):
        dataset_from_arrays(spoiled(value, 3, 5))
    with says(DataError, "'test' holds 1 infinite values in 1 of 6 rows, the first in row 0"):
        dataset_from_arrays(X, test=spoiled(value, 0))


def test_values_too_large_for_float32():
    with says(DataError, "'train' holds 18 infinite values"):
        dataset_from_arrays(np.full((6, 3), 1e300))


@pytest.mark.parametrize(
    ("train", "text"),
    [
        (np.zeros((0, 3)), "'train' is empty (shape (0, 3)); expected [N, ...]"),
        (np.zeros((5, 0)), "'train' is empty (shape (5, 0)); expected [N, ...]"),
        (np.zeros((1, 3)), "'train' holds one example (shape (1, 3)); expected [N, ...] with N at"),
        (np.zeros(5), "'train' has shape (5,); expected [N, ...], one row per datum"),
        (np.array(5.0), "'train' has shape (); expected [N, ...], one row per datum"),
        (np.zeros((5, 2), complex), "'train' holds complex numbers; expected numbers (float"),
        (np.array([["a"], ["b"]]), "'train' holds text; expected numbers (float"),
        (np.array([[None], [1]]), "'train' holds Python objects; expected numbers (float"),
    ],
)
def test_arrays_of_a_wrong_kind(train, text):
    with says(DataError, f"data 'mine': {text}"):
        dataset_from_arrays(train, name="mine")


def test_splits_that_differ():
    with says(DataError, "a datum of 'test' has shape (4,), but one of 'train' has (3,)"):
        dataset_from_arrays(X, test=np.zeros((2, 4)))
    with says(DataError, "'test' holds uint8, but 'train' float32; uint8 is scaled to [0, 1]"):
        dataset_from_arrays(X, test=np.zeros((2, 3), np.uint8))


def test_splits_given_twice():
    np.savez("x.npz", train=X, test=X)
    with says(DataError, "data.test: 2, but x.npz holds test data of its own; leave the field out"):
        Arrays(path="x.npz", test=2).load()


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ({"train": np.zeros(5, int)}, "labels of 'train' have shape (5,), but there are 6 rows"),
        ({"train": np.zeros((6, 1), int)}, "labels of 'train' have shape (6, 1), but there are 6"),
        ({"train": np.zeros(6)}, "labels of 'train' hold float64; expected integers"),
        ({"test": np.zeros(6, int)}, "labels of 'test' have shape (6,), but there are 0 rows"),
        ({"valid": np.zeros(6, int)}, "labels of 'valid'; did you mean 'validation'?"),
    ],
)
def test_labels_that_do_not_fit(labels, text):
    with says(DataError, text):
        dataset_from_arrays(X, labels=labels)


def test_binarize_outside_the_unit_interval():
    text = (
        "binarize=dynamic needs values in [0, 1], but 'train' has values from 0.5 to 7, outside in "
        "1 rows, the first in row 4; scale them, save bytes as uint8, or set data.binarize=none"
    )
    with says(DataError, text):
        dataset_from_arrays(spoiled(7, 4), binarize="dynamic")


def test_dequantize_needs_grey_levels():
    with says(DataError, "dequantize=uniform needs uint8 grey levels, but 'train' holds other"):
        dataset_from_arrays(X, dequantize="uniform")
    with says(
        DataError, "dequantize=uniform needs uint8 grey levels, but 'train' holds only 0 and"
    ):
        dataset_from_arrays(np.eye(4, dtype=np.uint8), dequantize="uniform")


# Sets that must be there -----------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    for cls in (datasets.MNIST, datasets.FashionMNIST):
        monkeypatch.setattr(cls, "mirrors", ["http://127.0.0.1:9/"])


@pytest.mark.parametrize(("data", "folder"), [(MNIST, "MNIST"), (FashionMNIST, "FashionMNIST")])
def test_missing_and_no_network(no_network, tmp_path, data, folder):
    with says(DataError, "is not on this machine and could not be downloaded (") as caught:
        data().load()
    text = str(caught.value)
    assert "train-images-idx3-ubyte.gz" in text
    assert str(tmp_path / "data" / folder / "raw") in text
    assert "set PYRO_VAE_DATA to the folder that holds" in text
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_damaged_packed_file(no_network, tmp_path):
    from torchvision.datasets import MNIST as Torchvision

    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for file, _ in Torchvision.resources:
        (raw / file).write_bytes(gzip.compress(b"no digits"))
    text = "train-images-idx3-ubyte.gz: damaged, or another file: its MD5 sum is not f68b3c2dcbea"
    with says(DataError, text):
        MNIST().load()


def test_damaged_unpacked_file(no_network, tmp_path):
    from torchvision.datasets import MNIST as Torchvision

    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for content in (b"", b"no digits", bytes([0, 0, 8, 3]) + bytes(12)):
        for file, _ in Torchvision.resources:
            (raw / file.removesuffix(".gz")).write_bytes(content)
        with says(DataError, f"{raw}: the files of data 'mnist' cannot be read"):
            MNIST().load()


def test_binarized_mnist_missing_and_damaged(tmp_path):
    with says(DataError, "is not on this machine; put binarized_mnist.npz, or") as caught:
        BinarizedMNIST().load()
    assert str(tmp_path / "data" / "binarized_mnist") in str(caught.value)
    assert "set PYRO_VAE_DATA" in str(caught.value)
    folder = tmp_path / "data" / "binarized_mnist"
    folder.mkdir(parents=True)
    np.savez(folder / "binarized_mnist.npz", train=X)
    with says(
        DataError, "binarized_mnist.npz: damaged, or another file: its SHA-256 sum is not 50"
    ):
        BinarizedMNIST().load()
