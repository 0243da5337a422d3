"""Records that come with a request, for a model whose training data stays elsewhere."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import datasets
from .erasing import OPEN
from .errors import Conflict, NotFound, Unacceptable
from .resolution import Resolution, num_of_other_classes, num_overlapping, rows_of_dataset
from .tables import Dataset, Model, Request


def get(session: Session, tenant_id: str, dataset_id: str, *, is_locked: bool = True) -> Dataset:
    """Return the dataset that came with a request; locked, nobody else can take it meanwhile.

    Raises:
        NotFound: if the tenant has none of that id, or it was erased.
        Conflict: ``dataset_not_ready``.
        Unacceptable: ``upload_rejected``; ``dataset_purpose_mismatch`` if it was not sent to be
            forgotten.
    """
    key, lock = (tenant_id, dataset_id), True if is_locked else None
    dataset = session.get(Dataset, key, with_for_update=lock, populate_existing=True)
    if dataset is None or dataset.status == "deleted":
        raise NotFound
    if dataset.purpose != "forget":
        detail = "The dataset was not registered with the purpose 'forget'."
        raise _wrong("dataset_purpose_mismatch", detail)
    if dataset.status == "rejected":
        raise datasets.rejected(dataset)
    if dataset.status != "ready":
        raise Conflict(
            "dataset_not_ready", "The dataset is still being read.", headers={"Retry-After": "2"}
        )
    return dataset


def rows(session: Session, model: Model, dataset: Dataset) -> Resolution:
    """Resolve a dataset that came along to its training rows; its holdout split doesn't count.

    Raises:
        Conflict: ``in_use`` if another request is to forget it; one of the same model that needs
            attention is tried again by a new one, and so is no obstacle.
        Unacceptable: ``forget_set_empty``, or ``holdout_overlap``.
    """
    others = select(Request.model_id, Request.status).where(
        Request.tenant_id == model.tenant_id,
        Request.samples_dataset_id == dataset.id,
        Request.status.in_(OPEN),
    )
    for model_id, status in session.execute(others):
        if model_id != model.id or status != "needs_attention":
            raise Conflict("in_use", "Another request is to forget this dataset.")
    found = rows_of_dataset(session, model.tenant_id, dataset.id)
    if not len(found.rows):
        raise _wrong("forget_set_empty", "The dataset has no record with split 'train'.")
    holdout_id = model.holdout_dataset_id
    if holdout_id and (num := num_overlapping(session, model.tenant_id, dataset.id, holdout_id)):
        raise Unacceptable(
            "holdout_overlap",
            "Records to forget are in the holdout of the model.",
            extra={"num_overlapping": num},
        )
    return found


def refuse_others(session: Session, dataset: Dataset, label: int) -> None:
    """Refuse samples that are said to be of one class and are not.

    Raises:
        Unacceptable: ``class_mismatch``.
    """
    if num := num_of_other_classes(session, dataset.tenant_id, dataset.id, label):
        detail = f"{num} records of the dataset are of another class."
        error = {"pointer": "/forget/class", "message": detail, "code": "class_mismatch"}
        raise Unacceptable("class_mismatch", detail, errors=[error], extra={"num_others": num})


def _wrong(code: str, detail: str) -> Unacceptable:
    error = {"pointer": "/forget/dataset", "message": detail, "code": code}
    return Unacceptable(code, detail, errors=[error])
