"""Named places where a test has this process die, freeze or fail; elsewhere nothing happens.

The setting ``failpoint`` says where and what: ``worker.after_claim=kill``. ``@3`` behind it waits
for the third time; whatever happens, happens once in the life of a process.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections import Counter
from typing import Literal, get_args

from . import session as sessions
from .errors import Unavailable

Place = Literal[
    "api.before_commit",
    "api.after_commit",
    "blob.before_rename",
    "blob.after_rename",
    "dispatch.before_send",
    "dispatch.after_send",
    "garbage.before_delete",
    "garbage.after_delete",
    "lease.before_renewal",
    "lease.after_renewal",
    "sweep.before_commit",
    "sweep.after_commit",
    "worker.after_receive",
    "worker.before_claim_commit",
    "worker.after_claim",
    "worker.before_order",
    "worker.after_order",
    "worker.first_progress",
    "worker.in_training",
    "worker.checkpoint_kept",
    "worker.after_done",
    "worker.after_blobs",
    "worker.before_end_commit",
    "worker.after_end_commit",
    "worker.after_cleanup",
]
PLACES: tuple[Place, ...] = get_args(Place)

_lock = threading.Lock()
_seen: Counter[str] = Counter()


def failpoint(place: Place) -> None:
    """Do what the settings want to happen here.

    Raises:
        OSError: ``full``: the disk is full.
        Unavailable: ``away``: the database is away.
    """
    wanted = sessions.settings().failpoint
    if not wanted:
        return
    where, _, rest = wanted.partition("=")
    action, _, nth = rest.partition("@")
    assert where in PLACES, f"there is no failpoint {where}"
    if where != place:
        return
    with _lock:
        _seen[wanted] += 1
        is_turn = _seen[wanted] == int(nth or 1)
    if is_turn:
        _act(action)


def _act(action: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif action == "full":
        raise OSError(errno.ENOSPC, "failpoint: no space left on device")
    else:
        raise Unavailable(detail="failpoint: the database is away")
