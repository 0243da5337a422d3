"""Typed, sortable ids: ``job_01J...``."""

from __future__ import annotations

import re
import secrets
import threading
import time

from ulid import ULID

_FORM = re.compile(r"[a-z]{3}_[0-7][0-9A-HJKMNP-TV-Z]{25}")
_RANDOM_BITS = 80
_lock = threading.Lock()
_last = 0


def new(prefix: str) -> str:
    """Return a new id; ids of one process sort in the order they were made.

    Example:
        >>> new("job") < new("job")
        True
    """
    global _last
    fresh = (time.time_ns() // 1_000_000 << _RANDOM_BITS) | secrets.randbits(_RANDOM_BITS)
    with _lock:
        _last = fresh if fresh > _last else _last + 1
        return f"{prefix}_{ULID.from_int(_last)}"


def is_id(text: str, prefix: str) -> bool:
    """Whether ``text`` has the form of an id of that kind.

    Example:
        >>> is_id(new("mdl"), "mdl"), is_id("mdl_1", "mdl")
        (True, False)
    """
    return text.startswith(f"{prefix}_") and _FORM.fullmatch(text) is not None
