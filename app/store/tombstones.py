"""What was deleted, written down outside the database, so that no restored backup brings it back.

A tombstone holds ids and row numbers; that of a request also what it asked for, with the reason and
the metadata in the caller's own words. Replaying one twice changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from . import datasets, models, requests
from .errors import ServiceError
from .jobs import retry
from .tables import ApiKey, Dataset, Document, Job, Model, Record, Request

_CHUNK = 5_000


class Tombstone(BaseModel):
    """One deletion, or one wish for one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["dataset", "model", "key", "key_end", "request", "cancelled_request"]
    tenant: str
    id: str
    at: datetime
    request: Document | None = None
    """What is needed to ask again: model, rows, selector, policy, and how far it has come."""


def export(session: Session) -> Iterator[Tombstone]:
    """Yield everything that was deleted, revoked or asked to be forgotten, datasets last.

    A dataset can only be deleted once no model needs it.
    """
    for key in session.scalars(select(ApiKey).where(ApiKey.revoked_at.is_not(None))):
        yield _tombstone("key", key, key.revoked_at)
    for key in session.scalars(select(ApiKey).where(ApiKey.expires_at.is_not(None))):
        # A key that was made anew may have got its end since the backup.
        yield _tombstone("key_end", key, key.expires_at)
    for request, job in session.execute(
        select(Request, Job)
        .join(Job, (Job.tenant_id == Request.tenant_id) & (Job.id == Request.job_id))
        .order_by(Request.created_at, Request.id)
    ):
        if request.status == "cancelled":
            yield _tombstone("cancelled_request", request, request.completed_at)
        elif len(request.rows):
            yield _tombstone("request", request, request.created_at, _wish(request, job))
    for model in session.scalars(select(Model).where(Model.status == "deleted")):
        yield _tombstone("model", model, model.deleted_at)
    for dataset in session.scalars(select(Dataset).where(Dataset.status == "deleted")):
        yield _tombstone("dataset", dataset, dataset.deleted_at)


def replay(session: Session, stone: Tombstone) -> bool:
    """Delete again, or ask again; return whether anything was changed.

    What the restored database has never heard of holds nothing to delete.

    Raises:
        ServiceError: if it cannot be replayed, with the reason; a person must look.
    """
    keyed: dict[str, Any] = {
        "dataset": Dataset,
        "model": Model,
        "key": ApiKey,
        "key_end": ApiKey,
    }
    row = session.get(keyed.get(stone.kind, Request), (stone.tenant, stone.id))
    if stone.kind == "request":
        return _ask_again(session, stone) if row is None else _try_again(session, row, stone)
    if row is None:
        return False
    if stone.kind == "key":
        return _revoke(row, stone)
    if stone.kind == "key_end":
        return _end(row, stone)
    if stone.kind == "cancelled_request":
        return _cancel(session, row)
    if row.status == "deleted":
        return False
    delete = models.delete if stone.kind == "model" else datasets.delete
    delete(session, stone.tenant, stone.id)
    return True


def _tombstone(
    kind: Any, row: Any, at: datetime | None, request: Document | None = None
) -> Tombstone:
    return Tombstone(
        kind=kind, tenant=row.tenant_id, id=row.id, at=at or row.created_at, request=request
    )


def _wish(request: Request, job: Job) -> Document:
    return {
        "status": request.status,
        "model": request.model_id,
        "selector": request.selector,
        "class": request.selector_class,
        "rows": request.rows.tolist(),
        "policy": request.policy,
        "unlearner": request.unlearner,
        "options": job.options,
        "priority": job.priority,
        "reason": request.reason,
        "purpose": request.purpose,
        "received_at": request.received_at.isoformat(),
        "due_at": request.due_at.isoformat(),
        "meta": request.meta,
    }


def _revoke(key: ApiKey, stone: Tombstone) -> bool:
    if key.revoked_at is not None:
        return False
    key.revoked_at = stone.at
    return True


def _end(key: ApiKey, stone: Tombstone) -> bool:
    if key.expires_at is not None and key.expires_at <= stone.at:
        return False
    key.expires_at = stone.at
    return True


def _cancel(session: Session, request: Request) -> bool:
    if request.status not in ("queued", "processing", "needs_attention"):
        return False
    requests.cancel(session, request.tenant_id, request.id)
    return True


def _try_again(session: Session, request: Request, stone: Tombstone) -> bool:
    """Try the job of a request again that had failed in the backup, and was tried again since."""
    assert stone.request is not None, "a request comes with its wish"
    if request.status != "needs_attention":
        return False
    if stone.request.get("status", "needs_attention") == "needs_attention":
        return False
    retry(session, request.tenant_id, request.job_id)
    return True


def _ask_again(session: Session, stone: Tombstone) -> bool:
    assert stone.request is not None, "a request comes with its wish"
    wish = stone.request
    model = session.get(Model, (stone.tenant, wish["model"]))
    if model is None or model.status == "deleted":
        return False
    if wish["selector"] == "samples":
        raise ServiceError(
            "samples_erased", "The records that came with the request were erased with it."
        )
    what: dict[str, Any] = {"selector": "class", "class_index": wish["class"]}
    if wish["selector"] != "class":
        ids = _record_ids(session, model, wish["rows"])
        what = {"selector": "record_ids", "record_ids": ids}
    request = requests.receive(
        session,
        stone.tenant,
        model_id=model.id,
        policy=wish["policy"],
        unlearner=wish["unlearner"],
        options=wish["options"],
        priority=wish.get("priority", 0),
        reason=wish["reason"],
        purpose=wish["purpose"],
        meta=wish["meta"],
        received_at=datetime.fromisoformat(wish["received_at"]),
        **what,
    )
    request.id, request.selector = stone.id, wish["selector"]
    request.due_at = datetime.fromisoformat(wish["due_at"])
    session.flush()
    return True


def _record_ids(session: Session, model: Model, rows: list[int]) -> list[str]:
    found: list[str] = []
    for start in range(0, len(rows), _CHUNK):
        found += session.scalars(
            select(Record.record_id).where(
                Record.tenant_id == model.tenant_id,
                Record.dataset_id == model.dataset_id,
                Record.row.in_(rows[start : start + _CHUNK]),
            )
        )
    return found
