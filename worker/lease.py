"""A worker's time-limited right to a job: renew it, notice its end, outlast a database outage.

Nobody can take a lease while the database, which arbitrates, is away. So the work goes on, and the
lease is renewed by its epoch when the database returns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Protocol, TypeVar

import structlog
from sqlalchemy import exc

from app.store.errors import Unavailable
from app.store.jobs import LeaseLost
from worker.protocol import Progress

GRACE_SECONDS = 600.0
"""How long an unreachable database is waited for."""

PROGRESS_SECONDS = 0.5
"""News of progress are stored at most this often."""

OUTAGE = (
    *(exc.OperationalError, exc.InterfaceError, exc.TimeoutError, Unavailable),
    *(exc.InternalError, exc.NotSupportedError),
)
"""What the store raises while the database is away or, on the second line, a read-only standby."""

T = TypeVar("T")
_log = structlog.get_logger(__name__)


class CancelRequested(Exception):
    """The caller wants the job stopped."""


class Renewal(Protocol):
    """What the store answers to a renewal."""

    @property
    def alive(self) -> bool:
        """Whether the claim still holds."""

    @property
    def cancel(self) -> bool:
        """Whether somebody asked to cancel the job."""


Renew = Callable[[Progress | None], Renewal]


class Heartbeat:
    """Renews a claim in a thread for as long as its ``with`` block lasts.

    Args:
        renew: renews the claim once, and stores the progress given.
        seconds: how often, at least.
        grace: how long an unreachable database is waited for.
    """

    def __init__(self, renew: Renew, seconds: float, grace: float = GRACE_SECONDS) -> None:
        self._renew = renew
        self._seconds = seconds
        self._grace = grace
        self._progress: Progress | None = None
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._news = threading.Event()
        # In the context of whoever holds the lease: what the thread logs belongs to the same job.
        run = partial(copy_context().run, self._run)
        self._thread = threading.Thread(target=run, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._news.set()
        self._thread.join()

    def tell(self, progress: Progress) -> None:
        """Store this progress soon."""
        self._progress = progress
        self._news.set()

    def check(self) -> None:
        """Raise what the thread found out.

        Raises:
            LeaseLost: if the claim does not hold any more.
            CancelRequested: if the job is to be cancelled.
        """
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                beaten_at = time.monotonic()
                self._beat()
                if self._news.wait(self._seconds):
                    self._stop.wait(beaten_at + PROGRESS_SECONDS - time.monotonic())
                    self._news.clear()
        except Exception as error:  # noqa: BLE001  # handed to the thread that does the job
            self._failure = error

    def _beat(self) -> None:
        renewal = insist(
            lambda: self._renew(self._progress), self._stop, min(self._seconds, 1.0), self._grace
        )
        if renewal is None:
            return
        if not renewal.alive:
            raise LeaseLost("the lease was given to somebody else")
        if renewal.cancel:
            raise CancelRequested


def insist(
    act: Callable[[], T],
    stop: threading.Event | None = None,
    pause: float = 1.0,
    grace: float = GRACE_SECONDS,
) -> T | None:
    """Call ``act`` until the database answers; None if ``stop`` was set before it did.

    Only for acts that may be repeated: reads, and writes that match on the epoch.

    Raises:
        LeaseLost: if the database stayed away for ``grace`` seconds.
    """
    stop = stop or threading.Event()
    since = time.monotonic()
    while True:
        try:
            return act()
        except OUTAGE as error:
            if time.monotonic() - since > grace:
                raise LeaseLost("the database stayed away") from error
            _log.warning("database_away", error=type(error).__name__)
        if stop.wait(pause):
            return None
