"""The bench: one runner started ahead, with torch imported and nobody's data, used once."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from worker.supervisor import Runner

PAUSE_SECONDS = 10.0
"""After a spare that could not be started, or that died, before the next is started."""

_log = structlog.get_logger(__name__)


class Bench:
    """Hands out runners; keeps at most one ahead.

    Not safe for threads: it belongs to the thread that runs jobs, whose end also ends its runners.

    Args:
        spawn: starts a runner in a new scratch folder.
        ahead: whether to keep one started ahead.
    """

    def __init__(self, spawn: Callable[[], Runner], *, ahead: bool) -> None:
        self._spawn = spawn
        self._ahead = ahead
        self._spare: Runner | None = None
        self._not_before = 0.0

    def refill(self) -> None:
        """Start a spare if there should be one and there is none alive.

        Work goes on without one: if it cannot be started, or dies, the next try is after a pause.
        """
        if not self._ahead or (self._spare is not None and self._spare.alive):
            return
        now = time.monotonic()
        if self._spare is not None:
            _log.warning("spare_runner_died", pid=self._spare.pid)
            self._not_before = now + PAUSE_SECONDS
            self.clear()
        if now < self._not_before:
            return
        try:
            self._spare = self._spawn()
        except OSError as error:
            _log.warning("spare_not_started", reason=error.strerror)
            self._not_before = now + PAUSE_SECONDS

    def take(self) -> Runner:
        """Return a runner that nobody used: the spare if it is alive, else a new one."""
        spare, self._spare = self._spare, None
        if spare is None:
            return self._spawn()
        if spare.alive:
            return spare
        _log.warning("spare_runner_died", pid=spare.pid)
        spare.close()
        return self._spawn()

    def clear(self) -> None:
        """End the spare."""
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.close()
