"""The binarized MNIST of the literature."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pyro_vae.data.base import SPLITS, Data, Dataset
from pyro_vae.data.roots import search_roots
from pyro_vae.data.rows import Rows
from pyro_vae.errors import DataError

FOLDER = "binarized_mnist"
PACKED = "binarized_mnist.npz"
KEYS = {"train": "train", "validation": "valid", "test": "test"}
SOURCE = "http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/"
SHA256 = {
    PACKED: "50de2c8299a5a297789293ab2c30f6fc3cb8c359a15e5e88d5501aa18ebb8fa5",
    "binarized_mnist_train.amat": (
        "ad693b29f94c14277b095f5238ddefbbdaaae0939789dd2f4f0205278cee3e4d"
    ),
    "binarized_mnist_valid.amat": (
        "1de3d397c40fe8eeb33dafd4099a1f665ec01e96d9be234aaeeac8a34930e2e2"
    ),
    "binarized_mnist_test.amat": (
        "e6687bfea3f820c174f33b7865140b2a2dd2930ef786f35d45795fc193b5ab2c"
    ),
}


class BinarizedMNIST(Data, name="binarized_mnist"):
    """MNIST in the one fixed binarization that papers report: 50,000 / 10,000 / 10,000, no labels.

    Salakhutdinov and Murray, ICML 2008; files by Larochelle and Murray, AISTATS 2011. The test
    data are sorted by digit, so their first rows are no sample; `test_size` takes a random one.
    """

    def load(self) -> Dataset:
        splits = self.cut(self.name, _read(self.name))
        tensors: dict[str, Any] = {
            split: torch.from_numpy(rows.values.astype(np.float32).reshape(-1, 28, 28))
            for split, rows in splits.items()
        }
        return Dataset(name=self.name, **tensors, support="binary")


def _read(name: str) -> dict[str, Rows]:
    folders = [root / FOLDER for root in search_roots()]
    originals = {split: f"binarized_mnist_{KEYS[split]}.amat" for split in SPLITS}
    for folder in folders:
        if (folder / PACKED).is_file():
            _checked(folder / PACKED)
            with np.load(folder / PACKED, allow_pickle=False) as file:
                bits = {split: np.unpackbits(file[KEYS[split]], axis=1) for split in SPLITS}
            break
        if all((folder / file).is_file() for file in originals.values()):
            bits = {split: _bits(folder / file) for split, file in originals.items()}
            break
    else:
        raise DataError(
            f"data '{name}' is not on this machine; put {PACKED}, or "
            f"{', '.join(originals.values())} from {SOURCE}, into "
            f"{' or '.join(map(str, folders))}, or set PYRO_VAE_DATA to the folder that "
            f"holds {FOLDER}"
        )
    return {split: Rows(bits[split]) for split in SPLITS}


def _bits(path: Path) -> np.ndarray:
    """Rows of 784 numbers, each 0 or 1 in text, one character apart."""
    characters = np.frombuffer(_checked(path), np.uint8)
    return characters.reshape(-1, 2 * 784)[:, ::2] - np.uint8(ord("0"))


def _checked(path: Path) -> bytes:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256[path.name]:
        raise DataError(
            f"{path}: damaged, or another file: its SHA-256 sum is not {SHA256[path.name]}; put "
            "the right one there"
        )
    return content
