"""Which workers live, for readiness, the size of the dispatch window, and what can be done."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from . import clock
from . import session as sessions
from .errors import Unacceptable
from .tables import Worker

MISSED_BEATS = 3
"""A worker unseen for so many sweeps (and at least a lease) counts as gone."""


BYTES_PER_PARAMETER = 16
"""The least that unlearning needs: parent, candidate, gradient and momentum in float32."""


def seen(
    session: Session,
    worker_id: str,
    kind: str,
    slots: int,
    sandbox: str | None = None,
    memory_bytes: int | None = None,
    *,
    scratch_free_share: float | None = None,
    missing_blobs: int | None = None,
) -> None:
    """Note that a worker lives, how well its runners are walled in, and what it sees."""
    worker = session.get(Worker, worker_id) or Worker(id=worker_id)
    worker.kind, worker.slots, worker.sandbox = kind, slots, sandbox
    worker.memory_bytes = memory_bytes
    worker.scratch_free_share, worker.missing_blobs = scratch_free_share, missing_blobs
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


def refuse_without_room(session: Session, num_parameters: int) -> None:
    """Refuse a network that no living worker has the memory for.

    While none lives that computes, one may still come, and nothing is refused.

    Raises:
        Unacceptable: ``no_capable_worker``.
    """
    least = BYTES_PER_PARAMETER * num_parameters
    known = [worker.memory_bytes for worker in live(session) if worker.memory_bytes is not None]
    if known and max(known) < least:
        raise Unacceptable(
            "no_capable_worker",
            f"Unlearning this network takes at least {least} bytes of memory where it is computed; "
            f"the largest worker has {max(known)}.",
        )


def purge(session: Session) -> int:
    """Forget workers that went without a word; return how many."""
    gone = delete(Worker).where(Worker.seen_at <= clock.now() - 10 * _patience())
    return len(session.execute(gone.returning(Worker.id)).all())


def _patience() -> float:
    settings = sessions.settings()
    return max(settings.lease_seconds, MISSED_BEATS * settings.sweep_seconds)
