"""What operators count, read from the rows: no broker, no counter of a process that may be gone.

Labels come from closed lists, and no figure tells one tenant from another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any, Literal, cast, get_args

from sqlalchemy import ColumnElement, case, func, select
from sqlalchemy.orm import Session

from core.findings import Gate
from core.methods import METHODS

from . import clock, workers
from .clock import seconds
from .jobs.queueing import is_due
from .status import (
    BLAMELESS,
    REQUEST_TERMINAL,
    DatasetStatus,
    JobKind,
    JobStatus,
    RequestStatus,
    VersionStatus,
)
from .tables import Dataset, Job, Model, Request, Rung, Trash, Version

Labels = tuple[str, ...]
Values = Mapping[Labels, float]

CODES = tuple(
    sorted(
        (*BLAMELESS, "cancelled", "evidence_insufficient", "ladder_exhausted", "upload_rejected")
    )
)
"""Codes of failures that operators tell apart; all others say that the material is unusable."""
REFUSED = "refused"
LOST = {"runner_died": Job.runner_deaths, "lease_lost": Job.lost_leases}
"""Ends of attempts that say nothing of the job, and where they are counted."""
BUCKETS = (1.0, 10.0, 60.0, 600.0, 3600.0, 6 * 3600.0, 86_400.0, 7 * 86_400.0, 30 * 86_400.0)
"""Upper bounds of times to erasure, in seconds."""
SOON = timedelta(days=7)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Figure:
    """One metric: ``lethe_`` + ``name``."""

    name: str
    help: str
    labels: Labels
    read: Callable[[Session], Values]
    kind: Literal["gauge", "counter"] = "gauge"


@dataclass(frozen=True)
class Distribution:
    """Times in seconds, counted up to each bound."""

    counts: tuple[float, ...]
    """One per bound, each including those before, then all."""
    total: float


def erasure(session: Session) -> dict[str, Distribution]:
    """Times from a request's arrival to its completion, by outcome."""
    took: ColumnElement[float] = seconds(Request.completed_at) - seconds(Request.created_at)
    upto = [func.sum(case((took <= bound, 1), else_=0)) for bound in BUCKETS]
    chosen = (
        select(Request.outcome, func.sum(took), func.count(), *upto)
        .where(Request.status == "completed", Request.outcome.is_not(None))
        .group_by(Request.outcome)
    )
    return {
        outcome: Distribution((*map(float, counts), float(num)), float(total))
        for outcome, total, num, *counts in session.execute(chosen)
    }


def skew(session: Session) -> float:
    """Seconds that this machine's clock is ahead of the database's."""
    return datetime.now(UTC).timestamp() - (session.scalar(select(clock.now())) or 0.0)


def _states(states: object) -> list[Labels]:
    return [(state,) for state in get_args(states)]


def _all(known: Iterable[Labels], found: Iterable[Any]) -> Values:
    """Values by labels, with a zero for what was not found."""
    return dict.fromkeys(known, 0.0) | {tuple(row[:-1]): float(row[-1] or 0) for row in found}


def _one(session: Session, chosen: Any) -> Values:
    return {(): float(session.scalar(chosen) or 0)}


def _jobs(session: Session) -> Values:
    known = product(get_args(JobKind), get_args(JobStatus))
    counted = select(Job.kind, Job.status, func.count()).group_by(Job.kind, Job.status)
    return _all(known, session.execute(counted))


def _oldest(session: Session) -> Values:
    since = case((Job.status == "running", Job.started_at), else_=Job.created_at)
    age = func.max(clock.now() - seconds(since))
    oldest = select(Job.status, age).where(Job.status.in_(("queued", "running")))
    return _all([("queued",), ("running",)], session.execute(oldest.group_by(Job.status)))


def _due(session: Session) -> Values:
    return _one(session, select(func.count()).select_from(Job).where(is_due()))


def _lag(session: Session) -> Values:
    since = case((Job.run_after > 0, Job.run_after), else_=seconds(Job.created_at))
    unheard = select(func.max(clock.now() - since)).where(is_due(), Job.dispatched_at.is_(None))
    return {(): max(0.0, _one(session, unheard)[()])}


def _attempts(session: Session) -> Values:
    running = func.sum(case((Job.status == "running", 1), else_=0))
    done = func.sum(case(((Job.status == "succeeded") & (Job.epoch > 0), 1), else_=0))
    chosen = select(func.sum(Job.epoch) - running, done, *map(func.sum, LOST.values()))
    ended, succeeded, *lost = (float(value or 0) for value in session.execute(chosen).one())
    found: dict[Labels, float] = {("succeeded",): succeeded}
    found |= {(name,): num for name, num in zip(LOST, lost, strict=True)}
    return found | {("other",): ended - sum(found.values())}


def _sum(column: Any) -> Callable[[Session], Values]:
    return lambda session: _one(session, select(func.sum(column)))


def _failures(session: Session) -> Values:
    code = Job.error["code"].as_string()
    counted = select(code, func.count()).where(Job.status == "failed").group_by(code)
    found: Counter[str] = Counter()
    for name, num in session.execute(counted):
        found[name if name in CODES else REFUSED] += num
    return {(name,): float(found[name]) for name in (*CODES, REFUSED)}


def _expired(session: Session) -> Values:
    expired = select(func.count()).where(Job.status == "running", Job.lease_until < clock.now())
    return _one(session, expired)


def _lost_twice(session: Session) -> Values:
    lost = select(func.count()).where(
        Job.status.in_(("queued", "running")), Job.lost_leases + Job.runner_deaths >= 2
    )
    return _one(session, lost)


def _requests(session: Session) -> Values:
    counted = select(Request.status, func.count()).group_by(Request.status)
    return _all(_states(RequestStatus), session.execute(counted))


def _open_by(due: ColumnElement[bool]) -> Any:
    return select(func.count()).where(Request.status.not_in(REQUEST_TERMINAL), due)


def _overdue(session: Session) -> Values:
    return _one(session, _open_by(Request.due_at < datetime.now(UTC)))


def _due_soon(session: Session) -> Values:
    now = datetime.now(UTC)
    return _one(session, _open_by(Request.due_at.between(now, now + SOON)))


def _versions(session: Session) -> Values:
    counted = select(Version.status, func.count()).group_by(Version.status)
    return _all(_states(VersionStatus), session.execute(counted))


def _datasets(session: Session) -> Values:
    counted = select(Dataset.status, func.count()).group_by(Dataset.status)
    return _all(_states(DatasetStatus), session.execute(counted))


def _models(session: Session) -> Values:
    return _one(session, select(func.count()).where(Model.status == "active"))


def _bytes(session: Session) -> Values:
    held = {
        ("weights",): select(func.sum(Version.size_bytes)).where(Version.blob.is_not(None)),
        ("datasets",): select(func.sum(Dataset.size_bytes)).where(Dataset.blob.is_not(None)),
    }
    return {what: float(session.scalar(chosen) or 0) for what, chosen in held.items()}


def _trash(session: Session) -> Values:
    return _one(session, select(func.count()).select_from(Trash))


def _oldest_trash(session: Session) -> Values:
    return _one(session, select(func.max(clock.now() - seconds(Trash.created_at))))


def _workers(session: Session) -> Values:
    found = Counter((worker.kind,) for worker in workers.live(session))
    return _all([("celery",), ("embedded",)], ((*kind, num) for kind, num in found.items()))


def _slots(session: Session) -> Values:
    return {(): float(workers.slots(session))}


def _sandbox(session: Session) -> Values:
    found = Counter((str(worker.sandbox),) for worker in workers.live(session) if worker.sandbox)
    return _all([("L0",), ("L1",), ("L2",)], ((*level, num) for level, num in found.items()))


def _memory(session: Session) -> Values:
    known = [worker.memory_bytes for worker in workers.live(session) if worker.memory_bytes]
    return {(): float(max(known, default=0))}


def _scratch(session: Session) -> Values:
    shares = [worker.scratch_free_share for worker in workers.live(session)]
    known = [share for share in shares if share is not None]
    return {(): min(known)} if known else {}


def _missing(session: Session) -> Values:
    return {
        (): float(max((worker.missing_blobs or 0 for worker in workers.live(session)), default=0))
    }


def _recent(*columns: Any) -> Any:
    return (
        select(*columns)
        .join(Job, (Job.tenant_id == Rung.tenant_id) & (Job.id == Rung.job_id))
        .where(Job.finished_at > datetime.now(UTC) - DAY)
    )


def _rungs(session: Session) -> Values:
    method = Rung.body["unlearner"]["name"].as_string()
    status = Rung.body["status"].as_string()
    counted = _recent(method, status, func.count()).group_by(method, status)
    found: Counter[Labels] = Counter()
    for name, state, num in session.execute(counted):
        found[name if name in METHODS else "other", state] += num
    return {labels: float(num) for labels, num in found.items()}


def _gates(session: Session) -> Values:
    kinds = get_args(Gate.model_fields["kind"].annotation)
    verdicts = get_args(Gate.model_fields["verdict"].annotation)
    found = Counter(
        (cast("str", gate["kind"]), cast("str", gate["verdict"]))
        for gates in session.scalars(_recent(Rung.body["gates"]))
        for gate in gates or []
    )
    return {labels: float(found[labels]) for labels in product(kinds, verdicts)}


FIGURES = (
    Figure("jobs", "Jobs by kind and status.", ("kind", "status"), _jobs),
    Figure("jobs_due", "Queued jobs that could run at once.", (), _due),
    Figure("oldest_job_seconds", "Age of the oldest unfinished job.", ("status",), _oldest),
    Figure("dispatch_lag_seconds", "Longest that a due job has not been rung for.", (), _lag),
    Figure(
        "attempts_total",
        "Attempts at jobs that have ended; other: refused, failed, cancelled or given back.",
        ("outcome",),
        _attempts,
        "counter",
    ),
    Figure(
        "runner_deaths_total",
        "Attempts whose runner ended without a last word, or whose bytes were missing.",
        (),
        _sum(Job.runner_deaths),
        "counter",
    ),
    Figure(
        "lost_leases_total",
        "Leases that ran out with their worker.",
        (),
        _sum(Job.lost_leases),
        "counter",
    ),
    Figure("failures_total", "Failed jobs by code.", ("code",), _failures, "counter"),
    Figure("expired_leases", "Running jobs whose lease has run out.", (), _expired),
    Figure("jobs_lost_twice", "Unfinished jobs that lost two runners or leases.", (), _lost_twice),
    Figure("requests", "Unlearn requests by status.", ("status",), _requests),
    Figure("requests_overdue", "Open requests past their date.", (), _overdue),
    Figure("requests_due_soon", "Open requests due within seven days.", (), _due_soon),
    Figure("versions", "Versions of models by status.", ("status",), _versions),
    Figure("datasets", "Datasets by status.", ("status",), _datasets),
    Figure("models", "Models that are not deleted.", (), _models),
    Figure("stored_bytes", "Bytes as uploaded or published, still kept.", ("what",), _bytes),
    Figure("trash", "Files that wait to be removed.", (), _trash),
    Figure("oldest_trash_seconds", "Longest that a file waits to be removed.", (), _oldest_trash),
    Figure("workers", "Living workers by kind.", ("kind",), _workers),
    Figure("worker_slots", "Jobs that the living workers can do at once.", (), _slots),
    Figure(
        "sandbox_level",
        "Living workers by how well their runners are walled in.",
        ("level",),
        _sandbox,
    ),
    Figure(
        "worker_memory_bytes",
        "Memory in which the largest living worker computes: of its accelerator, or of a runner.",
        (),
        _memory,
    ),
    Figure(
        "worker_free_share",
        "Free share of the fullest disk that runners of the living workers write to.",
        (),
        _scratch,
    ),
    Figure(
        "missing_blobs",
        "Files that rows count on and that the last search for garbage did not find.",
        (),
        _missing,
    ),
    Figure(
        "rungs_last_day",
        "Rungs of jobs that ended within a day, by unlearner and status.",
        ("method", "status"),
        _rungs,
    ),
    Figure(
        "gates_last_day",
        "Gates of jobs that ended within a day, by kind and verdict.",
        ("kind", "verdict"),
        _gates,
    ),
)
