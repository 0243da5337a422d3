"""Verbs over audits of a version: what one looks at, what it can count on, ask for it, read it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from . import admission, models, references
from .errors import Gone, NotFound, Unacceptable
from .ids import new
from .quotas import refuse_full_queue, refuse_spent_day
from .resolution import Rows
from .situations import has_holdout
from .tables import AuditReport, Document, Job, Model, Request, Version


@dataclass(frozen=True)
class Subject:
    """Whose traces an audit looks for in a version."""

    rows: Rows
    """Training rows of the forget sets."""
    forget_classes: tuple[int, ...]
    """Classes that the requests name; empty unless all of them name classes."""
    excluded: Rows
    """Training rows that the lineage has forgotten beside these; they take no part."""
    before: Version | None
    """The last version that was trained on all of them, while its weights are kept."""
    is_forgotten: bool
    """Whether the version has forgotten them, so that its oracles never saw them."""
    in_force: bool
    """Whether no version has forgotten any of them, so that the reference models know them."""


@dataclass(frozen=True)
class Occasion:
    """All that decides what an audit of a version can do."""

    model: Model
    version: Version
    request: Request | None
    has: frozenset[str]
    """Met needs, of ``retain, recipe, holdout, tuning, oracle, references, class, images``."""


def occasion(
    session: Session, tenant_id: str, model_id: str, ref: str, request_id: str | None
) -> Occasion:
    """Find out what an audit of a version could count on.

    Args:
        session: of the caller's transaction; the model stays as it is until its end.
        tenant_id: owner of the model.
        model_id: whose version.
        ref: the version, as ``models.version`` takes it.
        request_id: whose forget set is the subject; None: all that the version has forgotten.

    Raises:
        NotFound: if there is no such model, version or request.
        Conflict: ``model_not_active`` or ``dataset_not_ready``.
        Gone: ``object_erased`` if the weights are.
        Unacceptable: ``dataset_missing``, ``upload_rejected``, ``version_not_in_chain``,
            ``request_of_another_model``, ``forget_set_empty``.
    """
    model, dataset = admission.with_dataset(session, tenant_id, model_id)
    version = models.version(session, tenant_id, model_id, ref)
    if version.role != "chain":
        raise Unacceptable("version_not_in_chain", "An oracle is what audits compare with.")
    if version.blob is None:
        raise Gone("object_erased", "The weights of this version were erased.")
    request = None if request_id is None else _request(session, model, request_id)
    found = subject(session, version, request)
    if not len(found.rows):
        raise Unacceptable(
            "forget_set_empty",
            "There is nothing to look for: "
            + (
                "the version has forgotten nothing; name the request whose records are meant."
                if request is None
                else "none of the request's records was in the training set of this version."
            ),
        )
    held_out = has_holdout(model, dataset)
    gone = len(found.rows) + len(found.excluded)
    met = {
        "retain": (dataset.num_train or 0) > gone,
        "recipe": model.recipe is not None,
        "holdout": held_out,
        "tuning": held_out,
        "oracle": found.is_forgotten and bool(references.oracles(session, version)),
        "references": model.bank_blob is not None and found.in_force,
        "class": bool(found.forget_classes),
        "images": dataset.modality == "image",
    }
    return Occasion(model, version, request, frozenset(need for need in met if met[need]))


def queue(session: Session, found: Occasion, audits: list[Document], options: Document) -> Job:
    """Queue the job that runs these audits.

    Args:
        session: of the transaction that ``found`` was made in.
        found: what is to be audited.
        audits: their configurations, complete.
        options: ``seed``, ``batch_size``, ``time_limit_seconds``.
    """
    refuse_full_queue(session, found.model.tenant_id)
    refuse_spent_day(session, found.model.tenant_id)
    request_id = None if found.request is None else found.request.id
    job = Job(
        tenant_id=found.model.tenant_id,
        id=new("job"),
        kind="audit",
        model_id=found.model.id,
        version_id=found.version.id,
        options={**options, "audits": audits, "request": request_id},
    )
    session.add(job)
    session.flush()
    return job


def subject(session: Session, version: Version, request: Request | None) -> Subject:
    """Return what an audit of a version of the chain looks for.

    Records that were forgotten in the meantime, by later requests too, stay out of everything but
    the subject itself.
    """
    everything = models.excluded_rows(session, version.tenant_id, version.model_id)
    applied = [(each, by) for each, by in session.execute(_applied(version))]
    done = [(each, by) for each, by in applied if request is None or each.id == request.id]
    if request is not None and not done:
        earlier = models.union([each.rows for each, _ in applied])
        rows, asked = np.setdiff1d(request.rows, earlier), [request]
    else:
        rows, asked = models.union([each.rows for each, _ in done]), [each for each, _ in done]
    classes = [each.selector_class for each in asked if each.selector_class is not None]
    return Subject(
        rows=rows,
        forget_classes=tuple(sorted(set(classes))) if len(classes) == len(asked) else (),
        excluded=np.setdiff1d(everything, rows),
        before=_before(session, [by for _, by in done]),
        is_forgotten=bool(done),
        in_force=not np.isin(rows, everything).any(),
    )


def of_version(version: Version) -> Select[AuditReport]:
    """Reports on a version, to be paged or ordered."""
    return select(AuditReport).where(
        AuditReport.tenant_id == version.tenant_id, AuditReport.version_id == version.id
    )


def of_job(session: Session, tenant_id: str, job_id: str) -> AuditReport | None:
    """The report that a job made; None if it has made none."""
    chosen = select(AuditReport).where(
        AuditReport.tenant_id == tenant_id, AuditReport.job_id == job_id
    )
    return session.scalars(chosen).one_or_none()


def _request(session: Session, model: Model, request_id: str) -> Request:
    request = session.get(Request, (model.tenant_id, request_id))
    if request is None:
        raise NotFound
    if request.model_id != model.id:
        raise Unacceptable(
            "request_of_another_model",
            "The request is one of another model.",
            errors=[
                {"pointer": "/request", "message": "another model's", "code": "validation_failed"}
            ],
        )
    return request


def _applied(version: Version) -> Select[Request, Version]:
    """Requests that the version has forgotten, with the version that did."""
    return (
        select(Request, Version)
        .join(
            Version,
            (Version.tenant_id == Request.tenant_id) & (Version.id == Request.applied_version_id),
        )
        .where(
            Request.tenant_id == version.tenant_id,
            Request.model_id == version.model_id,
            Request.status.in_(models.APPLIED),
            Version.number <= version.number,
        )
        .order_by(Version.number, Request.id)
    )


def _before(session: Session, made: list[Version]) -> Version | None:
    """The parent of the first of these versions, if its weights are kept."""
    if not made:
        return None
    parent = session.get(Version, (made[0].tenant_id, made[0].parent_id))
    return parent if parent is not None and parent.blob is not None else None
