"""Kills at random moments, in the middle of jobs."""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
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
Claims = set[tuple[str, int]]
"""Ids of jobs, with the number of the claim."""


@dataclass
class Strike:
    """One kill.

    Args:
        killed_at: when, by the monotonic clock.
        ready_at: when a worker was there again.
    """

    killed_at: float
    ready_at: float = math.inf


@dataclass
class Recovery:
    """From a kill to the next claim of a job that it met.

    Args:
        seconds: in all.
        waited: those in which a worker was ready, and not at another job while this one was free.
    """

    seconds: float
    waited: float


def kill_tree(pid: int) -> None:
    """SIGKILL to a process and all below it, as when their machine loses power."""
    process = psutil.Process(pid)
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(each.pid, signal.SIGKILL)


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
        self.recoveries: list[Recovery] = []
        self._watchers: dict[tuple[str, int], threading.Thread] = {}
        """By the claim that a kill ended."""
        self._closed = threading.Event()

    def close(self) -> None:
        """Let go of the database."""
        self._closed.set()
        for watcher in self._watchers.values():
            watcher.join()
        self._engine.dispose()

    def strike(
        self, kill: Callable[[], None], heal: Callable[[], None], *, outlived: bool = False
    ) -> bool:
        """Wait until some jobs have ended, then for the next moment, kill, and heal.

        Args:
            kill: what kills.
            heal: returns once a worker is ready.
            outlived: whether the worker lives on, and gives its job back by itself.

        Returns:
            False, without a kill, once no job is left.
        """
        if not self._wait_until(lambda: self._count(ENDED) >= self._enough):
            return False
        moment, longest = next(self._moments)
        if not self._wait_until(moment):
            return False
        time.sleep(self._rng.uniform(0.0, longest))
        held = self._running()
        kill()
        strike = Strike(time.monotonic())
        if outlived:
            strike.ready_at = strike.killed_at
        self.kills += 1
        met = self._given_back(held) if outlived else self._running()
        new = met.difference(self._watchers)
        self.hits += bool(new)
        for claim in new:
            watcher = threading.Thread(target=self._watch, args=(*claim, strike))
            self._watchers[claim] = watcher
            watcher.start()
        heal()
        strike.ready_at = min(strike.ready_at, time.monotonic())
        self._enough = self._count(ENDED) + JOBS_BETWEEN
        return True

    def rest(self) -> None:
        """Wait until no job is left."""
        assert not self._wait_until(lambda: False)

    def _running(self) -> Claims:
        found = self._ask_all(select(Job.id, Job.epoch).where(RUNNING))
        return {(row.id, row.epoch) for row in found}

    def _given_back(self, held: Claims) -> Claims:
        """Wait until none of these claims holds any more; return those that did not end a job."""
        self._wait_until(lambda: not held & self._running())
        ended = {row.id for row in self._ask_all(select(Job.id).where(ENDED))}
        return {claim for claim in held if claim[0] not in ended}

    def _watch(self, job_id: str, epoch: int, strike: Strike) -> None:
        """Wait for the next claim of a job, or its end without one: nobody wants it any more."""
        question = select(Job.epoch, Job.status).where(Job.id == job_id)
        waited, looked_at = 0.0, strike.killed_at
        while not self._closed.wait(POLL_SECONDS):
            (job,) = self._ask_all(question)
            is_held = job.epoch == epoch and job.status == "running"
            before, looked_at = max(looked_at, strike.ready_at), time.monotonic()
            if job.epoch > epoch or is_held or not self._running().difference(self._watchers):
                waited += max(0.0, looked_at - before)
            if job.epoch > epoch:
                self.recoveries.append(Recovery(looked_at - strike.killed_at, waited))
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
