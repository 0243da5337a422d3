"""The thread that recovers everything else: expired leases, unheard bells, bytes without rows.

It also watches its own worker: one that hears no bell any more is ended, to be started anew.
"""

from __future__ import annotations

import os
import threading

import structlog

from app import bell
from app.store import homes, jobs, workers
from app.store.blobs import blobs
from app.store.failpoints import failpoint
from app.store.session import settings, transaction
from worker import garbage
from worker.alive import deaf

_log = structlog.get_logger(__name__)


class Sweeper(threading.Thread):
    """Sweeps every ``sweep_seconds`` and tells readiness that this worker lives.

    Args:
        name: of the worker.
        kind: ``celery`` or ``embedded``.
        sandbox: level of the walls around its runners.
        memory: bytes in which they compute.
    """

    def __init__(
        self, name: str, kind: str, sandbox: str | None = None, memory: int | None = None
    ) -> None:
        super().__init__(name="sweeper", daemon=True)
        self._worker = name
        self._kind = kind
        self._sandbox = sandbox
        self._memory = memory
        self._closing = threading.Event()

    def run(self) -> None:
        """Sweep until stopped; an outage or an error spoils one pass, not the next."""
        seconds = settings().sweep_seconds
        passes = 0
        while not self._closing.is_set():
            try:
                every = max(1, int(blobs().listing_seconds / seconds))
                self._sweep(with_garbage=passes % every == 0)
                self._end_if_deaf()
            except Exception:  # noqa: BLE001  # recovery must survive whatever it meets
                _log.exception("sweep_failed")
            passes += 1
            self._closing.wait(seconds)

    def stop(self) -> None:
        """End the thread and leave the list of living workers."""
        self._closing.set()
        self.join()
        with transaction() as session:
            workers.leave(session, self._worker)

    def _sweep(self, *, with_garbage: bool) -> None:
        with transaction() as session:
            workers.seen(session, self._worker, self._kind, 1, self._sandbox, self._memory)
            counts = jobs.sweep(session)
            failpoint("sweep.before_commit")
        failpoint("sweep.after_commit")
        if any(counts.values()):
            _log.info("swept", **counts)
            bell.nudge()
        garbage.empty_trash()
        if with_garbage:
            garbage.collect()
            homes.remove_leftovers(settings().data_dir)

    def _end_if_deaf(self) -> None:
        """End the process if jobs are rung in vain while its worker is idle.

        A consumer can be left with a dead line to the broker and never notice. The embedded worker
        has no line: whatever ends its thread ends its process, too.
        """
        if self._kind == "celery" and deaf(self._worker):
            _log.error("worker_deaf", worker=self._worker)
            # Not by asking: a consumer that hears nothing may not hear that either.
            os._exit(1)
