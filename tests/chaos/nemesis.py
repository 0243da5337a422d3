"""Kills at random moments, in the middle of jobs."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, Select, create_engine, exc, func, select
from sqlalchemy.orm import Session

from app.store.status import JOB_TERMINAL
from app.store.tables import Job

PATIENCE_SECONDS = 300.0
"""How long nothing at all may happen to the jobs; a busy machine takes its time."""
POLL_SECONDS = 0.05
JOBS_BETWEEN = 3
"""So many jobs end between two kills, and each is hit now and then."""
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
        self._enough = 0
        self.hits = 0
        """Kills that met a running job."""
        self.recoveries: list[float] = []
        """Seconds from a kill to the next claim of a job that it met."""
        self._watchers: dict[tuple[str, int], threading.Thread] = {}
        """By the claim that a kill ended."""
        self._closed = threading.Event()

    def close(self) -> None:
        """Let go of the database."""
        self._closed.set()
        for watcher in self._watchers.values():
            watcher.join()
        self._engine.dispose()

    def strike(self, kill: Callable[[], None]) -> bool:
        """Wait until some jobs have ended, then for the next moment, and kill.

        Returns:
            False, without a kill, once no job is left.
        """
        if not self._wait_until(lambda: self._count(ENDED) >= self._enough):
            return False
        moment, longest = next(self._moments)
        if not self._wait_until(moment):
            return False
        time.sleep(self._rng.uniform(0.0, longest))
        kill()
        killed_at = time.monotonic()
        self.kills += 1
        met = self._running()
        self.hits += bool(met)
        for claim in met.difference(self._watchers):
            watcher = threading.Thread(target=self._watch, args=(*claim, killed_at))
            self._watchers[claim] = watcher
            watcher.start()
        self._enough = self._count(ENDED) + JOBS_BETWEEN
        return True

    def rest(self) -> None:
        """Wait until no job is left."""
        assert not self._wait_until(lambda: False)

    def _running(self) -> set[tuple[str, int]]:
        """Ids of all jobs that are running, with the number of the claim."""
        found = self._ask_all(select(Job.id, Job.epoch).where(RUNNING))
        return {(row.id, row.epoch) for row in found}

    def _watch(self, job_id: str, epoch: int, killed_at: float) -> None:
        """Wait for the next claim of a job, or its end without one: nobody wants it any more."""
        question = select(Job.epoch, Job.status).where(Job.id == job_id)
        while not self._closed.wait(POLL_SECONDS):
            (job,) = self._ask_all(question)
            if job.epoch > epoch:
                self.recoveries.append(time.monotonic() - killed_at)
                return
            if job.status in JOB_TERMINAL:
                return

    def _wait_until(self, moment: Callable[[], bool]) -> bool:
        """Wait for the moment; return False once no job is left before it comes."""
        seen, since = self._pulse(), time.monotonic()
        while not moment():
            if not self._count(OPEN):
                return False
            if (now := self._pulse()) != seen:
                seen, since = now, time.monotonic()
            assert time.monotonic() < since + PATIENCE_SECONDS, "jobs are left, and nothing happens"
            time.sleep(POLL_SECONDS)
        return True

    def _turns(self) -> Iterator[tuple[Callable[[], bool], float]]:
        while True:
            yield lambda: self._count(WORKING) > 0, 1.0
            ended = self._count(ENDED)
            yield lambda before=ended: self._count(ENDED) > before, 0.3  # type: ignore[misc]
            yield lambda: self._count(RUNNING) > 0, 2.0

    def _count(self, condition: ColumnElement[bool]) -> int:
        return int(self._ask(select(func.count()).select_from(Job).where(condition)))

    def _pulse(self) -> int:
        """A number that changes with everything that happens to a job."""
        return int(self._ask(select(func.coalesce(func.sum(Job.revision + Job.epoch), 0))))

    def _ask(self, question: Select[Any]) -> Any:
        (row,) = self._ask_all(question)
        return row[0]

    def _ask_all(self, question: Select[Any]) -> Sequence[Row[Any]]:
        while True:
            try:
                with Session(self._engine) as session:
                    return session.execute(question).all()
            except exc.OperationalError:  # SQLite recovers its log after a kill
                time.sleep(0.02)
