"""The end of jobs that gather evidence: audits, oracles, reference models.

They serve no request and change no version in force.
"""

from __future__ import annotations

from sqlalchemy.orm import Session

from ..endings import end
from ..ids import new
from ..tables import AuditReport, Document, Model, Version
from ..trash import throw
from .claiming import hold
from .claims import Claim


def finish_audit(session: Session, claim: Claim, *, findings: list[Document]) -> AuditReport:
    """Keep what an audit found.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    assert claim.version is not None, "an audit has a version"
    report = AuditReport(
        tenant_id=job.tenant_id,
        id=new("adt"),
        version_id=claim.version.id,
        job_id=job.id,
        request_id=job.options["request"],
        options={name: value for name, value in job.options.items() if name != "request"},
        findings=findings,
    )
    session.add(report)
    session.flush()
    result = {"version": claim.version.id, "version_number": claim.version.number}
    end(session, job, "succeeded", epoch=claim.epoch, result=result)
    return report


def finish_oracle(
    session: Session,
    claim: Claim,
    *,
    blob: str,
    digest: str,
    size_bytes: int,
    processes: Document | None = None,
) -> Version | None:
    """Store a trained oracle beside the chain; it is never in force.

    Args:
        session: of the caller's transaction.
        claim: of the attempt.
        blob: key of the weights, already adopted.
        digest: sha256 of the weights, in hex.
        size_bytes: of the weights.
        processes: how many shared its training, if several were asked.

    Returns:
        The oracle; None if the model was deleted in the meantime: then the job is cancelled and the
        weights are thrown away.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    base = claim.version
    assert base is not None, "an oracle has a version"
    model = session.get_one(Model, (job.tenant_id, base.model_id))
    if model.status != "active":
        throw(session, blob)
        end(session, job, "cancelled", epoch=claim.epoch)
        return None
    oracle = Version(
        tenant_id=job.tenant_id,
        id=new("ver"),
        model_id=base.model_id,
        role="oracle",
        oracle_of_id=base.id,
        job_id=job.id,
        status="ready",
        digest=digest,
        size_bytes=size_bytes,
        num_parameters=base.num_parameters,
        blob=blob,
    )
    session.add(oracle)
    session.flush()
    result: Document = {"version": oracle.id, "version_number": None}
    if processes is not None:
        result["processes"] = processes
    end(session, job, "succeeded", epoch=claim.epoch, result=result)
    return oracle


def finish_bank(
    session: Session,
    claim: Claim,
    *,
    blob: str,
    num_models: int,
    processes: Document | None = None,
) -> None:
    """Keep a model's reference models, until the model forgets something.

    Args:
        session: of the caller's transaction.
        claim: of the attempt.
        blob: key of the bank, already adopted; thrown away if the model was deleted meanwhile.
        num_models: how many models it holds.
        processes: how many shared their trainings, if several were asked.

    Raises:
        LeaseLost: if the job is not this attempt's any more.
    """
    job = hold(session, claim)
    model = session.get_one(Model, (job.tenant_id, job.model_id))
    if model.status != "active":
        throw(session, blob)
        end(session, job, "cancelled", epoch=claim.epoch)
        return
    throw(session, model.bank_blob)
    model.bank_blob, model.bank_models = blob, num_models
    session.flush()
    result: Document = {"models": num_models}
    if processes is not None:
        result["processes"] = processes
    end(session, job, "succeeded", epoch=claim.epoch, result=result)
