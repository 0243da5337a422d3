"""One variant, one file: a typed config, a function and a name that agree. Free of torch."""

from __future__ import annotations

import importlib
import json
import pkgutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails

from .errors import UnknownName


def require_name(schema: dict[str, Any]) -> None:
    """Say what unions ask for: a name chooses the variant, though each knows its own."""
    schema["required"] = ["name", *(each for each in schema.get("required", []) if each != "name")]


class Config(BaseModel):
    """Options of one variant: frozen, no unknown fields, every field described and bounded."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, json_schema_extra=require_name
    )

    name: str
    source: ClassVar[str]
    """Where the algorithm comes from: authors, venue, identifier."""


def misfit(model: BaseModel, field: str, why: str) -> ValidationError:
    """Return what a validator of a whole model raises to name the field that does not fit the rest.

    Args:
        model: what was validated.
        field: one that was given, since readers look for it in what they sent.
        why: what is wrong with it.
    """
    wrong = InitErrorDetails(
        type="value_error",
        loc=(field,),
        input=getattr(model, field),
        ctx={"error": ValueError(why)},
    )
    return ValidationError.from_exception_data(type(model).__name__, [wrong])


Run = TypeVar("Run", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[Run]):
    """A registered variant."""

    name: str
    summary: str
    config: type[Config]
    run: Run


class Registry(Generic[Run]):
    """Variants of one kind, filled by decorating one function per file.

    Args:
        kind: what the variants are, for messages ("unlearner").
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[Run]] = {}

    def __call__(self, run: Run) -> Run:
        """Register ``run``; refuse it unless file, function and config agree on the name.

        Raises:
            TypeError: if the last argument is not annotated with a Config, if names disagree, if
                a field lacks a description, or if the name is taken.
        """
        hints = typing.get_type_hints(run)
        hints.pop("return", None)
        config = list(hints.values())[-1] if hints else None
        if not (isinstance(config, type) and issubclass(config, Config)):
            raise TypeError(f"{self.kind} {run.__name__}: its last argument must be a Config")
        name = config.model_fields["name"].default
        names = {name, run.__name__, run.__module__.rpartition(".")[2]}
        if len(names) != 1:
            raise TypeError(f"{self.kind}: file, function and config disagree on the name: {names}")
        self.add(Entry(name, summary_of(config), config, run))
        return run

    def add(self, entry: Entry[Run]) -> None:
        """Register an entry made by hand (a family of networks that share one function)."""
        undescribed = [
            field
            for field, info in entry.config.model_fields.items()
            if field != "name" and not info.description
        ]
        if undescribed:
            raise TypeError(f"{self.kind} {entry.name}: fields without description: {undescribed}")
        if entry.name in self._entries:
            raise TypeError(f"{self.kind} {entry.name} is registered twice")
        self._entries[entry.name] = entry

    def __getitem__(self, name: str) -> Entry[Run]:
        """Return the entry called ``name``; raise UnknownName with the valid names otherwise."""
        try:
            return self._entries[name]
        except KeyError:
            raise UnknownName(
                f"no {self.kind} is called {name!r}; there are {', '.join(self._entries)}"
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[Run]]:
        return iter(sorted(self._entries.values(), key=lambda entry: entry.name))

    def names(self) -> list[str]:
        """Names in alphabetical order."""
        return sorted(self._entries)

    def union(self) -> Any:
        """Return the union of all config types, discriminated by ``name``."""
        configs = tuple(dict.fromkeys(entry.config for entry in self))
        if len(configs) == 1:
            return configs[0]
        return Annotated[typing.Union[configs], Discriminator("name")]  # noqa: UP007  # computed

    def parse(self, raw: object, *, strict: bool = False) -> Config:
        """Validate ``raw`` against the union.

        Args:
            raw: a JSON object.
            strict: whether to refuse what would have to be converted, such as a number in a string.

        Raises:
            pydantic.ValidationError: with one entry per wrong field.
        """
        union: TypeAdapter[Config] = TypeAdapter(self.union())
        if strict:
            return union.validate_json(json.dumps(raw), strict=True)
        return union.validate_python(raw)


def summary_of(config: type[Config]) -> str:
    """First line of the config's docstring: the one-line description of the variant."""
    return (config.__doc__ or "").strip().partition("\n")[0]


def discover(package: str, path: list[str]) -> None:
    """Import every public module of a package, so that its variants register themselves."""
    for module in pkgutil.iter_modules(path):
        if not module.name.startswith("_"):
            importlib.import_module(f"{package}.{module.name}")
