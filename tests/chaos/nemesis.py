"""Kills at random moments, in the middle of jobs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator

from sqlalchemy import ColumnElement, Engine, create_engine, exc, func, select
from sqlalchemy.orm import Session

from app.store.status import JOB_TERMINAL
from app.store.tables import Job

WAIT_SECONDS = 90.0
RUNNING = Job.status == "running"
OPEN = Job.status.not_in(JOB_TERMINAL)
WORKING = RUNNING & Job.phase.in_(("unlearning", "auditing", "publishing"))
ENDED = Job.status.in_(JOB_TERMINAL)


class Nemesis:
    """Waits for a moment that hurts, then a little, then kills.

    The moments take turns, so that jobs make headway between kills: a job was claimed (its runner
    is starting), a job trains, a job has just ended (the next one is about to be claimed).

    Args:
        database_url: where the jobs are.
        rng: decides how long it waits.
    """

    def __init__(self, database_url: str, rng: random.Random) -> None:
        self._engine: Engine = create_engine(database_url)
        self._rng = rng
        self._moments = self._turns()
        self.kills = 0
        self.hits = 0
        """Kills that met a running job."""

    def close(self) -> None:
        """Let go of the database."""
        self._engine.dispose()

    def strike(self, kill: Callable[[], None]) -> bool:
        """Wait for the next moment and kill.

        Returns:
            False, without a kill, once no job is left.
        """
        moment, longest = next(self._moments)
        deadline = time.monotonic() + WAIT_SECONDS
        while not moment():
            if not self._count(OPEN):
                return False
            assert time.monotonic() < deadline, "jobs are left, but nothing happens"
            time.sleep(0.01)
        time.sleep(self._rng.uniform(0.0, longest))
        kill()
        self.kills += 1
        self.hits += self._count(RUNNING) > 0
        return True

    def rest(self, seconds: float) -> None:
        """Wait until no job is left."""
        deadline = time.monotonic() + seconds
        while self._count(OPEN):
            assert time.monotonic() < deadline, "jobs are left after the healing"
            time.sleep(0.1)

    def _turns(self) -> Iterator[tuple[Callable[[], bool], float]]:
        while True:
            yield lambda: self._count(WORKING) > 0, 1.0
            ended = self._count(ENDED)
            yield lambda before=ended: self._count(ENDED) > before, 0.3  # type: ignore[misc]
            yield lambda: self._count(RUNNING) > 0, 2.0

    def _count(self, condition: ColumnElement[bool]) -> int:
        while True:
            try:
                with Session(self._engine) as session:
                    return (
                        session.scalar(select(func.count()).select_from(Job).where(condition)) or 0
                    )
            except exc.OperationalError:  # SQLite recovers its log after a kill
                time.sleep(0.02)
