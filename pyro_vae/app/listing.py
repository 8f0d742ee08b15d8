"""What there is to choose from: every component, objective, estimator and preset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from pyro_vae.app.experiment import ESTIMATORS, OBJECTIVES, SCHEDULES, presets
from pyro_vae.app.tables import show_table
from pyro_vae.component import nearest
from pyro_vae.data.base import Data
from pyro_vae.errors import RequestError
from pyro_vae.guides.base import Guide
from pyro_vae.likelihoods.base import Likelihood
from pyro_vae.networks.base import Network
from pyro_vae.priors.base import Prior

FAMILIES: dict[str, Mapping[str, type[BaseModel]]] = {
    "priors": Prior.registry,
    "guides": Guide.registry,
    "likelihoods": Likelihood.registry,
    "networks": Network.registry,
    "datasets": Data.registry,
    "objectives": OBJECTIVES,
    "schedules": SCHEDULES,
    "estimators": ESTIMATORS,
}


def show(family: str | None = None) -> None:
    """Print one family, or all. Raises `RequestError` for a family that is none."""
    names = [*FAMILIES, "presets"]
    if family is not None and family not in names:
        raise RequestError(f"no family is called '{family}'{nearest(family, names)}")
    for name in names if family is None else [family]:
        if name == "presets":
            show_table("presets", ("name", "what it is"), _presets())
        else:
            columns = ("name", "what it is", "fields = defaults")
            show_table(name, columns, _members(FAMILIES[name]))


def _members(registry: Mapping[str, type[BaseModel]]) -> Iterator[tuple[str, str, str]]:
    for name, cls in registry.items():
        yield name, first_line(cls.__doc__), ", ".join(_fields(cls))


def _fields(cls: type[BaseModel]) -> Iterator[str]:
    for name, field in cls.model_fields.items():
        if name == "name":
            continue
        default = field.get_default(call_default_factory=True)
        yield f"{name} (required)" if default is PydanticUndefined else f"{name} = {default}"


def _presets() -> Iterator[tuple[str, str]]:
    """Name and first comment of each preset."""
    for name, path in presets().items():
        first = path.read_text(encoding="utf-8").splitlines()[0]
        yield name, first.lstrip("# ")


def first_line(doc: str | None) -> str:
    return (doc or "").strip().split("\n")[0]
