"""Fails the nth call to the database or to the blobs, once; all others go through."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from sqlalchemy import event, exc

from app.store import session as sessions
from app.store.blobs import Folder

BLOB_CALLS = ("adopt", "delete", "keys", "scratch")


class Trip:
    """Counts calls, and lets one of them fail.

    A commit counts twice: it fails before it is done, or it is done and the answer is lost.

    Args:
        nth: which call fails, from 1.
    """

    def __init__(self, nth: int) -> None:
        self.nth = nth
        self.calls = 0

    @property
    def has_failed(self) -> bool:
        """Whether there were enough calls for one to fail."""
        return self.calls >= self.nth

    def step(self, error: Exception) -> None:
        """Count a call; raise ``error`` if it is the one."""
        self.calls += 1
        if self.calls == self.nth:
            raise error


@contextmanager
def database_fails(nth: int) -> Iterator[Trip]:
    """Have the nth statement or commit of this process fail, as in an outage."""
    trip, engine = Trip(nth), sessions.engine()
    really_commit: Callable[[Any], None] = engine.dialect.do_commit

    def execute(*_: object) -> None:
        trip.step(_outage())

    def commit(connection: Any) -> None:
        trip.step(_outage())
        really_commit(connection)
        trip.step(_outage())

    event.listen(engine, "before_cursor_execute", execute)
    try:
        with patch.object(engine.dialect, "do_commit", commit):
            yield trip
    finally:
        event.remove(engine, "before_cursor_execute", execute)


@contextmanager
def blobs_fail(nth: int) -> Iterator[Trip]:
    """Have the nth call to the blobs fail, before it is done or, counted apart, after it."""
    trip = Trip(nth)

    def failing(really: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            trip.step(OSError(errno.EIO, "input/output error"))
            result = really(*arguments)
            trip.step(OSError(errno.EIO, "input/output error"))
            return result

        return call

    with patch.multiple(Folder, **{name: failing(getattr(Folder, name)) for name in BLOB_CALLS}):
        yield trip


def _outage() -> exc.OperationalError:
    return exc.OperationalError("", {}, Exception("the database went away"))
