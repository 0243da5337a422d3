"""The thread that recovers everything else: expired leases, unheard bells, bytes without rows."""

from __future__ import annotations

import threading

import structlog

from app import bell
from app.store import jobs, partial, workers
from app.store.blobs import blobs
from app.store.failpoints import failpoint
from app.store.session import settings, transaction
from worker import garbage

_log = structlog.get_logger(__name__)


class Sweeper(threading.Thread):
    """Sweeps every ``sweep_seconds`` and tells readiness that this worker lives.

    Args:
        name: of the worker.
        kind: ``celery`` or ``embedded``.
        sandbox: level of the walls around its runners.
    """

    def __init__(self, name: str, kind: str, sandbox: str | None = None) -> None:
        super().__init__(name="sweeper", daemon=True)
        self._worker = name
        self._kind = kind
        self._sandbox = sandbox
        self._closing = threading.Event()

    def run(self) -> None:
        """Sweep until stopped; an outage or an error spoils one pass, not the next."""
        seconds = settings().sweep_seconds
        passes = 0
        while not self._closing.is_set():
            try:
                every = max(1, int(blobs().listing_seconds / seconds))
                self._sweep(with_garbage=passes % every == 0)
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
            workers.seen(session, self._worker, self._kind, 1, self._sandbox)
            counts = jobs.sweep(session)
            failpoint("sweep.before_commit")
        failpoint("sweep.after_commit")
        if any(counts.values()):
            _log.info("swept", **counts)
            bell.nudge()
        garbage.empty_trash()
        if with_garbage:
            garbage.collect()
            partial.sweep()
