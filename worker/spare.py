"""The bench: one runner started ahead, with torch imported and nobody's data, used once."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from worker.supervisor import Runner

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

    def refill(self) -> None:
        """Start a spare if there should be one and there is none alive."""
        if not self._ahead or (self._spare is not None and self._spare.alive):
            return
        self.clear()
        self._spare = self._spawn()

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
