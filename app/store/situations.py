"""What the rows say about the situation of a request (``core.situation``)."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from core.situation import Policy, Purpose, Selector, Situation

from .budget import Spent
from .tables import Dataset, Document, Job, Model, Version


def has_holdout(model: Model, dataset: Dataset | None) -> bool:
    """Whether there is a holdout record at all."""
    if model.holdout_dataset_id is None:
        return False
    if dataset is None or model.holdout_dataset_id != dataset.id:
        return True
    return bool(dataset.num_holdout)


def situation(
    model: Model,
    dataset: Dataset | None,
    *,
    policy: Policy,
    selector: Selector,
    num_forget: int,
    version: Version | None = None,
    num_excluded: int = 0,
    unlearner: Document | None = None,
    spent: Spent | None = None,
    purpose: Purpose = "erasure",
    time_budget_seconds: float | None = None,
    seconds_per_pass: float | None = None,
) -> Situation:
    """Describe a request.

    Args:
        model: that is to forget.
        dataset: that it was trained on; None if that stays elsewhere.
        policy: of the request.
        selector: ``class`` where one is to be forgotten as such, else ``records``.
        num_forget: records to forget.
        version: the base, as far as it is known.
        num_excluded: training records that the lineage has forgotten.
        unlearner: one unlearner config given by the caller.
        spent: of the deletion budget.
        purpose: of the request.
        time_budget_seconds: what is expected to take longer gives way to what is not.
        seconds_per_pass: as measured (``seconds_per_pass``).
    """
    num_train = None if dataset is None or not dataset.num_train else dataset.num_train
    return Situation.model_validate(
        {
            "policy": policy,
            "selector": selector,
            "num_forget": num_forget,
            "num_train": None if num_train is None else max(1, num_train - num_excluded),
            "has_recipe": model.recipe is not None,
            "has_holdout": has_holdout(model, dataset),
            "has_retain": dataset is not None,
            "has_importance": version is not None and version.importance_blob is not None,
            "estimator": None if version is None else (version.importance or {}).get("estimator"),
            "has_batchnorm": model.has_batchnorm,
            "modality": None if dataset is None else dataset.modality,
            "architecture": model.architecture.get("name"),
            "members": model.architecture.get("members"),
            "epochs": None if model.recipe is None else model.recipe.get("epochs"),
            "num_earlier": 0 if spent is None else spent.num_versions,
            "budget_spent": None if spent is None else spent.reason(),
            "purpose": purpose,
            "time_budget_seconds": time_budget_seconds,
            "seconds_per_pass": seconds_per_pass,
            "unlearner": unlearner,
        }
    )


def seconds_per_pass(session: Session, model: Model) -> float | None:
    """How long the last ``prepare`` took, whose main part is one pass; None if there was none."""
    chosen = select(Job.started_at, Job.finished_at).where(
        Job.tenant_id == model.tenant_id,
        Job.model_id == model.id,
        Job.kind == "prepare",
        Job.status == "succeeded",
        Job.started_at.is_not(None),
        Job.finished_at.is_not(None),
    )
    found = session.execute(chosen.order_by(Job.finished_at.desc()).limit(1)).one_or_none()
    if found is None or found[0] is None or found[1] is None:
        return None
    seconds = (found[1] - found[0]).total_seconds()
    return seconds if seconds > 0 else None
