"""Shapes of unlearn requests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field, StringConstraints
from sqlalchemy import select
from sqlalchemy.orm import Session

from core.policies import Policy
from core.problem import BatchNormPolicy
from core.situation import Purpose

from ..store import tables
from ..store.errors import NotFound
from .shapes import Links, Metadata, Shape
from .variants import Unlearner

ABOUT_PURPOSE = (
    "`erasure` of records, or `poison_removal` where the records are the known part of a poison; "
    "the ladder differs."
)
Priority = Literal["low", "normal", "high"]
PRIORITIES: dict[Priority, int] = {"low": -1, "normal": 0, "high": 1}
Reference = Annotated[str, StringConstraints(min_length=1, max_length=512)]


class ForgetRecords(Shape):
    """Records by their ids in the model's dataset."""

    type: Literal["record_ids"]
    record_ids: list[Reference] = Field(min_length=1, description="Repeated ids count once.")
    ignore_missing: bool = Field(
        False, description="Go on without ids that are not in the dataset, instead of refusing."
    )


class ForgetSubject(Shape):
    """All records of one person or source."""

    type: Literal["subject"]
    subject_ref: Reference = Field(
        description="As in the dataset's `subject` column. Hashed at once, never stored."
    )


class ForgetClass(Shape):
    """All records of one class."""

    type: Literal["class"]
    class_: Annotated[int, Field(ge=0, lt=2**31)] | Reference = Field(
        alias="class", description="Its label, or its name if the dataset has `class_names`."
    )


class ForgetSamples(Shape):
    """Records that were sent for this, for a model that was registered without its dataset."""

    type: Literal["samples"]
    dataset: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="Id of a dataset of purpose `forget` that is `ready`; all its records of split "
        "`train` are meant. It belongs to this request: its bytes are erased when the request is "
        "completed or cancelled, and kept while it needs attention, for a new request to try again."
    )
    class_: Annotated[int, Field(ge=0, lt=2**31)] | Reference | None = Field(
        None,
        alias="class",
        description="Where they are all records of one class, which is to be forgotten as such: "
        "its label, or its name if the dataset sent has `class_names`. It is then judged as a "
        "class, by never-seen records of it too. Left out, they are records of classes that stay.",
    )


Forget = Annotated[
    ForgetRecords | ForgetSubject | ForgetClass | ForgetSamples, Field(discriminator="type")
]


class UnlearnRequestCreate(Shape):
    """Whom or what to forget, how, and since when it is due."""

    model: Annotated[str, StringConstraints(max_length=64)] = Field(
        description="Id of the model; `@serving` may follow. Its version in force is the base."
    )
    forget: Forget
    policy: Policy = Field("standard", description="Which rungs are tried, and what must pass.")
    unlearner: Unlearner = "auto"
    purpose: Purpose = Field("erasure", description=ABOUT_PURPOSE)
    reason: Annotated[str, StringConstraints(max_length=255)] | None = Field(
        None, description="Such as `gdpr_art_17_1_b`. No personal data."
    )
    received_at: AwareDatetime | None = Field(
        None, description="When the person asked; starts the clock. Now, if left out."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] = Field(0, description="Of all randomness.")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] = 256
    bn_policy: BatchNormPolicy = Field(
        "recalibrate",
        description="What becomes of batch-norm statistics: `recalibrate` measures them anew on "
        "retained records, `frozen` keeps the parent's, `tracked` lets training on retained "
        "records move them. Unlearners that step on forget records take `tracked` as `frozen`.",
    )
    time_limit_seconds: Annotated[float, Field(gt=0, le=7 * 86_400)] = Field(
        21_600, description="Wall-clock limit of the job; a rung past it fails."
    )
    priority: Priority = Field(
        "normal", description="Its place among the waiting work of the same tenant."
    )
    metadata: Metadata = Field(default_factory=dict)


class UnlearnRequest(Shape):
    """A legal case: one selector, one clock, one outcome."""

    object: Literal["unlearn_request"] = "unlearn_request"
    id: str
    model: str
    job_id: str
    status: str = Field(
        description="`queued`, `processing`, `applied`, `completed`, `needs_attention` or "
        "`cancelled`."
    )
    outcome: str | None = Field(
        description="`erased_exact`, `erased_approximate`, `no_influence` or `not_erased`."
    )
    selector: str = Field(description="`record_ids`, `subject`, `class` or `samples`.")
    class_index: int | None = Field(description="Label of the class that is forgotten as such.")
    samples: str | None = Field(description="Id of the dataset that came with the request.")
    counts: dict[str, int] = Field(description="How many records, and what became of the others.")
    purpose: str = Field(description="`erasure` or `poison_removal`.")
    policy: str
    unlearner: dict[str, Any] | Literal["auto"]
    reason: str | None
    problem: dict[str, Any] | None = Field(description="`code` and `detail` if a person must act.")
    version: str | None = Field(description="Id of the version that forgot.")
    metadata: dict[str, str]
    received_at: datetime
    due_at: datetime
    days_left: int
    overdue: bool
    created_at: datetime
    completed_at: datetime | None
    links: Links


def class_of(forget: Forget) -> int | str | None:
    """Return the class that is to be forgotten as such; None if the records are of others."""
    return forget.class_ if isinstance(forget, ForgetClass | ForgetSamples) else None


def model_of(reference: str) -> str:
    """Return the model id of ``mdl_...`` or ``mdl_...@serving``."""
    model_id, _, alias = reference.partition("@")
    if alias not in ("", "serving"):
        raise NotFound()
    return model_id


def shape(session: Session, row: tables.Request) -> UnlearnRequest:
    """Return the shape of a request row."""
    return shapes(session, [row])[0]


def shapes(session: Session, rows: Sequence[tables.Request]) -> list[UnlearnRequest]:
    """Return the shapes of request rows."""
    numbers = _version_numbers(session, rows)
    return [_shape(row, numbers.get(row.applied_version_id or "")) for row in rows]


def _version_numbers(session: Session, rows: Sequence[tables.Request]) -> dict[str, int]:
    wanted = [row.applied_version_id for row in rows if row.applied_version_id is not None]
    if not wanted:
        return {}
    chosen = select(tables.Version.id, tables.Version.number).where(
        tables.Version.tenant_id == rows[0].tenant_id, tables.Version.id.in_(wanted)
    )
    return {row.id: row.number for row in session.execute(chosen)}


def _shape(row: tables.Request, version_number: int | None) -> UnlearnRequest:
    left = row.due_at - datetime.now(UTC)
    is_open = row.completed_at is None and row.status not in ("completed", "cancelled")
    links = {
        "self": f"/unlearn-requests/{row.id}",
        "job": f"/jobs/{row.job_id}",
        "model": f"/models/{row.model_id}",
    }
    if row.samples_dataset_id is not None:
        links["samples"] = f"/datasets/{row.samples_dataset_id}"
    if version_number is not None:
        links["version"] = f"/models/{row.model_id}/versions/{version_number}"
    return UnlearnRequest(
        id=row.id,
        model=row.model_id,
        job_id=row.job_id,
        status=row.status,
        outcome=row.outcome,
        selector=row.selector,
        class_index=row.selector_class,
        samples=row.samples_dataset_id,
        purpose=row.purpose,
        counts=row.counts,
        policy=row.policy,
        unlearner=row.unlearner or "auto",
        reason=row.reason,
        problem=row.problem,
        version=row.applied_version_id,
        metadata=row.meta,
        received_at=row.received_at,
        due_at=row.due_at,
        days_left=left.days,
        overdue=is_open and left.total_seconds() < 0,
        created_at=row.created_at,
        completed_at=row.completed_at,
        links=links,
    )
