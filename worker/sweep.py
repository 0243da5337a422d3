"""The threads that recover everything else: expired leases, unheard bells, bytes without rows.

The sweeper also watches its own worker: one that hears no bell any more is ended, to be started
anew. A storage may take its time, so a thread of its own removes bytes.
"""

from __future__ import annotations

import math
import os
import shutil
import threading
import time
from collections.abc import Callable
from functools import partial

import structlog

from app import bell
from app.store import homes, jobs, workers
from app.store.blobs import blobs
from app.store.failpoints import failpoint
from app.store.session import settings, transaction
from worker import garbage
from worker.alive import deaf, went_round
from worker.lease import OUTAGE

STOP_SECONDS = 5.0
"""How long each thread may take to end; what it leaves undone any other worker does."""

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
        self._cleaner = Cleaner(self._closing)
        self._frees_from = 0.0

    def run(self) -> None:
        """Sweep until stopped; an outage or an error spoils one pass, not the next."""
        self._cleaner.start()
        while not self._closing.is_set():
            _survive(went_round)
            _survive(self._sweep)
            _survive(self._end_if_deaf)
            self._closing.wait(settings().sweep_seconds)

    def stop(self) -> None:
        """End the threads and leave the list of living workers."""
        self._closing.set()
        for thread in (self, self._cleaner):
            if thread.is_alive():
                thread.join(STOP_SECONDS)
        with transaction() as session:
            workers.leave(session, self._worker)

    def _sweep(self) -> None:
        share = _free_share()
        try:
            with transaction() as session:
                workers.seen(
                    session,
                    self._worker,
                    self._kind,
                    1,
                    self._sandbox,
                    self._memory,
                    scratch_free_share=share,
                    missing_blobs=self._cleaner.num_missing,
                )
                counts = jobs.sweep(session) if time.monotonic() >= self._frees_from else {}
                failpoint("sweep.before_commit")
        except OUTAGE:
            self._frees_from = math.inf
            raise
        if self._frees_from == math.inf:
            # Leases ran out that nobody could renew: whoever still holds one gets to do so first.
            self._frees_from = time.monotonic() + 2 * settings().heartbeat_seconds
        failpoint("sweep.after_commit")
        if any(counts.values()):
            _log.info("swept", **counts)
            bell.nudge()

    def _end_if_deaf(self) -> None:
        """End the process if jobs are rung in vain while its worker is idle.

        A consumer can be left with a dead line to the broker and never notice. The embedded worker
        has no line: whatever ends its thread ends its process, too.
        """
        if self._kind == "celery" and deaf(self._worker):
            _log.error("worker_deaf", worker=self._worker)
            # Not by asking: a consumer that hears nothing may not hear that either.
            os._exit(1)


class Cleaner(threading.Thread):
    """Removes bytes and indexes that nothing names any more, every ``sweep_seconds``.

    Args:
        closing: ends it.
    """

    def __init__(self, closing: threading.Event) -> None:
        super().__init__(name="cleaner", daemon=True)
        self._closing = closing
        self._search_at = 0.0
        self.num_missing: int | None = None
        """Files that rows count on and the last search did not find; None before the first one."""

    def run(self) -> None:
        """Clean until ``closing`` is set; what fails is tried again, and keeps nothing else."""
        while not self._closing.is_set():
            self._clean()
            self._closing.wait(settings().sweep_seconds)

    def _clean(self) -> None:
        _survive(partial(garbage.empty_trash, self._closing))
        _survive(partial(garbage.drop_indexes, self._closing))
        _survive(self._search)

    def _search(self) -> None:
        """Look for garbage, which takes a list of all keys, so not at every pass."""
        if time.monotonic() < self._search_at:
            return
        self._search_at = time.monotonic() + blobs().listing_seconds
        _survive(self._collect)
        homes.remove_leftovers(settings().data_dir)

    def _collect(self) -> None:
        _, missing = garbage.collect(self._closing)
        self.num_missing = len(missing)


def _free_share() -> float | None:
    """How much of the disk of the scratch is free, 0 to 1; None if it cannot be read."""
    try:
        disk = shutil.disk_usage(settings().data_dir / "scratch")
    except OSError:
        return None
    return disk.free / disk.total if disk.total else None


def _survive(act: Callable[[], object]) -> None:
    try:
        act()
    except Exception:  # noqa: BLE001  # recovery must survive whatever it meets
        _log.exception("sweep_failed")
