"""``python -m worker.alive``: whether a worker of this machine was seen lately.

The health check of a worker container; it exits with 1 if none was. A worker says that it lives
whenever its sweeper passes, so this sees a dead process, a dead thread and a lost database.
"""

from __future__ import annotations

import socket
import sys

from app.store import workers
from app.store.session import reading


def alive(host: str) -> bool:
    """Whether a worker on ``host`` is among the living."""
    with reading() as session:
        return any(worker.id.startswith(f"{host}-") for worker in workers.live(session))


if __name__ == "__main__":
    sys.exit(not alive(socket.gethostname()))
