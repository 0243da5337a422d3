"""Verbs over models and their versions."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any

import numpy as np
from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    Select,
    and_,
    func,
    select,
    type_coerce,
    update,
)
from sqlalchemy.orm import Session

from . import datasets, workers
from .columns import PACKED, unpack
from .endings import stop_jobs
from .erasing import OPEN, release_samples
from .errors import Conflict, NotFound, Unacceptable
from .ids import is_id, new
from .quotas import refuse_full_queue, refuse_large_model, refuse_much_storage
from .resolution import Rows, num_overlapping
from .tables import Baseline, Dataset, Document, Job, Model, Request, Version
from .trash import throw

APPLIED = ("applied", "completed")


def create(
    session: Session,
    tenant_id: str,
    *,
    name: str,
    architecture: Document,
    preprocessing: Document,
    recipe: Document | None,
    dataset_id: str | None,
    holdout_dataset_id: str | None,
    digest: str,
    size_bytes: int,
    num_parameters: int | None,
    blob: str,
    meta: Document,
    importance_blob: str | None = None,
    has_batchnorm: bool | None = None,
    upload_format: str = "safetensors",
) -> tuple[Model, Version, Job]:
    """Register a model with version 1, and queue the job that checks and measures it.

    What is not safetensors is quarantined first: a job of its own converts it, or rejects it.

    Its training data comes along, or stays elsewhere and ``importance_blob`` tells of it.

    Raises:
        NotFound: if a dataset is not the tenant's, or was deleted.
        Unacceptable: ``dataset_missing`` if neither dataset nor importance is given,
            ``importance_redundant`` if both are; ``upload_rejected`` if a dataset was;
            ``holdout_missing`` if its holdout split is empty; ``holdout_overlap`` if a holdout
            record is a training record too; ``quota_model_too_large`` or ``no_capable_worker`` if
            the tenant may not have, or no worker can compute, so large a network.
        TooMany: ``queue_quota_exceeded``.
        TooLarge: ``quota_exceeded`` if the file does not fit beside what the tenant has stored.
    """
    _check_source(dataset_id, importance_blob)
    train = None if dataset_id is None else _usable_dataset(session, tenant_id, dataset_id)
    if holdout_dataset_id is not None:
        holdout = _usable_dataset(session, tenant_id, holdout_dataset_id)
        if train is not None:
            _check_holdout(session, train, holdout)
    model = Model(
        tenant_id=tenant_id,
        id=new("mdl"),
        name=name,
        architecture=architecture,
        has_batchnorm=has_batchnorm,
        preprocessing=preprocessing,
        recipe=recipe,
        dataset_id=dataset_id,
        holdout_dataset_id=holdout_dataset_id,
        split_key=secrets.token_hex(32),
        meta=meta,
    )
    refuse_full_queue(session, tenant_id)
    refuse_much_storage(session, tenant_id, size_bytes)
    if num_parameters is not None:
        refuse_large_model(session, tenant_id, num_parameters)
        workers.refuse_without_room(session, num_parameters)
    version = Version(
        tenant_id=tenant_id,
        id=new("ver"),
        model_id=model.id,
        number=1,
        digest=digest,
        size_bytes=size_bytes,
        num_parameters=num_parameters,
        blob=blob,
        importance_blob=importance_blob,
        upload={
            "format": upload_format,
            "digest": f"sha256:{digest}",
            "size_bytes": size_bytes,
            "scan": "passed" if upload_format == "safetensors" else "pending",
        },
    )
    model.current_version_id = version.id
    job = queue_prepare(version) if upload_format == "safetensors" else _queue_convert(version)
    for row in (model, job, version):
        session.add(row)
        session.flush()
    return model, version, job


def queue_prepare(version: Version) -> Job:
    """Return the job that measures ``version``, to be added."""
    return Job(
        tenant_id=version.tenant_id,
        id=new("job"),
        kind="prepare",
        model_id=version.model_id,
        version_id=version.id,
    )


def _queue_convert(version: Version) -> Job:
    return Job(
        tenant_id=version.tenant_id,
        id=new("job"),
        kind="convert",
        model_id=version.model_id,
        version_id=version.id,
    )


def get(session: Session, tenant_id: str, model_id: str) -> Model:
    """Return the model of that id; raise NotFound if the tenant has none."""
    model = session.get(Model, (tenant_id, model_id))
    if model is None:
        raise NotFound
    return model


def delete(session: Session, tenant_id: str, model_id: str) -> Model:
    """Remove the bytes of a model and cancel its work, and leave its rows; again changes nothing.

    Records that came with its requests go, too.

    A job that runs is asked to stop; its end changes nothing any more.
    """
    model, sent = _locked_with_samples(session, tenant_id, model_id)
    if model.status == "deleted":
        return model
    now = datetime.now(UTC)
    model.status, model.deleted_at = "deleted", now
    throw(session, model.bank_blob)
    model.bank_blob = model.bank_models = None
    session.flush()
    for version in session.scalars(_versions(tenant_id, model_id)):
        throw(session, version.blob, version.importance_blob)
        version.blob = version.importance_blob = version.importance = None
        if version.status != "rejected":
            version.status, version.withdrawn_at = "withdrawn", version.withdrawn_at or now
    session.flush()
    stop_jobs(session, Job.tenant_id == tenant_id, Job.model_id == model_id)
    session.execute(
        update(Request)
        .where(
            Request.tenant_id == tenant_id,
            Request.model_id == model_id,
            Request.status.in_(OPEN),
        )
        .values(status="cancelled", completed_at=now)
    )
    for dataset_id in sent:
        release_samples(session, tenant_id, dataset_id)
    return model


def _locked_with_samples(
    session: Session, tenant_id: str, model_id: str
) -> tuple[Model, list[str]]:
    """Lock the records that came with open requests, then the model: the order of all locks.

    Which records came is certain only under the model's lock; where more did than were locked
    before it, that is let go again.

    Returns:
        The model, and the ids of the datasets of these records.

    Raises:
        NotFound: if the tenant has no such model.
    """
    asked = select(Request.samples_dataset_id).where(
        Request.tenant_id == tenant_id, Request.model_id == model_id, Request.status.in_(OPEN)
    )
    sent: list[str] = []
    while True:
        with session.begin_nested() as attempt:
            for row_id in sent:
                session.get_one(Dataset, (tenant_id, row_id), with_for_update=True)
            key = (tenant_id, model_id)
            model = session.get(Model, key, with_for_update=True, populate_existing=True)
            if model is None:
                raise NotFound
            found = sorted({each for each in session.scalars(asked) if each is not None})
            if set(found) <= set(sent):
                return model, found
            attempt.rollback()
        sent = found


def version(session: Session, tenant_id: str, model_id: str, ref: str | int) -> Version:
    """Return a version by number, by id, or by alias.

    Args:
        session: any.
        tenant_id: owner of the model.
        model_id: whose version.
        ref: ``3``, ``"3"``, ``"ver_..."``, ``"@serving"`` or ``"@latest"``; an oracle has no
            name but its id.

    Raises:
        NotFound: if there is no such model or version.
    """
    model = get(session, tenant_id, model_id)
    chosen, text = _versions(tenant_id, model_id), str(ref)
    if text == "@serving":
        chosen = chosen.where(Version.id == model.current_version_id)
    elif text == "@latest":
        chosen = chosen.where(Version.role == "chain").order_by(Version.number.desc()).limit(1)
    elif is_id(text, "ver"):
        chosen = chosen.where(Version.id == text)
    elif text.isascii() and text.isdigit() and len(text) < 10:
        chosen = chosen.where(Version.number == int(text))
    else:
        raise NotFound
    found = session.scalars(chosen).one_or_none()
    if found is None:
        raise NotFound
    return found


def versions(session: Session, tenant_id: str, model_id: str) -> list[Version]:
    """Return the chain of versions of a model, oldest first."""
    get(session, tenant_id, model_id)
    chain = _versions(tenant_id, model_id).where(Version.role == "chain")
    return [*session.scalars(chain.order_by(Version.number))]


def excluded_rows(session: Session, tenant_id: str, model_id: str) -> Rows:
    """Training rows that the model's lineage has forgotten: int64[N], sorted."""
    return rows_of_requests(session, tenant_id, model_id, APPLIED)


def earlier_requests(session: Session, tenant_id: str, model_id: str) -> dict[str, Rows]:
    """Requests that the model's lineage has applied, oldest first, with the rows of each."""
    chosen = select(Request.id, Request.rows).where(
        Request.tenant_id == tenant_id,
        Request.model_id == model_id,
        Request.status.in_(APPLIED),
        Request.applied_version_id.is_not(None),
        Request.samples_dataset_id.is_(None),
    )
    return {row.id: row.rows for row in session.execute(chosen.order_by(Request.id))}


def rows_of_requests(
    session: Session, tenant_id: str, model_id: str, states: tuple[str, ...]
) -> Rows:
    """Union of the training rows of the model's requests in these states: int64[N], sorted."""
    # As bytes: thousands of small sets are joined faster than unpacked.
    chosen = select(type_coerce(Request.rows, LargeBinary))
    packed = session.scalars(chosen.where(_takes_rows(tenant_id, model_id, states)))
    found: Rows = unpack(b"".join(packed))
    return found


def most_rows_of_requests(
    session: Session, tenant_id: str, model_id: str, states: tuple[str, ...]
) -> int:
    """How many rows that union has at most: as many as its parts have together."""
    size = func.coalesce(func.sum(func.length(Request.rows)), 0)
    found = session.scalar(select(size).where(_takes_rows(tenant_id, model_id, states)))
    return int(found or 0) // PACKED.itemsize


def _takes_rows(tenant_id: str, model_id: str, states: tuple[str, ...]) -> ColumnElement[bool]:
    return and_(
        Request.tenant_id == tenant_id,
        Request.model_id == model_id,
        Request.status.in_(states),
        Request.samples_dataset_id.is_(None),
    )


def union(sets: list[Any]) -> Rows:
    """Union of row sets: int64[N], sorted."""
    return np.unique(np.concatenate([np.empty(0, np.int64), *sets]))


def baseline(session: Session, tenant_id: str, version_id: str) -> list[Document] | None:
    """Findings that ``prepare`` made on a version; None if it has not."""
    found = session.get(Baseline, (tenant_id, version_id))
    return None if found is None else found.findings


def current(session: Session, model: Model) -> Version:
    """The version that ``@serving`` names."""
    found = session.get(Version, (model.tenant_id, model.current_version_id or ""))
    assert found is not None, "a model is stored together with its first version"
    return found


def _versions(tenant_id: str, model_id: str) -> Select[Version]:
    return select(Version).where(Version.tenant_id == tenant_id, Version.model_id == model_id)


def dataset_of(session: Session, model: Model) -> Dataset | None:
    """Return what the model was trained on; None if that stays elsewhere."""
    if model.dataset_id is None:
        return None
    return session.get_one(Dataset, (model.tenant_id, model.dataset_id))


def _check_source(dataset_id: str | None, importance_blob: str | None) -> None:
    if dataset_id is None and importance_blob is None:
        detail = (
            "Name the dataset that the model was trained on, or send the importance of that data "
            "as the part 'importance' of multipart/form-data; a raw body cannot carry it."
        )
        error = {"pointer": "/dataset", "message": "missing", "code": "dataset_missing"}
        raise Unacceptable("dataset_missing", detail, errors=[error])
    if dataset_id is not None and importance_blob is not None:
        detail = "Importance is measured on the dataset; send it only where there is none."
        error = {"pointer": "/importance", "message": detail, "code": "importance_redundant"}
        raise Unacceptable("importance_redundant", detail, errors=[error])


def _usable_dataset(session: Session, tenant_id: str, dataset_id: str) -> Dataset:
    """Return a dataset, kept from being deleted or rejected until the transaction ends."""
    dataset = session.get(
        Dataset, (tenant_id, dataset_id), with_for_update={"read": True}, populate_existing=True
    )
    if dataset is None or dataset.status == "deleted":
        raise NotFound
    if dataset.status == "rejected":
        raise datasets.rejected(dataset)
    if dataset.purpose == "forget":
        raise Conflict("state_conflict", "The dataset was sent only to be forgotten.")
    return dataset


def _check_holdout(session: Session, train: Dataset, holdout: Dataset) -> None:
    """Refuse a holdout that is empty or overlaps; files not read yet are checked by ``prepare``."""
    if {train.status, holdout.status} != {"ready"}:
        return
    if train.id == holdout.id and not train.num_holdout:
        raise Unacceptable("holdout_missing", "The dataset has no record with split 'holdout'.")
    num = num_overlapping(session, train.tenant_id, train.id, holdout.id)
    if num:
        raise Unacceptable(
            "holdout_overlap",
            "The holdout names records of the training split.",
            extra={"num_overlapping": num},
        )
