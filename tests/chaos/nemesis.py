"""Kills at random moments, in the middle of jobs."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from sqlalchemy import Engine, create_engine, exc, func, select
from sqlalchemy.orm import Session

from app.store.status import JOB_TERMINAL
from app.store.tables import Job

WAIT_SECONDS = 60.0


class Nemesis:
    """Waits for a running job, then a little, then kills.

    Args:
        database_url: where the jobs are.
        rng: decides how long it waits.
    """

    def __init__(self, database_url: str, rng: random.Random) -> None:
        self.engine: Engine = create_engine(database_url)
        self._rng = rng
        self.kills = 0
        self.hits = 0
        """Kills that met a running job."""

    def strike(self, kill: Callable[[], None], longest: float) -> bool:
        """Kill at most ``longest`` seconds after a job was seen running.

        Returns:
            False, without a kill, once no job is left.
        """
        deadline = time.monotonic() + WAIT_SECONDS
        while not self._count(Job.status == "running"):
            if not self._count(Job.status.not_in(JOB_TERMINAL)):
                return False
            assert time.monotonic() < deadline, "jobs are left, but none runs"
            time.sleep(0.02)
        time.sleep(self._rng.uniform(0.0, longest))
        kill()
        self.kills += 1
        self.hits += self._count(Job.status == "running") > 0
        return True

    def rest(self, seconds: float) -> None:
        """Wait until no job is left."""
        deadline = time.monotonic() + seconds
        while self._count(Job.status.not_in(JOB_TERMINAL)):
            assert time.monotonic() < deadline, "jobs are left after the healing"
            time.sleep(0.1)

    def _count(self, condition: object) -> int:
        while True:
            try:
                with Session(self.engine) as session:
                    query = select(func.count()).select_from(Job).where(condition)  # type: ignore[arg-type]
                    return session.scalar(query) or 0
            except exc.OperationalError:  # SQLite recovers its log after a kill
                time.sleep(0.02)
