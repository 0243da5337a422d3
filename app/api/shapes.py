"""What all shapes share. A shape never travels below ``app/api``."""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

Item = TypeVar("Item")


class Shape(BaseModel):
    """Something that goes in or out; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Nothing(Shape):
    """A body without fields."""


class Page(Shape, Generic[Item]):
    """One page of a list, newest first."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool
    next_cursor: str | None = Field(
        description="Give it as `after` (or `before`, if you came so) to read on."
    )


def _few(metadata: dict[str, str]) -> dict[str, str]:
    if len(metadata) > 16:
        raise ValueError("at most 16 pairs")
    return metadata


Name = Annotated[str, StringConstraints(min_length=1, max_length=255)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^(sha256:)?[0-9a-f]{64}$")]
Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=64)],
        Annotated[str, StringConstraints(max_length=512)],
    ],
    AfterValidator(_few),
    Field(description="At most 16 pairs of your own. No personal data.", max_length=16),
]
Links = Annotated[dict[str, str], Field(description="Paths of related things; `self` is its own.")]
Rejection = Annotated[
    dict[str, str] | None,
    Field(
        description="`code` and `detail` of why it was rejected. While it is `validating`: of why "
        "the job that reads or checks it failed, for no fault of the upload; "
        "`POST /jobs/{job_id}/retry` tries that again."
    ),
]
