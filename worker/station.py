"""What one worker process has: a name, a home folder, a bench of runners and a closing sign."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import threading
from functools import cache
from pathlib import Path

from app.store.blobs import blobs
from app.store.homes import Home, remove_leftovers
from app.store.session import settings
from worker import capacity, sandbox
from worker.spare import Bench
from worker.supervisor import Runner


class Station:
    """The place where one job at a time is done.

    Args:
        module: what its runners run; tests put a stand-in here.
    """

    def __init__(self, module: str = "worker.runner") -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.home = Home(blobs())
        self.sandbox, self.memory = self._measured()
        """Level of the walls around its runners, tried now, and bytes in which they compute."""
        self.closing = threading.Event()
        """Set when the process is asked to end: the job at work is given back."""
        self.is_broken = False
        """Whether its accelerator is gone: it takes no job any more, and its process is to end."""
        self.bench = Bench(self._spawn, ahead=settings().spare_runner)
        self._module = module

    def close(self) -> None:
        """End the spare runner and remove the home folder."""
        self.closing.set()
        self.bench.clear()
        self.home.close()

    def _measured(self) -> tuple[sandbox.Level, int | None]:
        try:
            minimum = settings().sandbox_minimum
            level = sandbox.require(self.home.path, minimum, together=_together())
            return level, capacity.memory()
        except SystemExit:
            self.home.close()
            raise

    def _spawn(self) -> Runner:
        folder = Path(self.home.path, secrets.token_hex(8))
        folder.mkdir(mode=0o700)
        try:
            return Runner(
                folder, threads=settings().torch_threads, module=self._module, together=_together()
            )
        except OSError:
            for left in (folder, folder.with_name(f"{folder.name}.in")):
                shutil.rmtree(left, ignore_errors=True)
            raise


def _together() -> bool:
    return settings().train_processes != 1


@cache
def station() -> Station:
    """Return the station of this process; the first call clears away dead predecessors'."""
    remove_leftovers(settings().data_dir)
    return Station()
