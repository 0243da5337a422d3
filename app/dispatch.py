"""The thread that rings for due jobs, outside every request.

The queued row is the outbox: if the process dies between commit and ring, any other dispatcher
rings. Ringing twice is harmless, because a claim is a compare-and-set.
"""

from __future__ import annotations

import threading
import time

import structlog

from app import bell
from app.settings import Settings
from app.store import jobs, keys, partial
from app.store import session as sessions
from app.store.failpoints import failpoint

SWEEP_SECONDS = 60.0
"""How often the uploads in this process's data folder are looked through."""
RESTS = 4.0
"""A pass over a long queue takes long; so much longer it rests, whatever nudges it meanwhile."""

_log = structlog.get_logger(__name__)


class Dispatcher:
    """Rings for due jobs every ``dispatch_seconds``, and at once when nudged; ends idle uploads.

    Args:
        settings: the store's by default.
    """

    def __init__(self, settings: Settings | None = None) -> None:
        self._seconds = (settings or sessions.settings()).dispatch_seconds
        self._sweep_at = 0.0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    def start(self) -> None:
        """Start ringing."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and wait for the thread."""
        self._closing.set()
        bell.nudge()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._closing.is_set():
            begun = time.monotonic()
            try:
                self._sweep_uploads()
                dispatch()
                _note_key_uses()
            except Exception as error:  # noqa: BLE001  # whatever is away, the next pass tries again
                _log.warning("dispatch_failed", error=type(error).__name__)
            self._closing.wait(min(RESTS * (time.monotonic() - begun), self._seconds))
            bell.nudged.wait(self._seconds)
            bell.nudged.clear()

    def _sweep_uploads(self) -> None:
        """Here, not beside the jobs: only who takes uploads in is sure to see their folder."""
        if time.monotonic() >= self._sweep_at:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS
            partial.sweep()


def dispatch() -> list[str]:
    """Ring once for every job that is due and was not rung lately; return their ids."""
    with sessions.reading() as session:
        due = jobs.due(session)
        needs = jobs.needs_of(session, due)
    if due:
        failpoint("dispatch.before_send")
        for need in sorted({*needs.values()}):
            bell.send(*[job_id for job_id in due if needs[job_id] == need], need=need)
        failpoint("dispatch.after_send")
        with sessions.transaction() as session:
            jobs.stamp_dispatched(session, due)
        for job_id in due:
            _log.info("job_rung", job_id=job_id)
    return due


def _note_key_uses() -> None:
    if keys.unwritten_uses():
        with sessions.transaction() as session:
            keys.write_uses(session)
