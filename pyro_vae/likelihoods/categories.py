"""A categorical likelihood over the codes of categories."""

from __future__ import annotations

from pydantic import Field

from pyro_vae.likelihoods.base import LikelihoodModule
from pyro_vae.likelihoods.categorical import Categorical, CategoricalModule
from pyro_vae.part import Shapes


class Categories(Categorical, name="categories"):
    """p(x|z) = prod_d p_d[x_d] for codes x in {0, 1, ..., levels - 1}, as tables hold them."""

    support = "count"
    levels: int = Field(default=2, ge=2)

    def build(self, shapes: Shapes) -> LikelihoodModule:
        return CategoriesModule(shapes, self.levels)


class CategoriesModule(CategoricalModule):
    support = "count"

    def __init__(self, shapes: Shapes, levels: int):
        super().__init__(shapes, levels)
        self.unit = levels - 1
