"""Verbs over datasets."""

from __future__ import annotations

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from .endings import stop_jobs
from .erasing import OPEN, erase
from .errors import Conflict, NotFound, ServiceError, Unacceptable
from .ids import new
from .quotas import refuse_full_queue, refuse_much_storage
from .resolution import Resolution, rows_of_class, rows_of_ids, rows_of_subject
from .tables import Dataset, Document, Job, Model, Request

__all__ = [
    "Resolution",
    "create",
    "delete",
    "get",
    "rejected",
    "rows_of_class",
    "rows_of_ids",
    "rows_of_subject",
]


def create(
    session: Session,
    tenant_id: str,
    *,
    name: str,
    purpose: str | None,
    class_names: list[str] | None,
    digest: str,
    size_bytes: int,
    blob: str,
    meta: Document,
) -> tuple[Dataset, Job]:
    """Register an uploaded file, and queue the job that reads it.

    Raises:
        TooMany: ``queue_quota_exceeded``.
        TooLarge: ``quota_exceeded``.
    """
    refuse_full_queue(session, tenant_id)
    refuse_much_storage(session, tenant_id, size_bytes)
    dataset = Dataset(
        tenant_id=tenant_id,
        id=new("dst"),
        name=name,
        purpose=purpose,
        class_names=class_names,
        digest=digest,
        size_bytes=size_bytes,
        blob=blob,
        meta=meta,
    )
    job = Job(tenant_id=tenant_id, id=new("job"), kind="ingest", dataset_id=dataset.id)
    session.add(dataset)
    session.flush()
    session.add(job)
    session.flush()
    return dataset, job


def get(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Return the dataset of that id; raise NotFound if the tenant has none."""
    dataset = session.get(Dataset, (tenant_id, dataset_id))
    if dataset is None:
        raise NotFound
    return dataset


def delete(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Remove the bytes and the index of a dataset, and leave its row; again changes nothing.

    Raises:
        Conflict: ``in_use`` while an active model was trained on it or is judged by it, or an
            open request is to forget it.
    """
    dataset = session.get(
        Dataset, (tenant_id, dataset_id), with_for_update=True, populate_existing=True
    )
    if dataset is None:
        raise NotFound
    if dataset.status == "deleted":
        return dataset
    _refuse_if_used(session, dataset)
    stop_jobs(session, Job.tenant_id == tenant_id, Job.dataset_id == dataset_id)
    erase(session, dataset)
    return dataset


def rejected(dataset: Dataset) -> ServiceError:
    """The refusal of anything that names a rejected dataset, with its cause."""
    cause = dataset.rejection or {}
    return Unacceptable(
        "upload_rejected",
        f"The dataset was rejected: {cause.get('code')}: {cause.get('detail')}",
        extra={"cause": cause},
    )


def _refuse_if_used(session: Session, dataset: Dataset) -> None:
    users = select(Model.id).where(
        Model.tenant_id == dataset.tenant_id,
        Model.status == "active",
        or_(Model.dataset_id == dataset.id, Model.holdout_dataset_id == dataset.id),
    )
    if session.scalars(users.limit(1)).first() is not None:
        raise Conflict("in_use", "An active model uses this dataset; delete the model first.")
    askers = select(Request.id).where(
        Request.tenant_id == dataset.tenant_id,
        Request.samples_dataset_id == dataset.id,
        Request.status.in_(OPEN),
    )
    if session.scalars(askers.limit(1)).first() is not None:
        raise Conflict("in_use", "A request is to forget this dataset; cancel the request first.")
