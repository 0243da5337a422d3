"""What the child does first: give up what it does not need, and tie its life to its parent's.

The child does this itself, before it imports anything large, because code between fork and exec
(``preexec_fn``) is not safe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

PARENT_DIED = 70
"""Exit status of a child whose parent is gone (``EX_SOFTWARE``)."""

_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def enter(parent: int) -> int:
    """Confine this process and take its standard output away from stray prints.

    Args:
        parent: process id of the supervisor; if it is not the parent any more, exit at once.

    Returns:
        A file descriptor of the real standard output; descriptor 1 now goes to standard error.
    """
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if os.getppid() != parent:
        os._exit(PARENT_DIED)
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
