"""What a request means, and whether it can be taken in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy.orm import Session

from core import policies
from core.situation import Purpose, Selector

from . import datasets, models, samples, situations
from .errors import Conflict, NotFound, Unacceptable
from .resolution import (
    Resolution,
    Rows,
    rows_of_class,
    rows_of_ids,
    rows_of_subject,
)
from .tables import Dataset, Document, Model, Version

MIN_RETAINED = 2
"""Fewest training records that must stay."""


@dataclass(frozen=True)
class Wish:
    """Whom or what to forget, and how, as the caller put it."""

    selector: str
    record_ids: list[str] | None
    subject: str | None
    class_index: int | str | None
    ignore_missing: bool
    policy: policies.Policy
    unlearner: Document | None
    options: Document
    samples: str | None = None
    """Id of the dataset that holds the records, for a model whose training data stays elsewhere."""
    purpose: Purpose = "erasure"

    @property
    def scope(self) -> Selector:
        """``class`` where one is to be forgotten as such, else ``records``."""
        return "records" if self.class_index is None else "class"


@dataclass(frozen=True)
class Found:
    """What the wish means in the model's datasets."""

    rows: Rows
    label: int | None
    counts: dict[str, int]


def usable(
    session: Session, tenant_id: str, model_id: str, *, is_locked: bool = True
) -> tuple[Model, Dataset | None]:
    """Return the model and its dataset; locked, the model stays as it is until the commit.

    There is no dataset where the training data stays elsewhere.
    """
    lock: dict[str, Any] | None = {"read": True} if is_locked else None
    model = session.get(Model, (tenant_id, model_id), with_for_update=lock, populate_existing=True)
    if model is None:
        raise NotFound
    if model.status != "active":
        raise Conflict("model_not_active", "The model was deleted.")
    version = models.current(session, model)
    if version.status == "rejected":
        raise rejected(version)
    dataset = models.dataset_of(session, model)
    if dataset is None:
        return model, None
    if dataset.status == "rejected":
        raise datasets.rejected(dataset)
    if dataset.status != "ready":
        raise Conflict(
            "dataset_not_ready",
            "The dataset of the model is still being read.",
            headers={"Retry-After": "2"},
        )
    return model, dataset


def with_dataset(session: Session, tenant_id: str, model_id: str) -> tuple[Model, Dataset]:
    """Return the model and its dataset, locked; raise ``dataset_missing`` if there is none."""
    model, dataset = usable(session, tenant_id, model_id)
    if dataset is None:
        raise Unacceptable(
            "dataset_missing",
            "The model was registered without its training data, which this needs.",
        )
    return model, dataset


def refuse_selector(model: Model, selector: str) -> None:
    """Refuse to look records up where there is no training data, and samples where there is."""
    if (selector == "samples") == (model.dataset_id is None):
        return
    detail = (
        "The model was registered without its training data: send the records as a dataset of "
        "purpose 'forget', and name it with the selector 'samples'."
        if model.dataset_id is None
        else "The training data of the model is here: name its records, a subject or a class."
    )
    error = {"pointer": "/forget/type", "message": detail, "code": "selector_not_applicable"}
    raise Unacceptable("selector_not_applicable", detail, errors=[error])


def rejected(version: Version) -> Unacceptable:
    """The refusal of anything that names a rejected model, with its cause."""
    cause = version.rejection or {}
    return Unacceptable(
        "upload_rejected",
        f"The model was rejected: {cause.get('code')}: {cause.get('detail')}",
        extra={"cause": cause},
    )


def refuse_unavailable(policy: policies.Policy) -> None:
    """Refuse a policy that needs audits which are not registered."""
    if missing := policies.missing_audits(policy):
        raise Unacceptable(
            "policy_unavailable",
            f"The policy {policy!r} needs audits that are not registered: {', '.join(missing)}.",
        )


def resolve(session: Session, model: Model, dataset: Dataset | None, wish: Wish) -> Found:
    """Resolve the selector to training rows that the lineage has not forgotten yet.

    Args:
        session: of the caller's transaction.
        model: that is to forget.
        dataset: of the model or, of samples, the one that came along.
        wish: whom or what.
    """
    assert dataset is not None, "the selector was refused where there is none"
    tenant_id, label, num_duplicates = model.tenant_id, None, 0
    if wish.selector == "class":
        label = _label(dataset, wish.class_index)
        resolution = rows_of_class(session, tenant_id, dataset.id, label)
    elif wish.selector == "samples":
        resolution = samples.rows(session, model, dataset)
        if wish.class_index is not None:
            label = _label(dataset, wish.class_index)
            samples.refuse_others(session, dataset, label)
    elif wish.selector == "subject":
        assert wish.subject is not None
        resolution = rows_of_subject(session, tenant_id, dataset.id, wish.subject)
    else:
        assert wish.record_ids is not None
        num_duplicates = len(wish.record_ids) - len(set(wish.record_ids))
        resolution = _resolve_ids(session, model, wish)
    excluded = models.excluded_rows(session, tenant_id, model.id)
    rows = np.setdiff1d(resolution.rows, excluded)
    counts = {
        "num_records": len(rows),
        "num_duplicates": num_duplicates,
        "num_missing": resolution.num_missing,
        "num_holdout": resolution.num_holdout,
        "num_already_applied": len(resolution.rows) - len(rows),
    }
    return Found(rows, label, counts)


def _resolve_ids(session: Session, model: Model, wish: Wish) -> Resolution:
    """Resolve ids; those of a separate holdout were never trained on, but are not missing."""
    ids = wish.record_ids or []
    assert model.dataset_id is not None, "ids are looked up only where there is a dataset"
    found = rows_of_ids(session, model.tenant_id, model.dataset_id, ids)
    num_holdout, missing = found.num_holdout, found.missing
    if missing and model.holdout_dataset_id not in (None, model.dataset_id):
        holdout = session.get_one(Dataset, (model.tenant_id, model.holdout_dataset_id))
        if holdout.status == "ready":  # else its index is a part of what it will be
            held = rows_of_ids(session, model.tenant_id, holdout.id, missing)
            num_holdout += len(missing) - held.num_missing
            missing = held.missing
    if missing and not wish.ignore_missing:
        raise Unacceptable(
            "records_not_found",
            f"{len(missing)} record ids are not in the dataset of the model.",
            extra={"num_missing": len(missing)},
        )
    return Resolution(found.rows, num_holdout, missing)


def _label(dataset: Dataset, wanted: int | str | None) -> int:
    names = dataset.class_names or []
    num = max(len(names), dataset.num_classes or 0)
    if isinstance(wanted, str) and Counter(names)[wanted] == 1:
        return names.index(wanted)
    if isinstance(wanted, int) and not isinstance(wanted, bool) and 0 <= wanted < num:
        return wanted
    raise Unacceptable(
        "class_unknown",
        f"The dataset has {num} classes and none of that name or number.",
        errors=[{"pointer": "/forget/class", "message": "unknown", "code": "class_unknown"}],
    )


def refuse_too_small(session: Session, model: Model, dataset: Dataset, rows: Rows) -> None:
    """Refuse when, with all that was accepted before, too little would stay to train on."""
    states = (*models.APPLIED, "queued", "processing")
    # Reading every set of a long queue takes long, and seldom matters.
    most_gone = models.most_rows_of_requests(session, model.tenant_id, model.id, states)
    if (dataset.num_train or 0) - most_gone - len(rows) >= MIN_RETAINED:
        return
    gone = models.rows_of_requests(session, model.tenant_id, model.id, states)
    num_left = (dataset.num_train or 0) - len(models.union([gone, rows]))
    if num_left < MIN_RETAINED:
        raise Unacceptable(
            "retain_set_too_small",
            "Together with the requests accepted before, too few training records would stay.",
            extra={"num_retained": max(num_left, 0), "min_retained": MIN_RETAINED},
        )


def refuse_empty_ladder(
    model: Model, dataset: Dataset | None, wish: Wish, num_forget: int, version: Version
) -> None:
    """Refuse when no unlearner could be tried, or none be judged."""
    situation = situations.situation(
        model,
        dataset,
        policy=wish.policy,
        selector=wish.scope,
        num_forget=num_forget,
        version=version,
        unlearner=wish.unlearner,
        purpose=wish.purpose,
    )
    if policies.ladder(situation):
        return
    if dataset is None and (wish.policy == "exact" or situation.has_holdout):
        detail = "Nothing that the policy tries works without the training data of the model."
        if not situation.has_importance:
            detail = (
                "Neither the training data of the model nor its importance is stored. If that went "
                "with an earlier request, register the version as a new model, with the importance "
                "of the records that stay."
            )
        raise Unacceptable("dataset_missing", detail)
    if wish.policy == "exact" or situation.has_holdout:
        raise Unacceptable(
            "recipe_missing", "Exact unlearning retrains, and the model came without a recipe."
        )
    raise Unacceptable(
        "holdout_missing",
        "Without a holdout nothing can judge approximate unlearning, and without a recipe the "
        "model cannot be retrained.",
    )
