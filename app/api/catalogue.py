"""What is registered: unlearners, pruners, audits and networks, straight from the registries."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path
from pydantic import Field

from core import networks
from core.audits import audits
from core.catalogue import needs_of_pruner, needs_of_unlearner, notes
from core.pruners import pruners
from core.registry import Entry
from core.unlearners import unlearners

from ..store.errors import NotFound
from .deps import requires
from .problems import problems
from .shapes import Page, Shape

router = APIRouter(tags=["catalogue"])
READER = [requires("models:read")]


class Variant(Shape):
    """A registered variant with the JSON Schema of its options."""

    object: str
    name: str
    summary: str
    source: str = Field(description="Authors, venue and identifier.")
    json_schema: dict[str, Any] = Field(
        alias="schema", serialization_alias="schema", description="JSON Schema of its options."
    )


class Unlearner(Variant):
    """A way to forget."""

    object: Literal["unlearner"] = "unlearner"
    exact: bool = Field(description="Equal to retraining by construction.")
    needs: list[str] = Field(
        description="What must be registered with the model to use it with its default options; "
        "`importance` is stored, or measured where the training data is. Of `prune_first` and "
        "`tuned` the options decide: they need what their parts need, too."
    )
    networks: list[str] = Field(description="Architectures it is for; empty for any.")
    cost: str = Field(description="Time and memory, in words.")
    promise: str = Field(description="What can be relied on, and what can't.")


class Pruner(Variant):
    """A way to make a model sparse before it forgets."""

    object: Literal["pruner"] = "pruner"
    needs: list[str] = Field(
        description="What must be registered with the model to use it with its default options."
    )
    keeps_parent: bool = Field(
        description="Whether its mask is the parent's own, so that no exact unlearner can use it."
    )
    cost: str = Field(description="Time and memory, in words.")
    promise: str = Field(description="What can be relied on, and what can't.")


class Audit(Variant):
    """A check of what was forgotten, or of what was kept."""

    object: Literal["audit"] = "audit"
    routine: bool = Field(
        description="Whether it runs on every rung of a ladder; the others run on demand alone."
    )
    needs: list[str] = Field(description="What must be there; without it, it is inconclusive.")
    reference: str = Field(description="What its values are to be held against, in words.")


class Network(Variant):
    """An architecture that a checkpoint can have."""

    object: Literal["network"] = "network"


@router.get(
    "/unlearners",
    operation_id="list_unlearners",
    response_model=Page[Unlearner],
    dependencies=READER,
)
def list_unlearners() -> Page[Unlearner]:
    """List the unlearners, with the options that `POST /unlearn-requests` takes."""
    return _all([_unlearner(entry) for entry in unlearners])


@router.get(
    "/unlearners/{name}",
    operation_id="get_unlearner",
    response_model=Unlearner,
    dependencies=READER,
    responses=problems(NotFound),
)
def get_unlearner(name: Annotated[str, Path(description="Name of the unlearner.")]) -> Unlearner:
    """Read one unlearner."""
    if name not in unlearners:
        raise NotFound()
    return _unlearner(unlearners[name])


@router.get(
    "/pruners", operation_id="list_pruners", response_model=Page[Pruner], dependencies=READER
)
def list_pruners() -> Page[Pruner]:
    """List the pruners, with the options that the unlearner `prune_first` takes."""
    return _all([_pruner(entry) for entry in pruners])


@router.get("/audits", operation_id="list_audits", response_model=Page[Audit], dependencies=READER)
def list_audits() -> Page[Audit]:
    """List the audits: those that run on every rung, and those that run on demand alone."""
    return _all([_audit(entry) for entry in audits])


@router.get(
    "/networks", operation_id="list_networks", response_model=Page[Network], dependencies=READER
)
def list_networks() -> Page[Network]:
    """List the architectures, with the options that `POST /models` takes."""
    return _all([Network.model_validate(entry) for entry in networks.catalogue()])


def _all(data: list[Any]) -> Page[Any]:
    return Page(data=data, has_more=False, next_cursor=None)


def _unlearner(entry: Entry[Any]) -> Unlearner:
    config: Any = entry.config
    return Unlearner(
        **_fields(entry),
        exact=config.exact,
        needs=list(needs_of_unlearner(entry)),
        networks=list(config.networks),
        **_account(entry),
    )


def _pruner(entry: Entry[Any]) -> Pruner:
    config: Any = entry.config
    return Pruner(
        **_fields(entry),
        needs=list(needs_of_pruner(entry)),
        keeps_parent=config.keeps_parent,
        **_account(entry),
    )


def _audit(entry: Entry[Any]) -> Audit:
    config: Any = entry.config
    return Audit(
        **_fields(entry),
        routine=config.routine,
        needs=list(config.needs),
        reference=notes(entry)["Reference"],
    )


def _account(entry: Entry[Any]) -> dict[str, str]:
    said = notes(entry)
    return {"cost": said["Cost"], "promise": said["Promise"]}


def _fields(entry: Entry[Any]) -> dict[str, Any]:
    return {
        "name": entry.name,
        "summary": entry.summary,
        "source": entry.config.source,
        "schema": entry.config.model_json_schema(),
    }
