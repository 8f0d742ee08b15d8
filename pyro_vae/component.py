"""Values: small, frozen, validated declarations that build modules and round-trip through YAML.

A `Value` is a pydantic model that refuses unknown fields and says what would have fitted. A
`Component` is a value of a *family* (prior, guide, likelihood, network, data) that has a name:

    class VampPrior(Prior, name="vamp"):
        components: PositiveInt = 500

Subclassing registers it; there is no registry file to edit. A field of a spec is declared as
`Annotated[Prior, OneOf(Prior.registry)]` and takes the name, a mapping with `name`, or the value.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic import ValidationError as PydanticValidationError
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from pyro_vae.errors import Problem, SpecError

T = TypeVar("T", bound=BaseModel)


def nearest(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'vamp'? Choices: a, b, vamp"`, for the end of an error message."""
    choices = sorted(choices)
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else "."
    return f"{hint} Choices: {', '.join(choices) or '(none)'}"


def problems_of(cls: type[BaseModel], error: PydanticValidationError) -> list[Problem]:
    """Every mistake pydantic found, one per line, with the field, the value and the choices."""
    found: list[Problem] = []
    for detail in error.errors(include_url=False):
        path = tuple(str(part) for part in detail["loc"])
        cause = detail.get("ctx", {}).get("error")
        if isinstance(cause, SpecError):
            found += [problem.under(*path) for problem in cause.problems]
        elif isinstance(cause, PydanticValidationError):
            found += [problem.under(*path) for problem in problems_of(cls, cause)]
        elif detail["type"] == "extra_forbidden":
            choices = [field for field in cls.model_fields if field != "name"]
            text = f"no such field of {cls.__name__}{nearest(path[-1], choices)}"
            found.append(Problem(path, text))
        elif detail["type"] == "missing":
            found.append(Problem(path, f"missing; {cls.__name__} needs it"))
        elif detail["type"] == "value_error":
            found.append(Problem(path, str(cause)))
        else:
            found.append(Problem(path, f"{_said(detail)} (got {shorten(detail['input'])})"))
    return found


# What a value should have been, by pydantic's kind of error.
EXPECTED = {
    "greater_than": "a number above {gt:g}",
    "greater_than_equal": "a number of at least {ge:g}",
    "less_than": "a number below {lt:g}",
    "less_than_equal": "a number of at most {le:g}",
    "int_type": "an integer",
    "int_parsing": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "a word",
    "list_type": "a list",
    "tuple_type": "a list",
    "too_short": "a list of {min_length} or more",
}


def _said(detail: Mapping[str, Any]) -> str:
    """One mistake in plain words."""
    if detail["type"] == "literal_error":
        choices = re.findall(r"'([^']*)'", detail["ctx"]["expected"])
        close = difflib.get_close_matches(str(detail["input"]), choices, n=1, cutoff=0.5)
        hint = f"; did you mean '{close[0]}'?" if close else ""
        return f"expected {detail['ctx']['expected']}{hint}"
    if detail["type"] in EXPECTED:
        return f"expected {EXPECTED[detail['type']].format(**detail.get('ctx', {}))}"
    return detail["msg"][0].lower() + detail["msg"][1:]


def shorten(value: Any, limit: int = 80) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Value(BaseModel):
    """A frozen pydantic model whose errors are `SpecError`s, one readable line per mistake."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,  # JSON has no word for them
        protected_namespaces=(),
    )

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except PydanticValidationError as error:
            raise SpecError(problems_of(type(self), error)) from None

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers: what YAML and JSON hold."""
        return self.model_dump(mode="json")

    @classmethod
    def from_dict(cls: type[T], data: Any) -> T:
        """The value back from `to_dict`. Raises `SpecError`."""
        if not isinstance(data, Mapping):
            message = f"expected a mapping of {cls.__name__} fields, got {shorten(data)}"
            raise SpecError(message + nearest("", cls.model_fields))
        return cls(**{str(key): value for key, value in data.items()})


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


class Registry(Mapping[str, type[BaseModel]]):
    """The named values of one family. Members register themselves by being defined.

    `members`: those of a family that keeps them itself.
    """

    def __init__(
        self,
        family: str,
        load: Callable[[], Any] = lambda: None,
        members: dict[str, Any] | None = None,
    ):
        self.family = family
        self._load = load
        self._loaded = False
        self._members: dict[str, type[BaseModel]] = {} if members is None else members

    def register(self, name: str, cls: type[BaseModel]) -> None:
        held = self._members.get(name)
        if held is not None and _place(held) != _place(cls):
            raise SpecError(
                f"{self.family} '{name}' is already defined by {_place(held)}; "
                f"give {_place(cls)} another name"
            )
        self._members[name] = cls

    def _all(self) -> dict[str, type[BaseModel]]:
        if not self._loaded:
            self._loaded = True
            self._load()
        return self._members

    def __getitem__(self, name: str) -> type[BaseModel]:
        return self._all()[name]

    def __iter__(self):
        return iter(sorted(self._all()))

    def __len__(self) -> int:
        return len(self._all())

    def name_of(self, value: BaseModel) -> str:
        return value.name  # type: ignore[attr-defined]

    def resolve(self, given: Any) -> BaseModel:
        """The value for a name, a mapping with `name`, or a value. Raises `SpecError`."""
        if isinstance(given, BaseModel):
            if type(given) in self._all().values():
                return given
            if _place(type(given)) in map(_place, self._all().values()):
                raise SpecError(
                    f"{type(given).__name__} was defined anew after this value was made; "
                    "make the value again"
                )
            raise SpecError(f"{type(given).__name__} is no {self.family}{nearest('', self)}")
        if isinstance(given, str):
            given = {"name": given}
        if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
            raise SpecError(
                f"expected the name of a {self.family}, or a mapping with 'name', got "
                f"{shorten(given)}{nearest('', self)}"
            )
        name = given["name"]
        if name not in self:
            raise SpecError(f"no {self.family} is called {shorten(name)}{nearest(name, self)}")
        fields = {str(key): value for key, value in given.items() if key != "name"}
        cls = self[name]
        try:
            return cls(**fields)
        except PydanticValidationError as error:
            raise SpecError(problems_of(cls, error)) from None

    def dump(self, value: BaseModel) -> dict[str, Any]:
        return {"name": self.name_of(value), **value.model_dump(mode="json", exclude={"name"})}


_UNDER_WAY: list[str] = []  # families whose schema is being written


class OneOf:
    """Annotation of a field that holds one member of a registry.

    `without`: names that do not fit there, such as that of the component whose field it is.
    """

    def __init__(self, registry: Registry, without: tuple[str, ...] = ()):
        self.registry, self.without = registry, without

    def _resolve(self, given: Any) -> BaseModel:
        value = self.registry.resolve(given)
        name = self.registry.name_of(value)
        if name in self.without:
            fits = [other for other in self.registry if other not in self.without]
            raise SpecError(f"'{name}' does not fit here{nearest('', fits)}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler):
        return core_schema.no_info_plain_validator_function(
            self._resolve,
            serialization=core_schema.plain_serializer_function_ser_schema(self.registry.dump),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        members = {n: cls for n, cls in self.registry.items() if n not in self.without}
        choices: list[JsonSchemaValue] = [{"enum": list(members), "type": "string"}]
        if self.registry.family in _UNDER_WAY:  # a member that holds another of its family
            nested = {"type": "object", "required": ["name"], "properties": {"name": choices[0]}}
            return {"anyOf": [*choices, nested], "title": self.registry.family}
        _UNDER_WAY.append(self.registry.family)
        try:
            return self._whole_schema(members, choices, handler)
        finally:
            _UNDER_WAY.pop()

    def _whole_schema(
        self,
        members: Mapping[str, Any],
        choices: list[JsonSchemaValue],
        handler: GetJsonSchemaHandler,
    ) -> JsonSchemaValue:
        for name, cls in members.items():
            one = handler.resolve_ref_schema(handler(cls.__pydantic_core_schema__))
            properties = {
                "name": {"const": name, "type": "string"},
                **{key: value for key, value in one.get("properties", {}).items() if key != "name"},
            }
            doc = (cls.__doc__ or "").strip().split("\n")[0]
            required = ["name", *one.get("required", [])]
            choices.append(
                {
                    "type": "object",
                    "title": name,
                    "description": doc,
                    "properties": properties,
                    "required": required,
                    "additionalProperties": False,
                }
            )
        return {"anyOf": choices, "title": self.registry.family}


class Component(Value):
    """A named value of a family. Subclass a family's base with `name="..."` to add one."""

    family: ClassVar[str] = ""
    registry: ClassVar[Registry]
    name: ClassVar[str] = ""

    def __init_subclass__(cls, *, name: str = "", family: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family:
            package = cls.__module__.rpartition(".")[0]
            cls.family = family
            cls.registry = Registry(family, lambda: import_members(package))
        if name:
            cls.name = name

    @classmethod
    def __pydantic_init_subclass__(cls, *, name: str = "", family: str = "", **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if name:
            cls.registry.register(name, cls)

    def to_dict(self) -> dict[str, Any]:
        return self.registry.dump(self)

    @classmethod
    def from_dict(cls: type[T], data: Any) -> T:
        """The value back from `to_dict`, with its `name`; a class that has one may go without."""
        if isinstance(data, Mapping) and "name" not in data and cls.name:  # type: ignore
            data = {"name": cls.name, **data}  # type: ignore[attr-defined]
        value = cls.resolve(data)  # type: ignore[attr-defined]
        if not isinstance(value, cls):
            raise SpecError(f"{shorten(data)} is a {type(value).__name__}, not a {cls.__name__}")
        return value

    @classmethod
    def resolve(cls, given: Any) -> Any:
        """`Prior.resolve("vamp")`: the value for a name, a mapping with `name`, or a value."""
        return cls.registry.resolve(given)


def import_members(package: str) -> dict[str, Any]:
    """Import every module of a package, so that its components register themselves.

    Returns the public classes they define, for the package's own flat namespace: adding or
    deleting a component's file is all there is to adding or deleting the component.
    """
    found: dict[str, Any] = {}
    path = importlib.import_module(package).__path__
    for info in pkgutil.iter_modules(path):
        module = importlib.import_module(f"{package}.{info.name}")
        for key, item in vars(module).items():
            if isinstance(item, type) and item.__module__ == module.__name__ and key[0] != "_":
                found[key] = item
    return found
