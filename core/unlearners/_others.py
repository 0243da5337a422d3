"""What a composition takes in: any registered unlearner but some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Union, cast

from pydantic import Discriminator, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from ._registry import UnlearnerOptions, unlearners


@dataclass(frozen=True)
class AnyBut:
    """Validates as any registered unlearner but these, and but those for certain networks.

    The latter train heads or members of their own. A composition must wait with its schema until
    every unlearner is registered: ``defer_build``.
    """

    names: frozenset[str]

    def __get_pydantic_core_schema__(self, _: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        others = tuple(
            entry.config
            for entry in unlearners
            if entry.name not in self.names
            and not cast("type[UnlearnerOptions]", entry.config).networks
        )
        union: Any = Annotated[Union[others], Discriminator("name")]  # noqa: UP007  # computed
        return handler.generate_schema(union)


def default(name: str) -> UnlearnerOptions:
    """Return an unlearner's options as they are by default."""
    return cast("UnlearnerOptions", unlearners[name].config.model_validate({"name": name}))
