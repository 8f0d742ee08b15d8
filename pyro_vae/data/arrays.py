"""Your own arrays, from a file or from Python."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, NonNegativeInt

from pyro_vae.component import nearest
from pyro_vae.data.base import SPLITS, Dataset
from pyro_vae.data.grey import GreyData
from pyro_vae.data.rows import Rows
from pyro_vae.errors import DataError, Problem

SUFFIXES = (".npy", ".npz", ".safetensors")
STREAMS = {"train": 0, "validation": 1, "test": 2}
LEVELS = 256
BROKEN = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


class ArrayData(GreyData):
    """Arrays from anywhere: float values, or uint8 grey levels 0 to 255 (or uint8 0 and 1).

    Other integers that are not negative are counts.

    NaN stands for a value that is missing: it becomes 0, and a mask tells so.
    `validation` and `test` rows are held out of the training data by a permutation that never
    changes, where they are not given apart.
    """

    test: NonNegativeInt = 0

    def from_arrays(
        self,
        arrays: Mapping[str, Any],
        labels: Mapping[str, Any],
        name: str,
        where: str,
        exposures: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """The data set of one array per split. `where` begins the error messages."""
        checked = _check_arrays(arrays, where)
        levels = _levels(checked)
        integers = all(array.dtype.kind in "ui" for array in checked.values())
        masks: dict[str, np.ndarray] = {}
        if levels is None:
            checked = {split: _finite(array, split, where) for split, array in checked.items()}
            masks = {split: ~np.isnan(array) for split, array in checked.items()}
            if all(mask.all() for mask in masks.values()):
                masks = {}
            checked = {split: np.nan_to_num(array, copy=False) for split, array in checked.items()}
        self._check_values(checked, levels, where)
        known = _check_labels(labels, checked, where)
        told = _check_exposures(exposures or {}, checked, where)
        splits = {
            split: Rows(
                array,
                known.get(split),
                STREAMS[split],
                mask=masks.get(split),
                exposure=told.get(split),
            )
            for split, array in checked.items()
        }
        self._check_counts(splits, where)
        cut = {**self.hold_out(name, splits.pop("train"), self.test), **splits}
        return self.dataset(name, cut, levels, integers)

    def _check_counts(self, splits: Mapping[str, Rows], where: str) -> None:
        for split in ("validation", "test"):
            count = getattr(self, split)
            if count and split in splits:
                text = f"{count}, but {where} holds {split} data of its own; leave the field out"
                raise DataError(Problem(("data", split), text))

    def _check_values(
        self, arrays: Mapping[str, np.ndarray], levels: int | None, where: str
    ) -> None:
        if self.dequantize != "none" and levels is None:
            train = arrays["train"]
            held = "only 0 and 1" if ((train == 0) | (train == 1)).all() else "other numbers"
            raise DataError(
                f"{where}: dequantize={self.dequantize} needs uint8 grey levels, but 'train' holds "
                f"{held}; save the bytes, or set data.dequantize=none"
            )
        if self.binarize == "none" or levels is not None:
            return
        for split, array in arrays.items():
            flat = array.reshape(len(array), -1)
            outside = ((flat < 0) | (flat > 1)).any(1)
            if outside.any():
                raise DataError(
                    f"{where}: binarize={self.binarize} needs values in [0, 1], but '{split}' has "
                    f"values from {flat.min():g} to {flat.max():g}, outside in {outside.sum()} "
                    f"rows, the first in row {outside.argmax()}; scale them, save bytes as uint8, "
                    "or set data.binarize=none"
                )


class Arrays(ArrayData, name="arrays"):
    """Your own data from a .npz, .safetensors or .npy file.

    A .npz or .safetensors file holds `train`, and if you like `validation`, `test`,
    `train_labels`, `validation_labels` and `test_labels`, and `train_exposure` and so on; or one
    array `x` with `labels` and `exposure`, cut by `validation` and `test`, as a .npy file is. Data
    have shape `[N, ...]`. Nothing is unpickled.
    """

    path: str = Field(min_length=1)

    def load(self) -> Dataset:
        path = Path(self.path).expanduser()
        arrays, labels, exposures = _sort(_read(path), str(path))
        return self.from_arrays(arrays, labels, self.name, str(path), exposures)


def dataset_from_arrays(
    train: Any,
    validation: Any = None,
    test: Any = None,
    labels: Mapping[str, Any] | None = None,
    name: str = "arrays",
    exposures: Mapping[str, Any] | None = None,
    **fields: Any,
) -> Dataset:
    """The data set of tensors or arrays `[N, ...]`, checked as those of a file are.

    Args:
        validation, test: arrays, or how many training data to hold out.
        labels: per split, one integer per row.
        exposures: per split, one positive number per row.
        fields: those of the data `arrays`: binarize, dequantize, train_size, ...

    >>> dataset = dataset_from_arrays(torch.rand(100, 8, 8), binarize="dynamic")

    Raises: `SpecError` for a field that does not fit, `DataError` for data that do not.
    """
    given = {"train": train}
    for split, value in (("validation", validation), ("test", test)):
        (fields if isinstance(value, int) else given)[split] = value
    arrays = {split: _as_numpy(array) for split, array in given.items() if array is not None}
    known = {split: _as_numpy(array) for split, array in (labels or {}).items()}
    told = {split: _as_numpy(array) for split, array in (exposures or {}).items()}
    return ArrayData(**fields).from_arrays(arrays, known, name, f"data '{name}'", told)


# Files -----------------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, np.ndarray]:
    if path.suffix not in SUFFIXES:
        ending = f"ends in '{path.suffix}'" if path.suffix else "has no ending"
        text = f"'{path}' {ending}; expected one of {', '.join(SUFFIXES)}"
        raise DataError(Problem(("data", "path"), text))
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        text = f"'{path}' {what}; expected a file, relative to the folder {Path.cwd()}"
        raise DataError(Problem(("data", "path"), text))
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        with path.open("rb") as file:  # np.load leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"x": loaded}
            return {key: loaded[key] for key in loaded.files}
    except BROKEN as error:
        if "pickle" in str(error):
            raise DataError(
                f"{path}: is no NumPy file, or holds Python objects, which are never loaded since "
                "they can run code; save arrays of numbers with np.save or np.savez"
            ) from None
        raise _damaged(path, error) from None


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return {key: _as_numpy(value) for key, value in load_file(path).items()}
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path}: cannot be read as {path.suffix} ({type(error).__name__}: {error}); the file is "
        "damaged or of another kind, so save it again"
    )


def _as_numpy(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    return np.asarray(value)


def _sort(held: Mapping[str, np.ndarray], where: str) -> tuple[dict[str, np.ndarray], ...]:
    """What a file holds, as arrays, labels and exposures per split."""
    data = [key for key in held if key not in ("labels", "exposure")]
    if "train" not in held and len(data) == 1:
        own = ({"train": held[key]} if key in held else {} for key in ("labels", "exposure"))
        return {"train": held[data[0]]}, *own
    keys = [
        *SPLITS,
        *(f"{split}_labels" for split in SPLITS),
        *(f"{split}_exposure" for split in SPLITS),
    ]
    if "train" not in held:
        found = ", ".join(map(repr, held)) or "nothing"
        raise DataError(
            f"{where}: holds {found}; expected 'train' (with {', '.join(keys[1:])} if you like), "
            "or one array 'x'"
        )
    for key in held:
        if key not in keys:
            raise DataError(f"{where}: holds '{key}', which means nothing here{nearest(key, keys)}")
    arrays = {split: held[split] for split in SPLITS if split in held}
    beside = (
        {split: held[f"{split}_{what}"] for split in SPLITS if f"{split}_{what}" in held}
        for what in ("labels", "exposure")
    )
    return arrays, *beside


# Checks ----------------------------------------------------------------------------------------


def _check_arrays(arrays: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
    """Arrays of numbers `[N, ...]` of one shape and kind; an empty split is left out."""
    for split, array in arrays.items():
        if array.dtype.kind not in "buif":
            raise DataError(
                f"{where}: '{split}' holds {_kind(array)}; expected numbers (float, integer, bool)"
            )
        if array.ndim < 2:
            raise DataError(
                f"{where}: '{split}' has shape {array.shape}; expected [N, ...], one row per datum"
            )
        if array.size == 0 and (split == "train" or len(array)):
            raise DataError(f"{where}: '{split}' is empty (shape {array.shape}); expected [N, ...]")
    train = arrays["train"]
    if len(train) < 2:
        raise DataError(
            f"{where}: 'train' holds one example (shape {train.shape}); expected [N, ...] with N "
            "at least 2"
        )
    for split, array in arrays.items():
        if array.shape[1:] != train.shape[1:]:
            raise DataError(
                f"{where}: a datum of '{split}' has shape {array.shape[1:]}, but one of 'train' "
                f"has {train.shape[1:]}; give all splits one shape"
            )
        if (array.dtype == np.uint8) != (train.dtype == np.uint8):
            raise DataError(
                f"{where}: '{split}' holds {array.dtype}, but 'train' {train.dtype}; uint8 is "
                "scaled to [0, 1] and other numbers are not, so give all splits one type"
            )
    return {split: array for split, array in arrays.items() if len(array)}


def _kind(array: np.ndarray) -> str:
    kinds = {"O": "Python objects", "c": "complex numbers", "U": "text", "S": "text"}
    return kinds.get(array.dtype.kind, str(array.dtype))


def _levels(arrays: Mapping[str, np.ndarray]) -> int | None:
    """256 if these are bytes; None for other numbers, and for bytes that are all 0 or 1."""
    if arrays["train"].dtype != np.uint8 or all(array.max() <= 1 for array in arrays.values()):
        return None
    return LEVELS


def _finite(array: np.ndarray, split: str, where: str) -> np.ndarray:
    """The array as float32. Raises `DataError` for infinite values, and where nothing is known."""
    with np.errstate(over="ignore", invalid="ignore"):
        found = array.astype(np.float32)
    bad = np.isinf(found.reshape(len(found), -1))
    rows = np.asarray(bad.any(1))
    if rows.any():
        raise DataError(
            f"{where}: '{split}' holds {bad.sum()} infinite values in {rows.sum()} of "
            f"{len(rows)} rows, the first in row {rows.argmax()}; remove them, or write NaN where "
            "a value is missing"
        )
    return found


def _check_exposures(
    exposures: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], where: str
) -> dict[str, np.ndarray]:
    for split, given in exposures.items():
        num_rows = len(arrays.get(split, ()))
        if given.shape != (num_rows,) or given.dtype.kind not in "uif":
            raise DataError(
                f"{where}: the exposures of '{split}' have shape {given.shape} and hold "
                f"{_kind(given)}; expected one positive number for each of {num_rows} rows"
            )
        if not bool((np.isfinite(given) & (given > 0)).all()):
            raise DataError(f"{where}: the exposures of '{split}' are not all positive")
    missing = [split for split in arrays if exposures and split not in exposures]
    if missing:
        raise DataError(f"{where}: '{missing[0]}' has no exposures, but other splits have some")
    return {s: given.astype(np.float32) for s, given in exposures.items() if s in arrays}


def _check_labels(
    labels: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], where: str
) -> dict[str, np.ndarray]:
    for split, given in labels.items():
        if split not in SPLITS:
            raise DataError(f"{where}: labels of '{split}'{nearest(split, SPLITS)}")
        num_rows = len(arrays.get(split, ()))
        if given.shape != (num_rows,):
            raise DataError(
                f"{where}: the labels of '{split}' have shape {given.shape}, but there are "
                f"{num_rows} rows; expected one label per row"
            )
        if given.dtype.kind not in "bui":
            raise DataError(
                f"{where}: the labels of '{split}' hold {_kind(given)}; expected integers (-1 "
                "where a label is missing)"
            )
    return {split: given for split, given in labels.items() if split in arrays}
