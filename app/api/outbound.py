"""One GET of an address that the operator has set: no redirect is followed, nothing may trickle."""

from __future__ import annotations

import errno
import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import urlsplit

from ..store.errors import ServiceError, Unacceptable, Unavailable
from ..store.session import settings
from .pace import SLOWEST

_LONGEST_REFUSAL = 4096
Refuse = Callable[[int, bytes], ServiceError]


class Readable(Protocol):
    """Bytes from somewhere."""

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""


@contextmanager
def get(url: str, refuse: Refuse) -> Iterator[Readable]:
    """Open what lies there, in one answer, so that all of its bytes are of one moment.

    Args:
        url: its scheme and host are never a caller's.
        refuse: makes an error of the status and the first bytes of an answer that is no success.

    Raises:
        Unacceptable: ``source_redirected``.
        Unavailable: ``source_unavailable`` if there is no answer, or if it ends early.
    """
    found = urlsplit(url)
    kind = http.client.HTTPSConnection if found.scheme == "https" else http.client.HTTPConnection
    seconds = settings().upload_slow_seconds
    connection = kind(found.hostname or "", found.port, timeout=seconds)
    target = found._replace(scheme="", netloc="").geturl()
    try:
        connection.request("GET", target, headers={"Accept-Encoding": "identity"})
        answer = connection.getresponse()
        if 300 <= answer.status < 400:
            raise Unacceptable("source_redirected", "The source sends elsewhere; not followed.")
        if answer.status != 200:
            raise refuse(answer.status, answer.read(_LONGEST_REFUSAL))
        yield _Watched(answer, seconds)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # our own disk, not the source
        raise unavailable() from None
    finally:
        connection.close()


class _Watched:
    """An answer that must come whole, and not too slowly."""

    def __init__(self, answer: http.client.HTTPResponse, seconds: float) -> None:
        self._answer = answer
        self._seconds = seconds
        self._start = time.monotonic()
        self._taken = 0

    def read(self, size: int, /) -> bytes:
        """Return up to ``size`` bytes, none at the end."""
        chunk = self._answer.read1(size)
        self._taken += len(chunk)
        passed = time.monotonic() - self._start
        if passed > self._seconds and self._taken < passed * SLOWEST:
            raise unavailable()
        if not chunk and self._answer.length:
            raise unavailable()  # it ended early
        return chunk


def missing() -> Unacceptable:
    """Make the error of a file that is not there."""
    return Unacceptable("source_not_found", "There is no such file, or it may not be read.")


def unavailable() -> Unavailable:
    """Make the error of a source that is away."""
    detail = "The source does not answer as it should."
    return Unavailable("source_unavailable", detail, headers={"Retry-After": "30"})
