"""What a runner may say: one JSON object a line, checked before anybody believes it.

The runner parses hostile files, so the supervisor treats its words as hostile too.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

MAX_LINE_BYTES = 32 * 2**20
"""Longest line a runner may write; the findings of a large job are below a megabyte."""


Name = Annotated[str, Field(max_length=64)]


class ProtocolError(Exception):
    """A runner said something that is not in the protocol."""


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Ready(_Event):
    """Imports are done; the runner waits for its order."""

    event: Literal["ready"]
    walls: list[Name] = Field(default_factory=list, max_length=16)
    """Those around the runner that it tried and found to hold."""


class RungAtWork(_Event):
    """The rung that is being tried."""

    index: int = Field(ge=0)
    of: int = Field(ge=1)
    method: str = Field(max_length=64)


class Progress(_Event):
    """How far the work is."""

    event: Literal["progress"]
    phase: str = Field(pattern=r"^[a-z_]{1,32}$")
    progress: float = Field(ge=0.0, le=1.0)
    eta_seconds: float | None = Field(None, ge=0.0)
    rung: RungAtWork | None = None
    metrics: dict[Name, float | None] = Field(default_factory=dict, max_length=64)


class Checkpoint(_Event):
    """The state of a training lies in the folder of the order."""

    event: Literal["checkpoint"]
    file: str = Field(pattern=r"^checkpoint-[1-9][0-9]{0,5}\.safetensors$")
    digest: str = Field(pattern=r"^[0-9a-f]{64}$")


class CheckpointIgnored(_Event):
    """The checkpoint that was found is not used: the work starts from zero."""

    event: Literal["checkpoint_ignored"]
    reason: Literal["unreadable", "other_work", "other_training"]


class Interrupted(_Event):
    """The work has stopped because it was asked to; its last checkpoint holds where."""

    event: Literal["interrupted"]


class Done(_Event):
    """The work is done; files lie in the folder of the order."""

    event: Literal["done"]
    result: dict[str, Any]


class Failed(_Event):
    """The work cannot be done; ``retryable`` where trying again may help."""

    event: Literal["failed"]
    code: str = Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")
    detail: str = Field(max_length=1000)
    retryable: bool


Event = Ready | Progress | Checkpoint | CheckpointIgnored | Interrupted | Done | Failed

_events: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def parse(line: bytes) -> Event:
    """Read one line.

    Raises:
        ProtocolError: if it is too long, not JSON, or no known event.
    """
    if len(line) > MAX_LINE_BYTES:
        raise ProtocolError(f"a line of over {MAX_LINE_BYTES} bytes")
    try:
        return _events.validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise ProtocolError(f"{first['loc']}: {first['msg']}") from None
