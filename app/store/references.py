"""Verbs over models that are trained only to compare with: oracles of a version, a model's bank."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from . import admission, models
from .endings import end, problem
from .errors import Conflict, Gone, Unacceptable
from .ids import new
from .quotas import refuse_full_queue, refuse_spent_day
from .situations import has_holdout
from .tables import Document, Job, Model, Version
from .trash import throw

MOST_MODELS = 16
"""Most reference models of a bank."""


def oracles(session: Session, version: Version) -> list[Version]:
    """Oracles of a version whose weights are there, oldest first."""
    chosen = select(Version).where(
        Version.tenant_id == version.tenant_id,
        Version.oracle_of_id == version.id,
        Version.status == "ready",
        Version.blob.is_not(None),
    )
    return [*session.scalars(chosen.order_by(Version.id))]


def queue_oracle(
    session: Session, tenant_id: str, model_id: str, ref: str, options: Document
) -> Job:
    """Queue the training of a model that never saw what a version has forgotten.

    Args:
        session: of the caller's transaction.
        tenant_id: owner of the model.
        model_id: whose version.
        ref: the version, as ``models.version`` takes it; only the one in force can have oracles,
            because any other was trained on records that must not be trained on again.
        options: ``seed``, ``time_limit_seconds``.

    Raises:
        NotFound: if there is no such model or version.
        Conflict: ``model_not_active``, ``dataset_not_ready`` or ``version_not_ready``.
        Gone: ``version_withdrawn``.
        Unacceptable: ``dataset_missing``, ``upload_rejected``, ``version_not_in_chain``,
            ``recipe_missing``, ``forget_set_empty``.
    """
    model, _ = admission.with_dataset(session, tenant_id, model_id)
    version = models.version(session, tenant_id, model_id, ref)
    if version.role != "chain":
        raise Unacceptable("version_not_in_chain", "An oracle has no oracle of its own.")
    if version.status == "validating":
        raise Conflict(
            "version_not_ready",
            "This version is still being checked.",
            headers={"Retry-After": "2"},
        )
    if version.id != model.current_version_id:
        raise Gone("version_withdrawn", "This version was replaced by another.")
    _need_recipe(model)
    if not len(models.excluded_rows(session, tenant_id, model_id)):
        raise Unacceptable("forget_set_empty", "The version has forgotten nothing yet.")
    return _queue(session, model, "oracle", options, version_id=version.id)


def queue_bank(session: Session, tenant_id: str, model_id: str, options: Document) -> Job:
    """Queue the training of a model's reference models.

    Args:
        session: of the caller's transaction.
        tenant_id: owner of the model.
        model_id: whose bank.
        options: ``models`` (how many), ``seed``, ``batch_size``.

    Raises:
        NotFound: if there is no such model.
        Conflict: ``model_not_active``, ``dataset_not_ready``, or ``reference_bank_exists`` if there
            is one, or one is on its way.
        Unacceptable: ``dataset_missing``, ``upload_rejected``, ``recipe_missing`` or
            ``holdout_missing``.
    """
    return _queue(session, without_bank(session, tenant_id, model_id), "bank", options)


def without_bank(session: Session, tenant_id: str, model_id: str) -> Model:
    """Return a model whose reference models may be trained, locked; refuse as ``queue_bank``."""
    # Two calls at once must not both find that there is none.
    session.get(Model, (tenant_id, model_id), with_for_update=True)
    model, dataset = admission.with_dataset(session, tenant_id, model_id)
    _need_recipe(model)
    if not has_holdout(model, dataset):
        raise Unacceptable(
            "holdout_missing", "Reference models are held against records that nobody trained on."
        )
    if model.bank_blob is not None:
        raise Conflict("reference_bank_exists", "The model has a reference bank.")
    at_work = select(Job.id).where(
        Job.tenant_id == tenant_id,
        Job.model_id == model_id,
        Job.kind == "bank",
        Job.status.in_(("queued", "running")),
    )
    busy = session.scalars(at_work.limit(1)).one_or_none()
    if busy is not None:
        raise Conflict(
            "reference_bank_exists",
            "The model's reference bank is being trained.",
            extra={"job": busy},
        )
    return model


def drop(session: Session, model: Model, version: Version) -> None:
    """Let go of all that was trained on records that the model has just forgotten.

    Args:
        session: of the transaction that publishes.
        model: which forgot.
        version: the one that was in force before.
    """
    throw(session, model.bank_blob)
    model.bank_blob = model.bank_models = None
    for oracle in oracles(session, version):
        throw(session, oracle.blob)
        oracle.status, oracle.withdrawn_at = "withdrawn", datetime.now(UTC)
        oracle.blob = None
    session.flush()
    waiting = select(Job).where(
        Job.tenant_id == version.tenant_id,
        Job.version_id == version.id,
        Job.kind == "oracle",
        Job.status == "queued",
    )
    cause = problem("version_withdrawn", "The version was replaced before its oracle was trained.")
    for job in session.scalars(waiting.with_for_update()).all():
        end(session, job, "cancelled", error=cause)
    interrupted = select(Job).where(
        Job.tenant_id == version.tenant_id,
        Job.model_id == model.id,
        Job.status == "queued",
        Job.checkpoint_blob.is_not(None),
    )
    for job in session.scalars(interrupted.order_by(Job.id).with_for_update()).all():
        throw(session, job.checkpoint_blob)
        job.checkpoint_blob = job.checkpoint_digest = None
    session.flush()


def _need_recipe(model: Model) -> None:
    if model.recipe is None:
        raise Unacceptable(
            "recipe_missing", "Training again needs a recipe, and the model came without one."
        )


def _queue(
    session: Session, model: Model, kind: str, options: Document, version_id: str | None = None
) -> Job:
    refuse_full_queue(session, model.tenant_id)
    refuse_spent_day(session, model.tenant_id)
    job = Job(
        tenant_id=model.tenant_id,
        id=new("job"),
        kind=kind,
        model_id=model.id,
        version_id=version_id,
        options=options,
    )
    session.add(job)
    session.flush()
    return job
