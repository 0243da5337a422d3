"""Which workers live, for readiness and for the size of the dispatch window."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from . import clock
from . import session as sessions
from .tables import Worker

MISSED_BEATS = 3
"""A worker unseen for so many sweeps (and at least a lease) counts as gone."""


def seen(
    session: Session, worker_id: str, kind: str, slots: int, sandbox: str | None = None
) -> None:
    """Note that a worker lives, and how well its runners are walled in."""
    worker = session.get(Worker, worker_id) or Worker(id=worker_id)
    worker.kind, worker.slots, worker.sandbox = kind, slots, sandbox
    worker.seen_at = session.scalar(select(clock.now())) or 0.0
    session.add(worker)
    session.flush()


def leave(session: Session, worker_id: str) -> None:
    """Note that a worker has ended."""
    session.execute(delete(Worker).where(Worker.id == worker_id))


def live(session: Session) -> list[Worker]:
    """Workers seen lately."""
    return [*session.scalars(select(Worker).where(Worker.seen_at > clock.now() - _patience()))]


def slots(session: Session) -> int:
    """How many jobs the living workers can do at once."""
    chosen = select(func.coalesce(func.sum(Worker.slots), 0))
    return session.scalar(chosen.where(Worker.seen_at > clock.now() - _patience())) or 0


def purge(session: Session) -> int:
    """Forget workers that went without a word; return how many."""
    gone = delete(Worker).where(Worker.seen_at <= clock.now() - 10 * _patience())
    return len(session.execute(gone.returning(Worker.id)).all())


def _patience() -> float:
    settings = sessions.settings()
    return max(settings.lease_seconds, MISSED_BEATS * settings.sweep_seconds)
