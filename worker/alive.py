"""``python -m worker.alive``: whether a worker of this machine lives, and hears its bell.

The health check of a worker container; it exits with 1 if not. A worker says that it lives whenever
its sweeper passes, so this sees a dead process and a dead thread. It also sees a worker that sweeps
but does nothing: jobs that it can do are rung again and again, and it claims none. While the broker
is away nothing is rung, so that is no reason to start workers anew. Neither is a database that is
away: jobs at work outlive that, so then it is enough that a sweeper still tries.
"""

from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from app.store import clock, workers
from app.store.jobs.queueing import is_due, kinds_of
from app.store.session import reading, settings
from app.store.tables import Job

DEAF_SECONDS = 180.0
"""How old a job has to be that was rung in vain."""

HEARD_SECONDS = 10.0
"""A ring that is younger may not have been heard yet."""

ROUND_SECONDS = 60.0
"""How long a sweeper that lives may take for a round, a database that does not answer included."""


def alive(host: str) -> bool:
    """Whether a worker on ``host`` is among the living."""
    with reading() as session:
        return any(worker.id.startswith(f"{host}-") for worker in workers.live(session))


def went_round() -> None:
    """Note that a sweeper of this machine begins a round."""
    _rounds().touch()


def goes_round() -> bool:
    """Whether a sweeper of this machine began a round lately."""
    try:
        return time.time() - _rounds().stat().st_mtime < ROUND_SECONDS
    except FileNotFoundError:
        return False


def _rounds() -> Path:
    return settings().data_dir / "sweeper.round"


def deaf(names: str) -> bool:
    """Whether old jobs were rung in vain lately that idle workers could do.

    Args:
        names: what the names of these workers begin with: that of a machine, or all of one.
    """
    busy = select(Job.id).where(
        Job.status == "running", Job.lease_owner.startswith(names, autoescape=True)
    )
    lately = clock.now() - 2 * settings().redispatch_seconds
    unheard = select(Job.id).where(
        is_due(),
        Job.kind.in_(kinds_of(settings().worker_needs)),
        clock.seconds(Job.created_at) < clock.now() - DEAF_SECONDS,
        Job.run_after < clock.now() - DEAF_SECONDS,
        Job.dispatched_at.between(lately, clock.now() - HEARD_SECONDS),
    )
    with reading() as session:
        if session.scalar(busy.limit(1)) is not None:
            return False
        return session.scalar(unheard.limit(1)) is not None


if __name__ == "__main__":
    here = socket.gethostname()
    try:
        ill = not alive(here) or deaf(f"{here}-")
    except SQLAlchemyError:
        ill = not goes_round()
    sys.exit(ill)
