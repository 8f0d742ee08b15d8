"""The small digits that come with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt

from pyro_vae.data.base import Dataset
from pyro_vae.data.grey import GreyData
from pyro_vae.data.rows import Rows

FILE = Path(__file__).with_name("digits.npz")
NUM_TEST = 397
LEVELS = 17


class Digits(GreyData, name="digits"):
    """1797 digits of 8 x 8 pixels and 17 grey levels; 397 are the test data. No download.

    "Optical recognition of handwritten digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
    Repository, 1998, doi:10.24432/C50P49, CC BY 4.0; the test part, as in scikit-learn. Grey values
    are counts of ink in cells of 4 x 4: the threshold keeps the shapes, drawing pixels blurs them.
    """

    binarize: Literal["none", "threshold", "dynamic", "fixed"] = "threshold"
    validation: NonNegativeInt = 200

    def load(self) -> Dataset:
        with np.load(FILE, allow_pickle=False) as file:
            whole = Rows(file["images"], file["labels"])
        return self.dataset(self.name, self.hold_out(self.name, whole, NUM_TEST), LEVELS)
