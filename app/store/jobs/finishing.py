"""The end of jobs that read uploads, and every end that is not a success."""

from __future__ import annotations

from datetime import UTC, datetime

from sqlalchemy.orm import Session

from .. import session as sessions
from ..endings import end, problem, reject_models_of, requeue
from ..models import queue_prepare
from ..tables import Baseline, Dataset, Document, Model, Version
from ..trash import throw
from .claiming import hold
from .claims import Claim


def finish_ingest(session: Session, claim: Claim, *, result: Document, blob: str) -> None:
    """Make the dataset, whose records are indexed, ready: keep its canonical file, not the upload.

    Args:
        session: of the caller's transaction.
        claim: of the attempt.
        result: of ``core.ingest``: counts, modality and details.
        blob: key of the canonical file, already adopted.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    dataset = session.get_one(Dataset, (job.tenant_id, job.dataset_id))
    if dataset.status != "validating":
        throw(session, blob)
        end(session, job, "cancelled", epoch=claim.epoch)
        return
    throw(session, dataset.blob)
    dataset.blob, dataset.status = blob, "ready"
    for name in ("num_train", "num_holdout", "num_classes", "modality"):
        setattr(dataset, name, result[name])
    dataset.details = result.get("details", {})
    session.flush()
    end(session, job, "succeeded", epoch=claim.epoch, result={"dataset": dataset.id})


def finish_convert(
    session: Session,
    claim: Claim,
    *,
    blob: str,
    digest: str,
    size_bytes: int,
    verdict: Document,
) -> None:
    """Put the converted weights in the place of the upload, and have them prepared.

    Args:
        session: of the caller's transaction.
        claim: of the attempt.
        blob: key of the converted weights, already adopted.
        digest: sha256 of them, in hex.
        size_bytes: of them.
        verdict: what was found, for readers of ``upload``.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    key = (job.tenant_id, job.version_id)
    version = session.get_one(Version, key, with_for_update=True, populate_existing=True)
    if version.status != "validating":
        throw(session, blob)
        end(session, job, "cancelled", epoch=claim.epoch)
        return
    throw(session, version.blob)
    version.blob, version.digest, version.size_bytes = blob, digest, size_bytes
    level = (job.sandbox or {}).get("level")
    version.upload = {**(version.upload or {}), **verdict, "scan": "passed", "sandbox": level}
    end(session, job, "succeeded", epoch=claim.epoch, result={"version": version.id})
    session.add(queue_prepare(version))
    session.flush()
    model = session.get_one(Model, (job.tenant_id, job.model_id))
    for dataset_id in {model.dataset_id, model.holdout_dataset_id} - {None}:
        dataset = session.get_one(Dataset, (job.tenant_id, dataset_id))
        if dataset.status == "rejected":
            reject_models_of(session, dataset)


def finish_prepare(
    session: Session,
    claim: Claim,
    *,
    num_parameters: int,
    findings: list[Document],
    importance_blob: str | None,
    importance: Document | None = None,
) -> None:
    """Make the version ready, with its baseline findings and its stored importance.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    key = (job.tenant_id, job.version_id)
    version = session.get_one(Version, key, with_for_update=True, populate_existing=True)
    if version.status not in ("validating", "ready"):
        throw(session, importance_blob)
        end(session, job, "cancelled", epoch=claim.epoch)
        return
    if version.importance_blob != importance_blob:
        throw(session, version.importance_blob)
    version.status, version.prepared_at = "ready", datetime.now(UTC)
    version.num_parameters = num_parameters
    version.importance_blob, version.importance = importance_blob, importance
    session.merge(Baseline(tenant_id=job.tenant_id, version_id=version.id, findings=findings))
    session.flush()
    end(session, job, "succeeded", epoch=claim.epoch, result={"version": version.id})


def fail(session: Session, claim: Claim, code: str, detail: str, retryable: bool) -> str:
    """End an attempt that went wrong; the job is tried again later if that may help.

    Args:
        session: of the caller's transaction.
        claim: of the attempt.
        code: what went wrong.
        detail: the same for people, without personal data.
        retryable: whether another attempt may end better, because the runner died or bytes were
            missing or damaged; after ``max_runner_deaths`` of them the job fails with the last
            one's code.

    Returns:
        The state of the job now: ``queued``, ``failed`` or, if that was asked, ``cancelled``.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job, settings = hold(session, claim), sessions.settings()
    deaths = job.runner_deaths + 1
    if not retryable:
        end(session, job, "failed", epoch=claim.epoch, error=problem(code, detail))
    elif job.cancel_requested_at is not None:
        end(session, job, "cancelled", epoch=claim.epoch)
    elif deaths >= settings.max_runner_deaths:
        job.runner_deaths = deaths
        session.flush()
        error = problem(code, f"The last of {deaths} failed attempts: {detail}")
        end(session, job, "failed", epoch=claim.epoch, error=error)
    else:
        waits = settings.retry_backoff_seconds
        delay = waits[min(deaths, len(waits)) - 1]
        requeue(
            session,
            job,
            epoch=claim.epoch,
            delay=delay,
            held_for="backoff",
            runner_deaths=deaths,
        )
    return job.status


def note_sandbox(session: Session, claim: Claim, sandbox: Document) -> None:
    """Write down which walls stood around the runner; goes before the end of the attempt."""
    job = hold(session, claim)
    job.sandbox = sandbox
    session.flush()


def release(
    session: Session, claim: Claim, *, delay: float = 0.0, held_for: str | None = None
) -> None:
    """Give a job back that could not be done here, with its attempt; another worker may go on.

    Args:
        session: of the caller's transaction.
        claim: of the attempt.
        delay: seconds before it is tried again.
        held_for: what it waits for meanwhile.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    if job.cancel_requested_at is not None:
        end(session, job, "cancelled", epoch=claim.epoch)
    else:
        requeue(
            session,
            job,
            epoch=claim.epoch,
            delay=delay,
            held_for=held_for,
            attempts=job.attempts - 1,
        )


def keep_checkpoint(session: Session, claim: Claim, *, blob: str, digest: str) -> None:
    """Note where the training at work can be gone on from; an earlier place is thrown away.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    throw(session, job.checkpoint_blob)
    job.checkpoint_blob, job.checkpoint_digest = blob, digest
    session.flush()


def cancelled(session: Session, claim: Claim) -> None:
    """End a job whose cancellation the attempt has obeyed.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    end(session, hold(session, claim), "cancelled", epoch=claim.epoch)
