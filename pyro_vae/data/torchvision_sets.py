"""MNIST and Fashion-MNIST, through torchvision."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar, Literal

from pyro_vae.data.base import Dataset
from pyro_vae.data.grey import GreyData
from pyro_vae.data.roots import search_roots, writable_root
from pyro_vae.data.rows import Rows
from pyro_vae.errors import DataError

LEVELS = 256


class TorchvisionData(GreyData):
    """Pictures that torchvision reads from the four files of the MNIST format."""

    torchvision_name: ClassVar[str] = ""

    def load(self) -> Dataset:
        train, test = _read(self.name, self.torchvision_name)
        splits = {**self.hold_out(self.name, train), "test": test}
        return self.dataset(self.name, splits, LEVELS)


class MNIST(TorchvisionData, name="mnist"):
    """70,000 handwritten digits of 28 x 28 pixels, 10,000 of them test data.

    LeCun, Bottou, Bengio and Haffner, Proceedings of the IEEE 86(11), 1998. Binarized dynamically
    (arXiv:1509.00519) unless told otherwise.
    """

    torchvision_name = "MNIST"
    binarize: Literal["none", "threshold", "dynamic", "fixed"] = "dynamic"


class FashionMNIST(TorchvisionData, name="fashion_mnist"):
    """70,000 pieces of clothing of 28 x 28 pixels, 10,000 of them test data (arXiv:1708.07747)."""

    torchvision_name = "FashionMNIST"
    dequantize: Literal["none", "uniform"] = "uniform"


def _read(name: str, torchvision_name: str) -> tuple[Rows, Rows]:
    """Training and test pictures. Files found are only read; what is missing is downloaded."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError, OSError) as error:
        raise DataError(
            f"data '{name}' needs torchvision, which does not import ({error}); install the "
            "torchvision release that belongs to the installed torch"
        ) from None
    cls = getattr(datasets, torchvision_name)
    folders = [root / torchvision_name / "raw" for root in search_roots()]
    packed = [Path(file).name for file, _ in cls.resources]
    for folder in folders:
        if all((folder / Path(file).stem).is_file() for file in packed):
            return _pictures(name, cls, folder.parent.parent, folder)
    for folder in folders:
        if all((folder / file).is_file() for file in packed):
            return _unpack(name, cls, folder)
    return _download(name, cls, folders)


def _unpack(name: str, cls: Any, folder: Path) -> tuple[Rows, Rows]:
    """Pictures from .gz files in a folder that is left as it is: torchvision unpacks a copy."""
    from torchvision.datasets.utils import check_integrity

    for file, md5 in cls.resources:
        if not check_integrity(folder / file, md5):
            raise DataError(
                f"{folder / file}: damaged, or another file: its MD5 sum is not {md5}; delete it "
                "to have it downloaded, or put the right one there"
            )
    with tempfile.TemporaryDirectory(prefix="pyro-vae-") as scratch:
        raw = Path(scratch) / cls.__name__ / "raw"
        raw.mkdir(parents=True)
        for file, _ in cls.resources:
            shutil.copyfile(folder / file, raw / file)
        return _pictures(name, cls, Path(scratch), folder, download=True)


def _download(name: str, cls: Any, folders: list[Path]) -> tuple[Rows, Rows]:
    """Pictures from the network, moved into place when whole, so that another run never sees half.

    They are kept in the data root, in the cache where that is read-only, or else not at all.
    """
    root = writable_root()
    with tempfile.TemporaryDirectory(prefix=".download-", dir=root) as scratch:
        try:
            cls(scratch, train=True, download=True)
        except (RuntimeError, OSError) as error:
            files = ", ".join(file for file, _ in cls.resources)
            places = " or ".join(map(str, folders))
            reason = str(error).strip().splitlines()[-1]
            raise DataError(
                f"data '{name}' is not on this machine and could not be downloaded ({reason}); put "
                f"{files} into {places}, or set PYRO_VAE_DATA to the folder that holds "
                f"{cls.__name__}/raw"
            ) from None
        found = _pictures(name, cls, Path(scratch), Path(scratch) / cls.__name__ / "raw")
        if root is not None:
            raw = root / cls.__name__ / "raw"
            raw.mkdir(parents=True, exist_ok=True)
            for file in sorted((Path(scratch) / cls.__name__ / "raw").iterdir()):
                os.replace(file, raw / file.name)
        return found


def _pictures(
    name: str, cls: Any, root: Path, folder: Path, download: bool = False
) -> tuple[Rows, Rows]:
    """Training and test pictures that torchvision reads under `root`; errors name `folder`."""
    found = []
    for stream, train in ((0, True), (2, False)):
        try:
            pictures = cls(root, train=train, download=download)
            array, labels = pictures.data.numpy(), pictures.targets.numpy()
            if array.ndim != 3 or len(array) != len(labels) or len(array) == 0:
                raise ValueError(f"pictures {array.shape} and labels {labels.shape}")
        except (RuntimeError, ValueError, AssertionError, KeyError, EOFError, OSError) as error:
            raise DataError(
                f"{folder}: the files of data '{name}' cannot be read "
                f"({type(error).__name__}: {error}); delete them to have them downloaded again"
            ) from None
        found.append(Rows(array, labels, stream))
    return found[0], found[1]
